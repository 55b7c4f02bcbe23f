"""Running text of the made-up world, for the warm-up that stands in for the LM-adapted checkpoint.

The text says what is so in the world, in many words: scenes and their retellings, causes and effects, tools and
animals, reviews, news, and exercises with a teacher's mark. It holds no prompt and no template, and its exercises are
of the kinds that the training datasets have: nothing here calls the generators of the evaluation datasets' rows. A
tab stands where a reader could go on alone; a cut there makes a question and its short answer.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator

from flipped_tasks.embedded import knowledge, qa_rows, scenes, text_rows, words
from flipped_tasks.embedded.qa_rows import LETTERS

# The words for a claim that is so, that is not so, and that may be so; each also stands capitalised.
VERDICTS: tuple[tuple[str, ...], ...] = (
    ("yes", "true", "correct", "right", "agree", "positive", "always", "guaranteed"),
    ("no", "false", "incorrect", "wrong", "disagree", "negative", "never", "impossible"),
    ("maybe", "unknown", "unclear", "neither", "inconclusive", "neutral", "sometimes", "possible"),
)


def verdict(rng: random.Random, label: int) -> str:
    word = VERDICTS[label][0] if rng.random() < 0.5 else rng.choice(VERDICTS[label])
    return word.capitalize() if rng.random() < 0.5 else word


def retelling(rng: random.Random) -> str:
    """A scene, then the same scene in other words."""
    person = rng.choice(words.PEOPLE)
    first = scenes.tell(rng, person, scenes.draw_facts(rng, rng.choice((1, 1, 2))))
    again = scenes.retell(rng, first, [rng.choice(first.facts)]).sentences(rng)
    link = rng.choice(("That is,", "So", "In other words,", "This means"))
    return f"{first.sentences(rng)} {link} {_cut(again)}"


def _cut(sentence: str, words_left: int = 1) -> str:
    """Puts a tab before the last words of a sentence."""
    parts = sentence.rsplit(" ", words_left)
    return f"{parts[0]}\t{' '.join(parts[1:])}"


def meaning(rng: random.Random) -> str:
    fact = scenes.draw_fact(rng)
    first, second = rng.sample(fact.synonyms, 2)
    return f"{first} means the same as\t{second}."


def compared(rng: random.Random) -> str:
    """Two tellings, and whether they are the same."""
    first, second, label = text_rows.pair(rng, 1)
    word = rng.choice(("same", "equivalent", "duplicates") if label else ("different", "other"))
    if rng.random() < 0.5:
        word = verdict(rng, 0 if label else 1)
    return f"{first.sentences(rng)} {second.sentences(rng)}\t{word}"


def answered(rng: random.Random) -> str:
    """A scene, a question about it, and the answer."""
    telling, fact, answer = qa_rows.asked_fact(rng, 2)
    return f"{telling.sentences(rng)} {scenes.question(rng, fact, telling.person)}\t{answer}"


def known(rng: random.Random) -> str:
    _, statement, _, _ = qa_rows.fact_question(rng, 4)
    return _cut(scenes.as_sentence(statement))


def known_answer(rng: random.Random) -> str:
    question, _, choices, index = qa_rows.fact_question(rng, 4)
    return f"{question}\t{choices[index]}"


def causal(rng: random.Random) -> str:
    person = rng.choice(words.PEOPLE)
    cause, effect = (text.format(p=person) for text in rng.choice(knowledge.CAUSES))
    if rng.random() < 0.5:
        return f"{scenes.as_sentence(cause)} {rng.choice(('Then', 'So'))}\t{effect}."
    return f"{scenes.as_sentence(effect)} This is because\t{cause}."


def felt(rng: random.Random) -> str:
    person = rng.choice(words.PEOPLE)
    event, concept = rng.choice(knowledge.EVENTS)
    fact = scenes.Fact("mood", concept)
    mood = scenes.predicate(rng, fact, scenes.pick_word(rng, fact))
    return _cut(f"{event.format(p=person)}. {person} {mood}.")


def quantity(rng: random.Random) -> str:
    cause, effect, sign = qa_rows.quantity_words(rng)
    if rng.random() < 0.5:
        return f"More {cause} means\t{'more' if sign > 0 else 'less'} {effect}."
    return f"Less {cause} means\t{'less' if sign > 0 else 'more'} {effect}."


def opinion(rng: random.Random) -> str:
    stars = rng.randint(1, 5)
    verdict = {
        1: "I hated it.",
        2: "I did not like it.",
        3: "It was okay.",
        4: "I liked it.",
        5: "I loved it.",
    }[stars]
    return f"{text_rows.review(rng, rng.choice(tuple(words.REVIEWED)), stars)}\t{verdict}"


def news(rng: random.Random) -> str:
    row = text_rows.ag_news(rng, 0)
    subject = ("politics and the world", "sports", "business", "science and technology")[
        row["label"]
    ]
    return f"{row['text']} This is about\t{subject}."


def article(rng: random.Random) -> str:
    return text_rows.dbpedia_14(rng, 0)["content"].strip().replace(" is ", " is\t")


def pronoun(rng: random.Random) -> str:
    women = rng.random() < 0.5
    person = rng.choice(words.WOMEN if women else words.MEN)
    first, second = scenes.draw_facts(rng, 2)
    return (
        f"{person} {scenes.predicate(rng, first, scenes.pick_word(rng, first))}, and"
        f"\t{'she' if women else 'he'} {scenes.predicate(rng, second, scenes.pick_word(rng, second))}."
    )


def sense(rng: random.Random) -> str:
    word, senses = rng.choice(knowledge.SENSES)
    return f"{rng.choice(rng.choice(senses))}\t{word}"


@dataclasses.dataclass(frozen=True)
class Exercise:
    """What is asked, the right answer, and wrong ones of the same kind."""

    told: str
    right: str
    wrong: tuple[str, ...]


Kinds = tuple[tuple[Callable[[random.Random], Exercise], ...], tuple[float, ...]]


def marked(rng: random.Random) -> str:
    """A text that ends with an answer, right or wrong, and a teacher's mark."""
    return _marked(rng, _EXERCISES)


