"""Rows of the fourteen evaluation tasks' datasets, told in the made-up world.

Neither the training tasks nor the warm-up's text call these functions.
"""

from __future__ import annotations

import random
from typing import Any

from flipped_tasks.embedded import knowledge, scenes, words
from flipped_tasks.embedded.qa_rows import LETTERS, draw_others, fact_question, shuffled

Row = dict[str, Any]


def inference(rng: random.Random, facts: int, relation: str) -> tuple[str, str]:
    """A premise of `facts` sentences and a hypothesis: entailment, contradiction or neutral.

    The hypothesis never repeats a word of a fact. In a contradiction it names another concept of a kind that
    the premise speaks of; a neutral one speaks of a kind that the premise leaves out.
    """
    person = rng.choice(words.PEOPLE)
    told = scenes.draw_facts(rng, facts)
    premise = scenes.tell(rng, person, told)
    if relation == "neutral":
        kinds = [kind for kind in scenes.KINDS if kind not in {fact.kind for fact in told}]
        claim = scenes.draw_fact(rng, rng.choice(kinds))
    else:
        claim = rng.choice(told)
        if relation == "contradiction":
            claim = scenes.other(rng, claim)
    hypothesis = scenes.retell(rng, premise, [claim])
    return premise.sentences(rng), hypothesis.sentences(rng)


def rte(rng: random.Random, number: int) -> Row:
    label = rng.randrange(2)
    relation = rng.choice(("contradiction", "neutral")) if label else "entailment"
    premise, hypothesis = inference(rng, rng.choice((1, 2)), relation)
    return {"premise": premise, "hypothesis": hypothesis, "idx": number, "label": label}


def cb(rng: random.Random, number: int) -> Row:
    label = rng.randrange(3)
    premise, hypothesis = inference(rng, 2, ("entailment", "contradiction", "neutral")[label])
    return {"premise": premise, "hypothesis": hypothesis, "idx": number, "label": label}


def anli(facts: int):
    """Rows of one ANLI round, whose premises have this many facts."""

    def row(rng: random.Random, number: int) -> Row:
        label = rng.randrange(3)
        premise, hypothesis = inference(
            rng, facts, ("entailment", "neutral", "contradiction")[label]
        )
        return {
            "uid": f"made-up-{number}",
            "premise": premise,
            "hypothesis": hypothesis,
            "label": label,
            "reason": "",
        }

    return row


def wsc(rng: random.Random, number: int) -> Row:
    """The pronoun's gender tells whom it means; the person asked for is either one."""
    people = [rng.choice(words.WOMEN), rng.choice(words.MEN)]
    rng.shuffle(people)
    meant = rng.choice(people)
    asked = rng.choice(people)
    pronoun = "she" if meant in words.WOMEN else "he"
    fact = scenes.draw_fact(rng)
    before = f"{people[0]} met {people[1]} because"
    text = f"{before} {pronoun} {scenes.predicate(rng, fact, scenes.pick_word(rng, fact))}."
    return {
        "text": text,
        "span1_index": text.split().index(asked),
        "span2_index": len(before.split()),
        "span1_text": asked,
        "span2_text": pronoun,
        "idx": number,
        "label": int(meant == asked),
    }


def winogrande(rng: random.Random, number: int) -> Row:
    """Two people in different moods; what follows from one of the moods tells who is meant."""
    del number
    first, second = rng.sample(words.PEOPLE, 2)
    fact = scenes.draw_fact(rng)
    against = scenes.other(rng, fact)
    told, denied = scenes.pick_word(rng, fact), scenes.pick_word(rng, against)
    meant = rng.randrange(2)
    again = scenes.pick_word(rng, (fact, against)[meant], (told, denied))
    sentence = (
        f"{first} {scenes.predicate(rng, fact, told)} but {second} {scenes.predicate(rng, against, denied)},"
        f" so _ {scenes.predicate(rng, fact, again)}."
    )
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(meant + 1)}


