"""Running text of the made-up world, for the warm-up that stands in for the LM-adapted checkpoint.

The text says what is so in the world, in many words: scenes and their retellings, causes and effects, tools and
animals, reviews, news. It holds no prompt and no template.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from flipped_tasks.embedded import knowledge, qa_rows, scenes, text_rows, unseen_rows, words

# The words for a claim that is so, that is not so, and that may be so; each also stands capitalised.
VERDICTS: tuple[tuple[str, ...], ...] = (
    ("yes", "true", "correct", "right", "agree", "positive", "always", "guaranteed"),
    ("no", "false", "incorrect", "wrong", "disagree", "negative", "never", "impossible"),
    ("maybe", "unknown", "unclear", "neither", "inconclusive", "neutral", "sometimes", "possible"),
)


def verdict(rng: random.Random, label: int) -> str:
    word = rng.choice(VERDICTS[label])
    return word.capitalize() if rng.random() < 0.5 else word


def retelling(rng: random.Random) -> str:
    """A scene, then the same scene in other words."""
    person = rng.choice(words.PEOPLE)
    first = scenes.tell(rng, person, scenes.draw_facts(rng, rng.choice((1, 1, 2))))
    second = scenes.retell(rng, first, list(first.facts))
    link = rng.choice(("That is,", "So", "In other words,", "This means"))
    return f"{first.sentences(rng)} {link} {second.sentences(rng)}"


def meaning(rng: random.Random) -> str:
    fact = scenes.draw_fact(rng)
    first, second = rng.sample(fact.synonyms, 2)
    return f"{first} means the same as {second}."


def verified(rng: random.Random) -> str:
    """A scene, a claim, and whether the claim is so, in any of the words for it."""
    label = rng.randrange(3)
    premise, claim = unseen_rows.inference(
        rng, rng.choice((1, 2)), ("entailment", "contradiction", "neutral")[label]
    )
    return f"{premise} {claim} {verdict(rng, label)}"


def compared(rng: random.Random) -> str:
    """Two tellings, and whether they are the same."""
    first, second, label = text_rows.pair(rng, 1)
    word = rng.choice(("same", "equivalent", "duplicates") if label else ("different", "other"))
    if rng.random() < 0.5:
        word = verdict(rng, 0 if label else 1)
    return f"{first.sentences(rng)} {second.sentences(rng)} {word}"


def answered(rng: random.Random) -> str:
    """A scene, a question about it, and the answer."""
    telling, fact, answer = qa_rows.asked_fact(rng, 2)
    return f"{telling.sentences(rng)} {scenes.question(rng, fact, telling.person)} {answer}"


def known(rng: random.Random) -> str:
    _, statement, _, _ = qa_rows.fact_question(rng, 4)
    return unseen_rows.sentence(statement)


def known_answer(rng: random.Random) -> str:
    question, _, choices, index = qa_rows.fact_question(rng, 4)
    return f"{question} {choices[index]}"


def causal(rng: random.Random) -> str:
    person = rng.choice(words.PEOPLE)
    cause, effect = (text.format(p=person) for text in rng.choice(knowledge.CAUSES))
    if rng.random() < 0.5:
        return f"{unseen_rows.sentence(cause)} {rng.choice(('Then', 'So'))} {effect}."
    return f"{unseen_rows.sentence(effect)} This is because {cause}."


def felt(rng: random.Random) -> str:
    person = rng.choice(words.PEOPLE)
    event, mood = rng.choice(knowledge.EVENTS)
    fact = scenes.Fact("mood", mood)
    return f"{event.format(p=person)}. {person} {scenes.predicate(rng, fact, scenes.pick_word(rng, fact))}."


def quantity(rng: random.Random) -> str:
    cause, effect, sign = qa_rows.quantity_words(rng)
    if rng.random() < 0.5:
        return qa_rows.law(cause, effect, sign)
    return f"Less {cause} means {'less' if sign > 0 else 'more'} {effect}."


def opinion(rng: random.Random) -> str:
    stars = rng.randint(1, 5)
    verdict = {
        1: "I hated it.",
        2: "I did not like it.",
        3: "It was okay.",
        4: "I liked it.",
        5: "I loved it.",
    }[stars]
    return f"{text_rows.review(rng, rng.choice(tuple(words.REVIEWED)), stars)} {verdict}"


def news(rng: random.Random) -> str:
    row = text_rows.ag_news(rng, 0)
    subject = ("politics and the world", "sports", "business", "science and technology")[
        row["label"]
    ]
    return f"{row['text']} This is about {subject}."


def article(rng: random.Random) -> str:
    return text_rows.dbpedia_14(rng, 0)["content"].strip()


def pronoun(rng: random.Random) -> str:
    women = rng.random() < 0.5
    person = rng.choice(words.WOMEN if women else words.MEN)
    first, second = scenes.draw_facts(rng, 2)
    return (
        f"{person} {scenes.predicate(rng, first, scenes.pick_word(rng, first))}, and"
        f" {'she' if women else 'he'} {scenes.predicate(rng, second, scenes.pick_word(rng, second))}."
    )


def sense(rng: random.Random) -> str:
    word, senses = rng.choice(knowledge.SENSES)
    first, second = rng.sample(rng.choice(senses), 2)
    return f"{first} {second} {word}"


# A kind of text and its weight.
TEXTS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (retelling, 4), (meaning, 4), (verified, 6), (compared, 5), (answered, 3), (known, 1.5), (known_answer, 1.5), (causal, 2),
    (felt, 1), (quantity, 1.5), (opinion, 1.5), (news, 1), (article, 1.5), (pronoun, 1), (sense, 0.5),
)  # fmt: skip


def warmup_texts(seed: int, count: int) -> Iterator[str]:
    """`count` short texts, a function of the seed."""
    rng = random.Random(f"warmup/{seed}")
    kinds, weights = zip(*TEXTS, strict=True)
    for kind in rng.choices(kinds, weights, k=count):
        yield kind(rng)