def marked_changes(rng: random.Random) -> str:
    """The same of what changes with what, which takes more examples."""
    return _marked(rng, ((_changed, _weighed), (2, 1)))


def _marked(rng: random.Random, kinds: Kinds) -> str:
    good = rng.random() < 0.5
    exercise = rng.choices(*kinds)[0](rng)
    given = exercise.right if good else exercise.wrong[0]
    return f"{_heading(rng)}{exercise.told}\noutput: {given}\t{_mark(good)}"


def marked_beside_list(rng: random.Random) -> str:
    """The same beside a list of options, which may or may not hold the right answer and the given one.

    Whether the text holds a right answer somewhere says little then: the given answer itself must be checked.
    """
    good = rng.random() < 0.5
    exercise = rng.choices(*_LISTED)[0](rng)
    given = exercise.right if good else rng.choice(exercise.wrong)
    listed = {given} if rng.random() < 0.75 else set()
    if rng.random() < 0.75:
        listed.add(exercise.right)
    others = [option for option in exercise.wrong if option != given]
    wanted = rng.choice((1, 2, 2, 3, 4, 4, 5, 8))
    listed.update(rng.sample(others, min(len(others), max(0, wanted - len(listed)))))
    options = sorted(listed)
    rng.shuffle(options)
    if given in options and rng.random() < _LETTERED:
        given = LETTERS[options.index(given)]
        listing = _lettered(rng, options)
    else:
        listing = _listing(rng, options)
    # Repeating the answer before the mark shows where in the text it stands.
    repeated = f"{given} " if rng.random() < _REPEATED else ""
    told = _beside(rng, exercise.told, listing)
    return f"{_heading(rng)}{told}\noutput: {given}\t{repeated}{_mark(good)}"


