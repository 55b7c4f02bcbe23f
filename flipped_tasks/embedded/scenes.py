"""Scenes of the made-up world: facts about a person, and sentences that say them."""

from __future__ import annotations

import dataclasses
import random
import re

from flipped_tasks.embedded import words

KINDS = tuple(words.CONCEPTS)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact about a person: a kind, such as "mood", and the index of a concept of that kind."""

    kind: str
    concept: int

    @property
    def synonyms(self) -> tuple[str, ...]:
        return words.CONCEPTS[self.kind][self.concept]


def draw_fact(rng: random.Random, kind: str | None = None) -> Fact:
    kind = kind or rng.choice(KINDS)
    return Fact(kind, rng.randrange(len(words.CONCEPTS[kind])))


def draw_facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts of different kinds."""
    return [draw_fact(rng, kind) for kind in rng.sample(KINDS, count)]


def other(rng: random.Random, fact: Fact) -> Fact:
    """A fact of the same kind that is not `fact`; all are equally likely."""
    step = rng.randrange(1, len(words.CONCEPTS[fact.kind]))
    return Fact(fact.kind, (fact.concept + step) % len(words.CONCEPTS[fact.kind]))


def pick_word(rng: random.Random, fact: Fact, not_these: tuple[str, ...] = ()) -> str:
    return rng.choice([word for word in fact.synonyms if word not in not_these])


def predicate(rng: random.Random, fact: Fact, word: str, retold: bool = False) -> str:
    """Says that someone has this fact, such as "felt glad"; retold, "seemed glad"."""
    forms = (words.RETOLD_PREDICATES if retold else words.PREDICATES)[fact.kind]
    return with_article(rng.choice(forms).format(w=word))


def with_article(text: str) -> str:
    """Writes "an auto" for "a auto"."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def as_sentence(text: str) -> str:
    """Writes "To sew cloth you need a needle." for "to sew cloth you need a needle"."""
    return text[0].upper() + text[1:] + "."


@dataclasses.dataclass(frozen=True)
class Telling:
    """Facts about a person in chosen words."""

    person: str
    facts: tuple[Fact, ...]
    words: tuple[str, ...]
    retold: bool = False

    def _predicates(self, rng: random.Random) -> list[str]:
        return [
            predicate(rng, f, w, self.retold) for f, w in zip(self.facts, self.words, strict=True)
        ]

    def sentences(self, rng: random.Random) -> str:
        """One sentence for each fact: "Anna felt glad. Anna had a mug."."""
        return " ".join(f"{self.person} {part}." for part in self._predicates(rng))

    def sentence(self, rng: random.Random) -> str:
        """All facts in one sentence: "Anna felt glad and had a mug."."""
        return f"{self.person} {' and '.join(self._predicates(rng))}."


def tell(rng: random.Random, person: str, facts: list[Fact]) -> Telling:
    """Chooses a word for each fact."""
    return Telling(person, tuple(facts), tuple(pick_word(rng, fact) for fact in facts))


def retell(rng: random.Random, first: Telling, facts: list[Fact]) -> Telling:
    """Tells `facts` of the same person without repeating a word of the first telling."""
    chosen = tuple(pick_word(rng, fact, first.words) for fact in facts)
    return Telling(first.person, tuple(facts), chosen, retold=True)


def question(rng: random.Random, fact: Fact, person: str) -> str:
    return rng.choice(words.QUESTIONS[fact.kind]).format(p=person)


def options(rng: random.Random, fact: Fact, right: str, count: int) -> tuple[list[str], int]:
    """`count` words of the fact's kind, of different concepts, with `right` among them; and its index."""
    concepts = list(range(len(words.CONCEPTS[fact.kind])))
    concepts.remove(fact.concept)
    wrong = [pick_word(rng, Fact(fact.kind, c)) for c in rng.sample(concepts, count - 1)]
    index = rng.randrange(count)
    return wrong[:index] + [right] + wrong[index:], index
