"""The made-up world: the hub's schemas, determinism, labels that cannot be counted out of the words."""

from __future__ import annotations

import gzip
import json
import pathlib
import random

import pytest

from flipped_core.errors import UserError
from flipped_tasks import embedded
from flipped_tasks.embedded import qa_rows, scenes, text_rows, unseen_rows, warmup, words

ALL_SPLITS = [
    (dataset, split) for dataset, sizes in embedded.SPLIT_SIZES.items() for split in sizes
]

# What a reader of the instance alone would see, of the tasks whose label is a relation between two texts.
RELATIONS = {
    "glue/mrpc": (text_rows.mrpc, ("sentence1", "sentence2"), "label"),
    "glue/qqp": (text_rows.qqp, ("question1", "question2"), "label"),
    "paws/labeled_final": (text_rows.paws, ("sentence1", "sentence2"), "label"),
    "super_glue/rte": (unseen_rows.rte, ("premise", "hypothesis"), "label"),
    "super_glue/cb": (unseen_rows.cb, ("premise", "hypothesis"), "label"),
    "anli r1": (unseen_rows.anli(1), ("premise", "hypothesis"), "label"),
    "anli r2": (unseen_rows.anli(2), ("premise", "hypothesis"), "label"),
    "anli r3": (unseen_rows.anli(3), ("premise", "hypothesis"), "label"),
    "super_glue/wsc.fixed": (unseen_rows.wsc, ("text", "span1_text", "span2_text"), "label"),
    "winogrande/winogrande_xl": (
        unseen_rows.winogrande,
        ("sentence", "option1", "option2"),
        "answer",
    ),
}


def fits(made, real) -> bool:
    """Whether two values have the same keys, nesting and types; None fits anything."""
    if isinstance(real, dict):
        return (
            isinstance(made, dict)
            and list(made) == list(real)
            and all(fits(made[k], real[k]) for k in real)
        )
    if isinstance(real, list):
        return isinstance(made, list) and (not real or not made or fits(made[0], real[0]))
    return real is None or made is None or type(made) is type(real)


@pytest.mark.parametrize("dataset", sorted(embedded.SPLIT_SIZES))
def test_rows_have_the_columns_and_types_of_real_rows(dataset, real_rows_dir):
    folder = pathlib.Path(real_rows_dir) / dataset.replace("/", "__")
    if not folder.exists():
        pytest.skip(f"no real rows of {dataset} are at hand")
    real_file = sorted(folder.glob("*.jsonl.gz"))[0]
    with gzip.open(real_file, "rt", encoding="utf-8") as lines:
        real = [json.loads(line) for line in lines]
    split = next(iter(embedded.SPLIT_SIZES[dataset]))
    for row in embedded.generate(dataset, split)[:50]:
        assert any(fits(row, one) for one in real[:50]), (row, real[0])


def test_rows_are_the_same_each_time_and_differ_between_splits():
    assert embedded.generate("super_glue/rte", "train") == embedded.generate(
        "super_glue/rte", "train"
    )
    train = {
        json.dumps(row["premise"] + row["hypothesis"])
        for row in embedded.generate("super_glue/rte", "train")
    }
    held_out = [
        json.dumps(row["premise"] + row["hypothesis"])
        for row in embedded.generate("super_glue/rte", "test")
    ]
    assert sum(row in train for row in held_out) < 0.05 * len(held_out)


@pytest.mark.parametrize("dataset,split", ALL_SPLITS)
def test_every_split_has_its_number_of_rows(dataset, split):
    assert len(embedded.generate(dataset, split)) == embedded.SPLIT_SIZES[dataset][split]


@pytest.mark.parametrize("dataset", sorted(RELATIONS))
@pytest.mark.parametrize("binary", [False, True], ids=["counts", "presence"])
def test_a_bag_of_words_of_the_instance_stays_near_chance(dataset, binary):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    make, columns, label = RELATIONS[dataset]
    rng = random.Random(7)
    rows = [make(rng, number) for number in range(4000)]
    texts = [" ".join(str(row[column]) for column in columns) for row in rows]
    labels = [row[label] for row in rows]
    vectors = CountVectorizer(binary=binary, token_pattern=r"\S+").fit_transform(texts)
    model = LogisticRegression(max_iter=300, C=0.1).fit(vectors[:3000], labels[:3000])
    accuracy = model.score(vectors[3000:], labels[3000:])
    chance = 1 / len(set(labels))
    assert accuracy < chance + 0.06, accuracy  # 0.06 is four standard errors of 1,000 coin flips