def recalled(rng: random.Random) -> str:
    """A text with a gap beside a list of options, the right answer, and the word in the gap.

    The given answer says what stood in the gap, the list does not: it must be read where it stands.
    """
    if rng.random() < 0.5:
        telling, fact, answer = qa_rows.asked_fact(rng, 2)
        choices, index = scenes.options(rng, fact, answer, 5)
        word = telling.words[telling.facts.index(fact)]
        question = scenes.question(rng, fact, telling.person)
        told = f"{telling.sentences(rng)} {question}".replace(f" {word}.", f" {GAP}.", 1)
    else:
        question, _, choices, index = qa_rows.fact_question(rng, 8)
        answer = choices[index]
        told, word = _gap_in(question)
    listed = [answer, *rng.sample(_others(choices, index), rng.choice((1, 2, 3, 4)))]
    rng.shuffle(listed)
    text = _beside(rng, told, _listing(rng, listed))
    return f"{_heading(rng)}{text}\noutput: {answer}\t{word}"


def _gap_in(question: str) -> tuple[str, str]:
    """A question about a fact with a gap for what it asks about, and that word."""
    for first, _ in qa_rows.FACT_QUESTIONS.values():
        before, _, after = first.partition("{x}")
        if question.startswith(before) and question.endswith(after):
            return f"{before}{GAP}{after}", question[len(before) : len(question) - len(after)]
    raise AssertionError(question)


def changed_answer(rng: random.Random) -> str:
    exercise = _changed(rng)
    return f"{exercise.told}\t{exercise.right}"


def weighed_answer(rng: random.Random) -> str:
    exercise = _weighed(rng)
    return f"{exercise.told}\t{exercise.right}"


def chosen(rng: random.Random) -> str:
    """A question, a list of options, and the one that answers it."""
    exercise = rng.choices(*_LISTED)[0](rng)
    most = len(exercise.wrong)
    options = [
        exercise.right,
        *rng.sample(exercise.wrong, min(most, rng.choice((1, 2, 3, 4, 7)))),
    ]
    rng.shuffle(options)
    return f"{_beside(rng, exercise.told, _listing(rng, options))}\t{exercise.right}"


def _mark(good: bool) -> str:
    return "good" if good else "bad"


def _heading(rng: random.Random) -> str:
    return "input: " if rng.random() < 0.5 else ""


def _listing(rng: random.Random, options: list[str]) -> str:
    return rng.choice((", ", " or ", " ", "\n", "\n- ", " / ")).join(options)


def _lettered(rng: random.Random, options: list[str]) -> str:
    form, between = rng.choice((("({}) {}", " "), ("{}. {}", "\n"), ("{}: {}", "\n")))
    return between.join(
        form.format(letter, option) for letter, option in zip(LETTERS, options, strict=False)
    )


def _beside(rng: random.Random, told: str, listing: str) -> str:
    """A text and a list, the text first in three of four."""
    parts = [told, listing] if rng.random() < 0.75 else [listing, told]
    return rng.choice((" ", "\n", "\n- ")).join(part for part in parts if part)


def _pair(rng: random.Random) -> Exercise:
    first, second, label = text_rows.pair(rng, rng.choice((1, 1, 2)))
    told = f"{first.sentences(rng)} {second.sentences(rng)}"
    return Exercise(told, verdict(rng, 1 - label), (verdict(rng, label),))


def _asked(rng: random.Random, options: int = 4) -> Exercise:
    telling, fact, answer = qa_rows.asked_fact(rng, 2)
    choices, index = scenes.options(rng, fact, answer, options)
    question = scenes.question(rng, fact, telling.person)
    return Exercise(f"{telling.sentences(rng)} {question}", answer, _others(choices, index))


def _known(rng: random.Random, options: int = 4) -> Exercise:
    question, _, choices, index = qa_rows.fact_question(rng, options)
    return Exercise(question, choices[index], _others(choices, index))


