"""Rows of the multiple-choice QA datasets (ten to train on, plus cos_e), told in the made-up world.

Each function takes a random generator and a row number and returns one row in the hub's schema.
"""

from __future__ import annotations

import random
from typing import Any

from flipped_tasks.embedded import knowledge, scenes, words

Row = dict[str, Any]
LETTERS = "ABCDEFGH"


def shuffled(rng: random.Random, right: str, wrong: list[str]) -> tuple[list[str], int]:
    """The choices in random order, and the index of the right one."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return choices, choices.index(right)


def draw_others(
    rng: random.Random, pool: tuple[str, ...] | list[str], right: str, count: int
) -> list[str]:
    return rng.sample([item for item in dict.fromkeys(pool) if item != right], count)


# How a question about each relation is put: to train on, and (second) in the evaluation datasets.
FACT_QUESTIONS = {
    "tool": ("What do you need to {x}?", "Which of these helps you to {x}?"),
    "lives": ("Where does a {x} live?", "What is the home of a {x}?"),
    "eats": ("What does a {x} eat?", "Which food is for a {x}?"),
    "kept": ("Where do you find {x}?", "Which place has {x}?"),
}


def fact_question(
    rng: random.Random, count: int, wording: int = 0
) -> tuple[str, str, list[str], int]:
    """A question about what is always so -> (question, statement of the fact, choices, index)."""
    relation = rng.choice(tuple(FACT_QUESTIONS))
    if relation == "tool":
        right, asked = rng.choice(knowledge.TOOLS)
        statement = f"to {asked} you need a {right}"
        pool = [name for name, _ in knowledge.TOOLS]
    elif relation == "lives":
        asked, right, _ = rng.choice(knowledge.ANIMALS)
        statement = f"a {asked} lives in the {right}"
        pool = [home for _, home, _ in knowledge.ANIMALS]
    elif relation == "eats":
        asked, _, right = rng.choice(knowledge.ANIMALS)
        statement = f"a {asked} eats {right}"
        pool = [food for _, _, food in knowledge.ANIMALS]
    else:
        asked, right = rng.choice(knowledge.KEPT)
        statement = f"{asked} is found in the {right}"
        pool = [place for _, place in knowledge.KEPT]
    choices, index = shuffled(rng, right, draw_others(rng, pool, right, count - 1))
    return FACT_QUESTIONS[relation][wording].format(x=asked), statement, choices, index


def commonsense_qa(rng: random.Random, number: int) -> Row:
    question, statement, choices, index = fact_question(rng, 5)
    return {
        "id": f"made-up-{number}",
        "question": question,
        "question_concept": statement.split()[-1],
        "choices": {"label": list(LETTERS[:5]), "text": choices},
        "answerKey": LETTERS[index],
    }


def cos_e(rng: random.Random, number: int) -> Row:
    question, statement, choices, index = fact_question(rng, 5)
    return {
        "id": f"made-up-{number}",
        "question": question,
        "choices": choices,
        "answer": choices[index],
        "abstractive_explanation": statement,
        "extractive_explanation": question.lower(),
    }


def qasc(rng: random.Random, number: int) -> Row:
    question, statement, choices, index = fact_question(rng, 8)
    formatted = " ".join(
        f"({letter}) {text}" for letter, text in zip(LETTERS, choices, strict=True)
    )
    return {
        "id": f"made-up-{number}",
        "question": question,
        "choices": {"text": choices, "label": list(LETTERS)},
        "answerKey": LETTERS[index],
        "fact1": statement.capitalize(),
        "fact2": "Some things are always so",
        "combinedfact": statement.capitalize(),
        "formatted_question": f"{question} {formatted}",
    }


def asked_fact(rng: random.Random, facts: int) -> tuple[scenes.Telling, scenes.Fact, str]:
    """A person with some facts, one of them to be asked for, and the word that answers.

    Half of the answers use the word of the telling, half another word of the same concept.
    """
    telling = scenes.tell(rng, rng.choice(words.PEOPLE), scenes.draw_facts(rng, facts))
    at = rng.randrange(facts)
    fact = telling.facts[at]
    answer = telling.words[at] if rng.random() < 0.5 else scenes.pick_word(rng, fact, telling.words)
    return telling, fact, answer


def sciq(rng: random.Random, number: int) -> Row:
    del number
    telling, fact, answer = asked_fact(rng, 2)
    choices, index = scenes.options(rng, fact, answer, 4)
    wrong = choices[:index] + choices[index + 1 :]
    return {
        "question": scenes.question(rng, fact, telling.person),
        "distractor3": wrong[0],
        "distractor1": wrong[1],
        "distractor2": wrong[2],
        "correct_answer": answer,
        "support": telling.sentences(rng),
    }


def dream(rng: random.Random, number: int) -> Row:
    speaker, person = rng.choice((("W", "the woman"), ("M", "the man")))
    listener = "M" if speaker == "W" else "W"
    telling, fact, answer = asked_fact(rng, 2)
    choices, _ = scenes.options(rng, fact, answer, 3)
    told = [
        f"I {scenes.predicate(rng, f, w)}."
        for f, w in zip(telling.facts, telling.words, strict=True)
    ]
    return {
        "id": number,
        "dialogue_id": f"made-up-{number}",
        "dialogue": [f"{speaker}: {told[0]}", f"{listener}: And then?", f"{speaker}: {told[1]}"],
        "question": scenes.question(rng, fact, person),
        "choice": choices,
        "answer": answer,
    }


def quail(rng: random.Random, number: int) -> Row:
    telling, fact, answer = asked_fact(rng, 2)
    answers, index = scenes.options(rng, fact, answer, 4)
    unknown = "not enough information"
    if rng.random() < 0.1:  # the text does not say it
        kinds = [kind for kind in scenes.KINDS if kind not in {f.kind for f in telling.facts}]
        fact = scenes.draw_fact(rng, rng.choice(kinds))
        answers, index = scenes.options(rng, fact, scenes.pick_word(rng, fact), 4)
        answers[index] = unknown
    else:
        answers[(index + 1) % 4] = unknown
    return {
        "id": f"made-up-{number}",
        "context_id": f"made-up-{number}",
        "question_id": "0",
        "domain": "fiction",
        "metadata": {"author": "A. Writer", "title": "A Day", "url": "http://example.org"},
        "context": telling.sentences(rng),
        "question": scenes.question(rng, fact, telling.person),
        "question_type": "Factual",
        "answers": answers,
        "correct_answer_id": index,
    }


def cosmos_qa(rng: random.Random, number: int) -> Row:
    person = rng.choice(words.PEOPLE)
    pairs = rng.sample(knowledge.CAUSES, 3)
    cause, effect = (text.format(p=person) for text in pairs[0])
    if rng.random() < 0.5:
        context, question, right, at = cause, "What may happen after that?", effect, 1
    else:
        context, question, right, at = effect, "What may have been the reason?", cause, 0
    wrong = [pair[at].format(p=person) for pair in pairs[1:]]
    choices, index = shuffled(rng, right, wrong)
    return {
        "id": f"made-up-{number}",
        "context": context[0].upper() + context[1:] + ".",
        "question": question,
        **{f"answer{i}": text for i, text in enumerate([*choices, "None of the above choices ."])},
        "label": index,
    }


def social_i_qa(rng: random.Random, number: int) -> Row:
    del number
    person = rng.choice(words.PEOPLE)
    event, mood = rng.choice(knowledge.EVENTS)
    fact = scenes.Fact("mood", mood)
    choices, index = scenes.options(rng, fact, scenes.pick_word(rng, fact), 3)
    return {
        "context": event.format(p=person) + ".",
        "question": f"How would {person} feel afterwards?",
        **{f"answer{letter}": text for letter, text in zip("ABC", choices, strict=True)},
        "label": str(index + 1),
    }


def quantity_words(rng: random.Random) -> tuple[str, str, int]:
    return rng.choice(knowledge.QUANTITIES)


def law(rng: random.Random, cause: str, effect: str, sign: int) -> str:
    """What more and what less of the cause means, in either order.

    Both are told: with one of them only, the other has to be worked out as a product of two signs, which models of
    the demo's size do not learn in minutes.
    """
    more, less = ("more", "less") if sign > 0 else ("less", "more")
    told = [f"More {cause} means {more} {effect}.", f"Less {cause} means {less} {effect}."]
    rng.shuffle(told)
    return " ".join(told)


def quartz(rng: random.Random, number: int) -> Row:
    cause, effect, sign = quantity_words(rng)
    change = rng.choice((1, -1))
    choices = ["more", "less"] if rng.random() < 0.5 else ["less", "more"]
    right = "more" if sign * change > 0 else "less"
    nothing = dict.fromkeys(
        (
            "effect_prop",
            "cause_dir_str",
            "effect_dir_str",
            "cause_dir_sign",
            "effect_dir_sign",
            "cause_prop",
        )
    )
    asked = dict.fromkeys(
        (
            "more_effect_dir",
            "less_effect_dir",
            "less_cause_prop",
            "more_effect_prop",
            "less_effect_prop",
            "less_cause_dir",
        )
    )
    return {
        "id": f"made-up-{number}",
        "question": f"If there is {'more' if change > 0 else 'less'} {cause}, how much {effect} will there be?",
        "choices": {"text": choices, "label": ["A", "B"]},
        "answerKey": "AB"[choices.index(right)],
        "para": law(rng, cause, effect, sign),
        "para_id": f"made-up-{number}",
        "para_anno": nothing,
        "question_anno": asked,
    }


def wiqa(rng: random.Random, number: int) -> Row:
    cause, effect, sign = quantity_words(rng)
    change = rng.choice((1, -1))
    label = "more" if sign * change > 0 else "less"
    kind = "INPARA_EFFECT"
    told = law(rng, cause, effect, sign)[:-1]
    if rng.random() < 1 / 3:
        label, kind = "no_effect", "OUTOFPARA_DISTRACTOR"
        effect = draw_others(rng, [e for c, e, _ in knowledge.QUANTITIES if c != cause], effect, 1)[
            0
        ]
    return {
        "question_stem": f"suppose {'more' if change > 0 else 'less'} {cause} happens, how will it affect {effect}.",
        "question_para_step": [told, ""],
        "answer_label": label,
        "answer_label_as_choice": {"more": "A", "less": "B", "no_effect": "C"}[label],
        "choices": {"text": ["more", "less", "no effect"], "label": ["A", "B", "C"]},
        "metadata_question_id": f"made-up-{number}",
        "metadata_graph_id": "0",
        "metadata_para_id": "0",
        "metadata_question_type": kind,
        "metadata_path_len": 1,
    }


def quarel(rng: random.Random, number: int) -> Row:
    cause, effect, sign = quantity_words(rng)
    things = rng.sample([thing for thing, _ in knowledge.KEPT], 2)
    most = rng.randrange(2)  # which thing has more of the cause
    index = most if sign > 0 else 1 - most
    question = (
        f"The {things[most]} has more {cause} than the {things[1 - most]}."
        f" Which has more {effect}? (A) {things[0]} (B) {things[1]}"
    )
    return {
        "id": f"made-up-{number}",
        "answer_index": index,
        "logical_forms": [f"(more {cause} world{most + 1})"],
        "logical_form_pretty": f"more {cause} -> {'more' if sign > 0 else 'less'} {effect}",
        "world_literals": {"world1": [things[0]], "world2": [things[1]]},
        "question": question,
    }
