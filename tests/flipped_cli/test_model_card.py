"""The model card says what the run's files say, and calls the rest unknown."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml

from flipped_cli import model_card
from flipped_core.errors import UserError
from flipped_core.sealed import write_sealed
from flipped_eval.keys import fingerprint
from flipped_eval.recipes import Recipe, method_of
from flipped_eval.results import FORMAT
from mixtures.catalog import TRAINING
from t5_engine import config as sizes
from t5_engine.config import T5Config
from t5_engine.weights import lazy_params, leaves
from tests.t5_engine.stored import InMemory

SECTIONS = [
    "Model description",
    "How to use",
    "Training procedure",
    "Training data",
    "Evaluation data",
    "Label generalization",
    "Results",
    "Citation",
]
RECIPE: dict[str, Any] = {
    "mixture": "flipped_train",
    "lengths": {"inputs": 384, "targets": 96},
    "steps": 5000,
    "batch_size": 240,
    "learning_rate": 5e-05,
    "vocab_path": "/home/someone/spiece.model",
    "optimizer": "adafactor",
    "warmup_steps": 0,
    "decay": "constant",
    "unlikelihood_weight": 3.0,
    "z_loss": 0.0,
    "input_eos": True,
    "initial_checkpoint_path": "/home/someone/t5_lm100k_xl/checkpoint_1100000",
    "data_dir": "/home/someone/nlp",
    "mixture_rates": "recipe",
    "seed": 11,
    "task_modules": [],
}
RUN = {"recipe": RECIPE, "versions": {"jax": "0.10.2"}, "git_commit": "abc123"}


def trained(run: dict[str, Any]) -> Recipe:
    """What `recipes.find` makes of a run's file."""
    if not run:
        return Recipe("runs/a")
    recipe = {"model": T5Config(), "model_dir": "runs/a", **run["recipe"]}
    return Recipe(
        "runs/a",
        method=method_of(recipe["mixture"]),
        lengths=recipe["lengths"],
        input_eos=recipe["input_eos"],
        run=recipe,
        run_content=run,
    )


@pytest.fixture(scope="module")
def weights() -> InMemory:
    config = T5Config(48, 16, 2, 8, 24, 1, 1)
    import numpy as np
    from flax.traverse_util import unflatten_dict

    rng = np.random.default_rng(0)
    flat = {p: rng.normal(size=s.shape).astype(np.float32) for p, s in leaves(config).items()}
    return InMemory(config, unflatten_dict(flat), step=4000)


def results_for(weights: InMemory, **changes: Any) -> dict[str, Any]:
    """What an evaluation of these weights wrote, cut down."""

    def row(suite: str, task: str | None, metric: str, value: float, **more: Any) -> dict[str, Any]:
        bounds = {
            "low": value - 0.05,
            "high": value + 0.05,
            "chance": 0.5,
            "majority": 0.5,
            "n": 56,
        }
        bounds |= dict.fromkeys(("median", "min", "max", "templates_low", "templates_high"), value)
        names = {"suite": suite, "task": task, "template": None, "metric": metric, "form": "direct"}
        names |= {"label_set": "original", "value": value, "std": 0.0}
        return {**names, **bounds, **({} if task else {"tasks": 1}), **more}

    def count(suite: str, task: str, dataset: str, template: str) -> dict[str, Any]:
        names = {"suite": suite, "task": task, "dataset": dataset, "split": "validation"}
        numbers = dict.fromkeys(
            ("rows", "scored", "ties", "inputs_cut", "targets_cut", "several_correct", "duplicate_choices", "same_ids"),
            0,
        )  # fmt: skip
        names |= {"template": template, "label_set": "original", "data": "1", "dropped": {}}
        return {**names, **numbers}

    return {
        "run": {
            "weights": fingerprint(lazy_params(weights)),
            "max_examples_per_task": 60,
            "data": "files",
            "seed": 0,
            "exclude_datasets": ["story_cloze/2016"],
            **changes,
        },
        "results": [
            row("nlp14", "cb", "accuracy", 0.625),
            row("nlp14", "cb", "macro_f1", 0.1),
            {**row("nlp14", "cb", "accuracy", 0.3), "template": "one"},
            row("nlp14", None, "accuracy", 0.71234, tasks=13),
            row("labels", "cb", "macro_f1", 0.4),
            row("labels", "cb", "macro_f1", 0.33, label_set="all substitutes"),
            row("labels", "cb", "macro_f1", 0.1, label_set="true_false_unknown"),
        ],
        "counts": [
            count("nlp14", "cb", "super_glue/cb", "one"),
            count("nlp14", "cb", "super_glue/cb", "two"),
        ],
        "not_run": [
            {
                "suite": "nlp14",
                "task": "wic",
                "template": "x",
                "label_set": "original",
                "why": "no rows",
                "whole_task": True,
            }
        ],
    }