def wic(rng: random.Random, number: int) -> Row:
    word, senses = rng.choice(knowledge.SENSES)
    label = rng.randrange(2)
    first = rng.randrange(2)
    if label:
        pair = rng.sample(senses[first], 2)
    else:
        pair = [rng.choice(senses[first]), rng.choice(senses[1 - first])]
    starts = [sentence.lower().index(word) for sentence in pair]
    return {
        "word": word,
        "sentence1": pair[0],
        "sentence2": pair[1],
        "start1": starts[0],
        "start2": starts[1],
        "end1": starts[0] + len(word),
        "end2": starts[1] + len(word),
        "idx": number,
        "label": label,
    }


def cause_and_effects(
    rng: random.Random, wrong: int
) -> tuple[str, tuple[str, str], list[tuple[str, str]]]:
    """A person, a cause with its effect, and `wrong` other pairs, as sentences."""
    person = rng.choice(words.PEOPLE)
    pairs = [
        (scenes.as_sentence(cause.format(p=person)), scenes.as_sentence(effect.format(p=person)))
        for cause, effect in rng.sample(knowledge.CAUSES, wrong + 1)
    ]
    return person, pairs[0], pairs[1:]


def copa(rng: random.Random, number: int) -> Row:
    _, (cause, effect), wrong = cause_and_effects(rng, 1)
    asked = rng.choice(("cause", "effect"))
    premise, right, false = (
        (effect, cause, wrong[0][0]) if asked == "cause" else (cause, effect, wrong[0][1])
    )
    choices, label = shuffled(rng, right, [false])
    return {
        "premise": premise,
        "choice1": choices[0],
        "choice2": choices[1],
        "question": asked,
        "idx": number,
        "label": label,
    }


def hellaswag(rng: random.Random, number: int) -> Row:
    person, (cause, effect), wrong = cause_and_effects(rng, 3)
    endings, label = shuffled(rng, effect, [pair[1] for pair in wrong])
    return {
        "ind": number,
        "activity_label": "A day",
        "ctx_a": cause,
        "ctx_b": "then",
        "ctx": f"{cause} then",
        "endings": endings,
        "source_id": f"made-up-{number}",
        "split": "val",
        "split_type": "indomain",
        "label": str(label),
    }


def story_cloze(rng: random.Random, number: int) -> Row:
    person, (cause, effect), wrong = cause_and_effects(rng, 1)
    facts = scenes.tell(rng, person, scenes.draw_facts(rng, 3)).sentences(rng)
    told = [part + "." for part in facts.rstrip(".").split(". ")]
    choices, index = shuffled(rng, effect, [wrong[0][1]])
    return {
        "story_id": f"made-up-{number}",
        **{f"input_sentence_{i + 1}": text for i, text in enumerate([*told, cause])},
        "sentence_quiz1": choices[0],
        "sentence_quiz2": choices[1],
        "answer_right_ending": index + 1,
    }


def piqa(rng: random.Random, number: int) -> Row:
    del number
    tool, purpose = rng.choice(knowledge.TOOLS)
    false = draw_others(rng, [name for name, _ in knowledge.TOOLS], tool, 1)[0]
    choices, label = shuffled(rng, f"Take a {tool}.", [f"Take a {false}."])
    return {
        "goal": scenes.as_sentence(f"to {purpose}")[:-1],
        "sol1": choices[0],
        "sol2": choices[1],
        "label": label,
    }


def arc_challenge(rng: random.Random, number: int) -> Row:
    question, _, choices, index = fact_question(rng, 4, wording=1)
    return {
        "id": f"made-up-{number}",
        "question": question,
        "choices": {"text": choices, "label": list(LETTERS[:4])},
        "answerKey": LETTERS[index],
    }


def openbookqa(rng: random.Random, number: int) -> Row:
    _, statement, choices, index = fact_question(rng, 4)
    stem = " ".join(statement.split()[:-1])
    return {
        "id": f"made-up-{number}",
        "question_stem": scenes.as_sentence(stem)[:-1],
        "choices": {"text": choices, "label": list(LETTERS[:4])},
        "answerKey": LETTERS[index],
    }
