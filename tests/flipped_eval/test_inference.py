"""Ad hoc questions: the same pairs as the evaluation's, and everything that is unusual is told."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from flipped_eval.inference import Model, Question, render
from flipped_tasks.embedded import warmup_texts
from flipped_tasks.embedded.vocabulary import train_vocabulary
from flipped_tasks.methods import format_example, to_text
from flipped_tasks.tokens import Vocabulary, encode
from t5_engine import exchange
from t5_engine.config import T5Config, size
from t5_engine.model import init_params
from t5_engine.scorer import Scorer

ROOT = pathlib.Path(__file__).resolve().parents[2]
REVIEW = "Is this review good or bad? Review: {{input}}"
ROW = {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0, "label": 1}


@pytest.fixture(scope="module")
def config() -> T5Config:
    return size("tiny", vocab_size=512, emb_dim=16, mlp_dim=24, num_heads=2, head_dim=8)


@pytest.fixture(scope="module")
def params(config: T5Config) -> Any:
    return jax.jit(lambda: init_params(config, jax.random.key(0)))()


@pytest.fixture(scope="module")
def vocabulary(small_vocab_path: str) -> Vocabulary:
    return Vocabulary.from_file(small_vocab_path)


@pytest.fixture(scope="module")
def model(config: T5Config, params: Any, vocabulary: Vocabulary) -> Model:
    lengths = {"inputs": 48, "targets": 24}
    return Model(config, params, vocabulary, method="flipped", lengths=lengths)


def test_a_literal_template_marks_what_comes_from_the_question() -> None:
    """The model card's example, and choices that a template shows: both are instance."""
    card = Question("a fine pan", ("Positive", "Negative"), "Rate it: {{input}} Answer:")
    flipped = format_example("flipped", render(card), 0)
    assert to_text(flipped.inputs) == (
        "input: <extra_id_0> a fine pan <extra_id_1>\noutput: Positive"
    )
    assert to_text(flipped.targets) == "<extra_id_0> Rate it: <extra_id_1> Answer:"
    shown = Question("x", ("a", "b"), "{{input}} {{answer_choices | join(', ')}}? ||| {{nothing}}")
    kinds = [(segment.text, segment.kind) for segment in render(shown).segments]
    assert kinds == [
        ("x", "instance"),
        (" ", "instruction"),
        ("a, b", "instance"),
        ("?", "instruction"),
    ]


def test_columns_of_ones_own_and_rows_of_a_dataset() -> None:
    own = Question({"a": "one", "b": "two"}, ("x",), "{{a}} or {{b}}")
    assert render(own).prompt == "one or two"
    found = render(Question(ROW, template="GPT-3 style", dataset="super_glue/rte"))
    assert found.choices == ("True", "False") and found.prompt.startswith("A cat sat.")


@pytest.mark.parametrize("method", ["direct", "channel", "flipped"])
def test_scores_are_those_of_the_pairs(
    method: str, model: Model, config: T5Config, params: Any, vocabulary: Vocabulary
) -> None:
    questions = [
        Question("a fine pan", ("good", "bad"), REVIEW),
        Question(ROW, template="GPT-3 style", dataset="super_glue/rte"),
        Question("it broke", ("good", "bad", "so so"), REVIEW),
    ]
    lengths = {"inputs": 48, "targets": 24}
    for question, scored in zip(questions, model.score(questions, method), strict=True):
        rendered = render(question)
        encoded = [
            encode(format_example(method, rendered, i), vocabulary, lengths)
            for i in range(len(rendered.choices))
        ]
        pairs = [(one.inputs, one.targets) for one in encoded]
        expected = Scorer(config, params, batch_tokens=64).score(pairs)
        np.testing.assert_allclose(scored.logprobs, expected, atol=1e-4)
        assert scored.prediction == expected.argmax()
        cut = any(one.inputs_cut or one.targets_cut for one in encoded)
        assert bool(scored.notes) == cut and cut <= (method == "channel")


def test_what_is_unusual_is_told(model: Model) -> None:
    def notes(*choices: str, text: str = "x", method: str = "direct") -> tuple[str, ...]:
        scored = model.score([Question(text, choices, REVIEW)], method)[0]
        assert len(scored.logprobs) == len(choices)
        return scored.notes

    assert notes("good", "bad") == ()
    assert notes("good", "bad", "good")[0] == "choices 0, 2 have the same tokens"
    assert notes("good", "bad ", "bad")[0] == "choices 1, 2 have the same tokens"
    assert notes("good") == ("one choice only: nothing was ranked",)
    long = notes("good", "bad", text="word " * 80, method="flipped")
    assert len(long) == 2 and long[1].startswith("choice 1: ") and "input were cut" in long[1]
    assert "target were cut" in notes("so " * 40, "bad")[0]


def test_of_equal_choices_the_first_is_predicted(model: Model) -> None:
    scored = model.score([Question("x", ("good", "good"), REVIEW)], "direct")[0]
    assert scored.logprobs[0] == scored.logprobs[1] and scored.prediction == 0