def sections(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_of_a_run_with_results(weights: InMemory):
    card = model_card.write_card(
        "name of it", weights, trained(RUN), {}, results_for(weights), "tiny"
    )
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "transformers"
    found = sections(card)
    assert list(found) == SECTIONS
    parameters = f"{sum(leaf.size for leaf in leaves(weights.config).values()):,}"
    for section, words in {
        "Model description": [
            "likely the instruction is",
            "weight 3.0",
            f"tiny: {parameters}",
            "4000",
        ],
        "How to use": ["<extra_id_0>", 'return_tensors="pt")', "float16"],
        "Training procedure": [
            *("`checkpoint_1100000`", "4000 of 5000 planned", "240 examples", "384", "96"),
            *("adafactor", "5e-05, constant", "Seed: 11", "jax 0.10.2", "abc123", "500,000"),
        ],
        "Training data": ["`flipped_train`", "prepared files (`nlp`)", *TRAINING],
        "Evaluation data": ["at most 60 examples", "super_glue/cb, validation | 2 | 56 |"],
        "Label generalization": ["| cb | 40.0 | 33.0 |", "can we infer"],
        "Results": [
            "| 14 NLP tasks | cb | 62.5 | 57.5 to 67.5 | 50.0 |",
            "**mean of 13 tasks** | 71.2 |",
            "story_cloze/2016 (left out by request), wic (no usable example)",
        ],
        "Citation": ["arXiv:2210.02969"],
    }.items():
        for word in words:
            assert word in found[section], (section, word)
    assert "30.0" not in found["Results"] and "10.0" not in found["Results"]
    assert "/home" not in card and "someone" not in card


def test_what_is_not_known_is_called_unknown(weights: InMemory):
    origin = {"command": "flipped ckpt import"}
    found = sections(model_card.write_card("name", weights, trained({}), origin, None, "tiny"))
    assert list(found) == SECTIONS
    assert "unknown here" in found["Model description"]
    assert found["Training procedure"].strip().startswith("Unknown")
    assert "`flipped ckpt import`" in found["Training procedure"]
    assert found["Training data"].strip().startswith("Unknown")
    assert "No evaluation was given" in found["Evaluation data"]
    assert "Not measured for this checkpoint." in found["Label generalization"]
    assert found["Results"].strip() == "None: no evaluation was given when this card was written."


def test_cards_of_other_runs(weights: InMemory):
    recipe = {
        **RECIPE,
        "mixture": "direct.super_glue_rte",
        "data_dir": None,
        "initial_checkpoint_path": None,
        "input_eos": False,
        "task_modules": ["/home/someone/own_tasks.py"],
        "warmup_steps": 50,
    }
    card = model_card.write_card("name", weights, trained({"recipe": recipe}), {}, None, "tiny")
    found = sections(card)
    assert "each possible\nanswer" in found["Model description"]
    assert "add_special_tokens=False" in found["How to use"]
    assert "drawn at random" in found["Training procedure"]
    assert "after 50 steps of warm-up" in found["Training procedure"]
    assert "Software: unknown" in found["Training procedure"]
    assert "unlikelihood" not in found["Training procedure"]
    assert "made-up world, no real data" in found["Training data"]
    assert "own_tasks.py" in found["Training data"] and "imdb" not in found["Training data"]
    assert "/home" not in card
    channel = {**RECIPE, "mixture": "channel_train"}
    card = model_card.write_card("name", weights, trained({"recipe": channel}), {}, None, "tiny")
    assert "choices, [prompt] * len(choices)" in sections(card)["How to use"]


def test_results_of_other_weights_are_refused(weights: InMemory, tmp_path: pathlib.Path):
    """Of several models that were evaluated together, only what is said of this one is taken."""
    found = results_for(weights)
    models = [{"label": label, "weights": label * 32, "method": "direct"} for label in "ab"]
    rows = {
        name: [{**one, "method": label} for label in "ab" for one in found[name]]
        for name in ("results", "counts", "not_run")
    }
    request = {name: value for name, value in found["run"].items() if name != "weights"}
    content = {
        "format": FORMAT,
        "request": request,
        "runs": models,
        "comparisons": [],
        "dropped": {},
    }
    content |= {"bootstrap": {"confidence": 0.95, "resamples": 100}, **rows}
    write_sealed(tmp_path / "results.json", content)
    with pytest.raises(UserError, match="they are of other weights than memory"):
        model_card.read_results(str(tmp_path), weights)
    models[1]["weights"] = found["run"]["weights"]
    write_sealed(tmp_path / "results.json", content)
    read = model_card.read_results(str(tmp_path), weights)
    assert {one["method"] for name in rows for one in read[name]} == {"b"}
    assert len(read["results"]) == len(found["results"])
    assert read["run"]["exclude_datasets"] == ["story_cloze/2016"]
    with pytest.raises(UserError, match="cannot read"):
        model_card.read_results(str(tmp_path / "none"), weights)


def test_the_families_are_the_catalog_s_training_datasets():
    named = [dataset for family in model_card.FAMILIES.values() for dataset in family]
    assert sorted(named) == sorted(TRAINING)
    assert len(named) == 20


def test_public_sizes_have_their_names():
    from flipped_cli.ckpt import _size_name

    assert _size_name(sizes.size("xl", dtype="bfloat16")) == "xl"
    assert _size_name(sizes.size("xl", mlp_dim=5121)) == "none of the public sizes"


def test_text_from_outside_is_no_markup_in_the_card(weights: InMemory):
    """Names of tasks, modules, folders and commands show as they are: no tables, tags, links or code of their own."""
    evil = "a|b <img src=x> `c` [d](http://e) **f** _g_ | www.h.org \n# i"
    recipe = RECIPE | {
        "mixture": evil, "optimizer": evil, "decay": evil, "task_modules": [evil], "data_dir": evil,
        "initial_checkpoint_path": evil,
    }  # fmt: skip
    found = results_for(weights)
    found["results"].append({**found["results"][0], "suite": evil, "task": evil})
    found["results"].append({**found["results"][3], "suite": evil})
    found["counts"].append({**found["counts"][0], "suite": evil, "task": evil, "split": evil})
    found["not_run"][0]["task"] = evil
    run = {"recipe": recipe, "versions": {evil: evil}, "git_commit": evil}
    card = model_card.write_card(evil, weights, trained(run), {"command": evil}, found, evil)
    plain = model_card.write_card(
        "name", weights, trained(RUN), {"command": "x"}, results_for(weights), "t"
    )
    elements, ours = (_structure(text) for text in (card, plain))
    assert set(elements) - set(ours) <= {"text_special"}
    assert "<img src=x>" in "".join(elements["text"] + elements["code_inline"])


def _structure(card: str) -> dict[str, list[str]]:
    """The elements of a card as GitHub's Markdown, its front matter left out: kind -> contents."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found: dict[str, list[str]] = {}
    for block in parser.parse(card.split("---\n", 2)[2]):
        for one in (block, *(block.children or ())):
            found.setdefault(one.type, []).append(one.content)
    return found