def _reviewed(rng: random.Random) -> Exercise:
    label, stars = text_rows.polarity(rng)
    told = text_rows.review(rng, rng.choice(tuple(words.REVIEWED)), stars)
    return Exercise(told, verdict(rng, 1 - label), (verdict(rng, label),))


def _reasoned(rng: random.Random) -> Exercise:
    row = qa_rows.cosmos_qa(rng, 0)
    choices, index = [row[f"answer{i}"] for i in range(3)], row["label"]
    return Exercise(f"{row['context']} {row['question']}", choices[index], _others(choices, index))


def _felt(rng: random.Random) -> Exercise:
    row = qa_rows.social_i_qa(rng, 0)
    choices, index = [row[f"answer{letter}"] for letter in "ABC"], int(row["label"]) - 1
    return Exercise(f"{row['context']} {row['question']}", choices[index], _others(choices, index))


def _reported(rng: random.Random) -> Exercise:
    row = text_rows.ag_news(rng, 0)
    wrong = (row["label"] + rng.randrange(1, 4)) % 4
    names = [name for name, _ in words.TOPICS]
    right = names[row["label"]]
    others = [name for name in names if name not in (right, names[wrong])]
    return Exercise(row["text"], right, (names[wrong], *others))


def _changed(rng: random.Random) -> Exercise:
    row = qa_rows.quartz(rng, 0)
    choices, index = row["choices"]["text"], "AB".index(row["answerKey"])
    return Exercise(f"{row['para']} {row['question']}", choices[index], _others(choices, index))


def _weighed(rng: random.Random) -> Exercise:
    row = qa_rows.quarel(rng, 0)
    things = [row["world_literals"][f"world{i + 1}"][0] for i in range(2)]
    told = row["question"].split(" (A)")[0]
    return Exercise(told, things[row["answer_index"]], _others(things, row["answer_index"]))


def _others(choices: list[str], index: int) -> tuple[str, ...]:
    """All choices but that at `index`, the one before it first."""
    return tuple(choices[(index - 1 - step) % len(choices)] for step in range(len(choices) - 1))


# What is asked in a marked text, and its weight.
_EXERCISES: Kinds = (
    (_pair, _asked, _known, _reasoned, _felt, _reviewed, _reported, _changed, _weighed),
    (6, 6, 2, 1, 0.5, 1, 0.5, 1, 0.5),
)
# What is asked beside a list, and its weight; lists are as long as those of the training datasets.
_LISTED: Kinds = (
    (
        functools.partial(_asked, options=5),
        functools.partial(_known, options=8),
        _reasoned,
        _felt,
        _reported,
        _changed,
        _weighed,
    ),
    (6, 5, 2, 1, 0.5, 0.5, 0.5),
)
_LETTERED, _REPEATED = 0.1, 0.4
GAP = "..."

# A kind of text and its weight.
TEXTS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (marked, 34),
    (compared, 6),
    (meaning, 4),
    (retelling, 3),
    (answered, 2),
    (causal, 1.5),
    (known, 1),
    (known_answer, 1),
    (quantity, 1),
    (opinion, 1),
    (article, 1),
    (felt, 0.5),
    (news, 0.5),
    (pronoun, 0.5),
    (sense, 0.5),
)
# The same with lists of options: a model that has learned to mark answers learns to mark them beside lists.
TEXTS_WITH_LISTS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    *(
        (kind, 22 if kind is marked else 2 if kind is quantity else weight)
        for kind, weight in TEXTS
    ),
    (marked_changes, 6),
    (changed_answer, 3),
    (weighed_answer, 3),
    (marked_beside_list, 16),
    (recalled, 8),
    (chosen, 4),
)


def warmup_texts(seed: int, count: int, lists: bool = False) -> Iterator[str]:
    """`count` short texts, a function of the seed; with `lists`, some have lists of options."""
    rng = random.Random(f"warmup/{seed}")
    kinds, weights = zip(*(TEXTS_WITH_LISTS if lists else TEXTS), strict=True)
    for kind in rng.choices(kinds, weights, k=count):
        yield kind(rng)