def test_the_bag_of_words_would_see_a_shortcut():
    """The check above can fail: with hypotheses that repeat the premise's words, counting finds the label."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    rng = random.Random(3)
    texts, labels = [], []
    for _ in range(2000):
        fact = scenes.draw_fact(rng, "mood")
        word, label = scenes.pick_word(rng, fact), rng.randrange(2)
        again = scenes.pick_word(rng, scenes.other(rng, fact)) if label else word
        texts.append(f"Anna was {word}. Anna was {again}.")
        labels.append(label)
    vectors = CountVectorizer(binary=True).fit_transform(texts)
    assert (
        LogisticRegression(max_iter=300)
        .fit(vectors[:1500], labels[:1500])
        .score(vectors[1500:], labels[1500:])
        > 0.9
    )


def test_retelling_never_repeats_a_word():
    rng = random.Random(0)
    for _ in range(500):
        first, second, _ = text_rows.pair(rng, 2)
        assert not set(first.words) & set(second.words)


def test_concepts_share_no_word():
    every = [
        word for concepts in words.CONCEPTS.values() for concept in concepts for word in concept
    ]
    assert len(every) == len(set(every))


def test_an_unknown_split_names_the_valid_ones():
    with pytest.raises(UserError, match="expected one of: train, validation, test"):
        embedded.generate("super_glue/rte", "dev")


def test_the_warm_up_and_the_training_rows_call_no_generator_of_an_unseen_task(monkeypatch):
    from mixtures import catalog

    def refused(*_):
        raise AssertionError("a generator of an evaluation task was called")

    functions = [
        name
        for name, value in vars(unseen_rows).items()
        if callable(value) and getattr(value, "__module__", "") == unseen_rows.__name__
    ]
    assert {"inference", "rte", "copa", "wic", "cause_and_effects"} <= set(functions)
    for name in functions:
        monkeypatch.setattr(unseen_rows, name, refused)
    for lists in (False, True):
        assert len(list(embedded.warmup_texts(11, 3000, lists))) == 3000
    for dataset in catalog.TRAINING:
        assert embedded.generate(dataset, "train")
    with pytest.raises(AssertionError, match="evaluation task"):
        embedded.generate("anli", "dev_r1")


def test_no_text_of_the_pre_training_holds_the_instruction_of_a_template():
    from flipped_tasks.datasets import dataset_names, usable_templates
    from flipped_tasks.promptsource import load_template
    from flipped_tasks.rendering import Rendered, compile_template
    from mixtures import catalog

    assert catalog.TRAINING, "importing the catalog registers its datasets"
    rng = random.Random(0)
    spans = set()
    for dataset in dataset_names():
        if dataset not in embedded.SPLIT_SIZES:
            continue
        row = embedded.generate(dataset, next(iter(embedded.SPLIT_SIZES[dataset])))[0]
        for name in usable_templates(dataset):
            rendered = compile_template(load_template(dataset, name)).render(row, rng)
            if isinstance(rendered, Rendered):
                parts = (part for part in rendered.segments if part.kind == "instruction")
                spans.update(" ".join(part.text.lower().split()) for part in parts)
    # Shorter ones are turns of phrase, such as "In other words,".
    instructions = [span for span in spans if len(span.split()) > 3]
    assert len(instructions) > 200
    texts = "\n".join(
        " ".join(text.lower().split())
        for lists in (False, True)
        for text in embedded.warmup_texts(5, 4000, lists)
    )
    assert [span for span in instructions if span in texts] == []


def test_beside_a_list_right_and_wrong_answers_are_mostly_listed_and_not_always():
    """So that neither a right answer somewhere in the text nor a listed one gives the mark away."""
    rng = random.Random(2)
    listed = {"good": [], "bad": []}
    for _ in range(4000):
        text = warmup.marked_beside_list(rng)
        before, after = text.split("\t")
        told, given = before.split("\noutput: ")
        if given not in qa_rows.LETTERS:
            listed[after.split()[-1]].append(f" {given}" in told.replace("\n", " "))
    for found in listed.values():
        assert 0.65 < sum(found) / len(found) < 0.95


def test_a_gap_is_filled_by_the_given_answer():
    rng = random.Random(4)
    for _ in range(300):
        before, word = warmup.recalled(rng).split("\t")
        assert before.count(warmup.GAP) == 1
        assert word and "\noutput: " in before


def test_the_laws_of_quantities_tell_both_directions():
    row = embedded.generate("quartz", "train")[0]
    assert {part.split()[0] for part in row["para"].split(". ")} == {"More", "Less"}