def test_generation(model: Model) -> None:
    question = Question("a fine pan", template="Rate it: {{input}} Answer:")
    direct = model.generate([question], "direct", max_tokens=5)[0]
    assert direct.prompt is None and direct.log_prob < 0
    bare = Question("a fine pan")
    for one in (question, bare):
        guess = model.generate([one], outputs=["good"], max_tokens=9, num_beams=2)[0]
        assert guess.prompt is not None and "a fine pan" in guess.prompt
        assert "output:" not in guess.prompt and "<extra_id_" not in guess.prompt
    channel = model.generate([bare, bare], "channel", outputs=["good", "bad"], max_tokens=5)
    assert len(channel) == 2
    with pytest.raises(UserError, match="question 1: expected an output"):
        model.generate([bare], "flipped", outputs=[""])


def test_spans_go_where_their_sentinels_are(model: Model, vocabulary: Vocabulary) -> None:
    rendered = render(Question("a fine pan", ("good",), "Rate: {{input}} so?"))
    flipped = format_example("flipped", rendered, 0)
    ids = [vocabulary.sentinel(1), *vocabulary.encode("later"), vocabulary.sentinel(0)]
    ids += vocabulary.encode("first")
    assert model._filled(flipped, ids) == "first a fine pan later"


def test_mistakes_are_named(model: Model, config: T5Config, params: Any) -> None:
    def fails(question: Question, method: str = "flipped") -> str:
        with pytest.raises(UserError) as caught:
            model.score([Question("x", ("a", "b"), REVIEW), question], method)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "question 2: expected choices, got none" in fails(Question("x", (), REVIEW))
    assert "none of them empty" in fails(Question("x", ("a", " "), REVIEW))
    assert "'|||'" in fails(Question("x", ("a", "b|||c"), REVIEW))
    told = fails(Question("x", ("a",), "{{inpt}} is it?"))
    assert told == "question 2: template: there is no column 'inpt'; nearest: 'input'"
    assert "empty_instruction" in fails(Question("x", ("a",)))
    assert "line 1" in fails(Question("x", ("a",), "{{input"))
    rte = {"template": "GPT-3 style", "dataset": "super_glue/rte"}
    assert "expected a row of super_glue/rte" in fails(Question("x", **rte))
    assert "choices: expected none" in fails(Question(ROW, ("a",), **rte))
    assert "'GPT-3 style'" in fails(Question(ROW, (), "GPT3 style", "super_glue/rte"))
    assert "no column 'premise'" in fails(Question({"hypothesis": "y", "label": 0}, **rte))
    assert fails(Question(ROW, (), "GPT3 style", "super_glue/rte")).startswith(
        "question 2: unknown"
    )
    assert "is the label one that" in fails(Question(ROW | {"label": 7}, **rte))
    assert "the prompt would be empty" in fails(Question("", ("a",)), "direct")
    assert "nearest: 'flipped'" in fails(Question("x", ("a",)), "fliped")


def test_loading(
    tmp_path: pathlib.Path, config: T5Config, params: Any, small_vocab_path: str
) -> None:
    with pytest.raises(UserError, match="no checkpoint at .*: expected"):
        Model.load(tmp_path)
    exchange.save(tmp_path, params, config, 0)
    with pytest.raises(
        UserError,
        match="does not record its lengths, end of inputs .*, vocabulary: give --inputs_length",
    ):
        Model.load(tmp_path)
    asked: dict[str, Any] = {"lengths": {"inputs": 512, "targets": 128}, "input_eos": True}
    other = tmp_path / "other.model"
    train_vocabulary(warmup_texts(0, 300), other, size=250)
    with pytest.raises(UserError, match="other.model has 350 ids .* has 512"):
        Model.load(tmp_path, vocab=str(other), **asked)
    recipe = {
        "mixture": "channel_train",
        "vocab_path": small_vocab_path,
        "input_eos": False,
        "lengths": asked["lengths"],
    }
    (tmp_path / "run.json").write_text(json.dumps({"recipe": recipe}), encoding="utf-8")
    question = Question("a fine pan", ("good", "bad"), REVIEW)
    expected = Model(config, params, Vocabulary.from_file(small_vocab_path), input_eos=False).score(
        [question], "channel"
    )
    with pytest.raises(UserError, match="was trained with .*small.model, and .*other.model is"):
        Model.load(tmp_path, vocab=str(other))
    for path in (tmp_path, tmp_path / "checkpoints" / "0"):
        loaded = Model.load(path)
        assert loaded.method == "channel"
        np.testing.assert_allclose(
            loaded.score([question])[0].logprobs, expected[0].logprobs, atol=1e-5
        )


def test_a_vocabulary_that_does_not_fit(
    params: Any, config: T5Config, vocabulary: Vocabulary
) -> None:
    small = config.replace(vocab_size=256)
    with pytest.raises(UserError, match="vocabulary: it has 500 ids .* model has 256"):
        Model(small, params, vocabulary)


def test_the_notebook_runs() -> None:
    cells = json.loads((ROOT / "notebooks" / "inference.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    assert all(cell["cell_type"] in ("code", "markdown") for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(names["scored"].logprobs) == 2
    assert names["guess"].prompt and "cast iron skillet" in names["guess"].prompt
