"""The model card of an exported checkpoint, written from the run's own files.

Every statement comes from `run.json`, `origin.json`, the model's configuration or the results of an evaluation of
these very weights; what none of them says is called unknown.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from flipped_core.errors import UserError
from flipped_core.markdown import Markdown, code, escape
from flipped_core.settings import declared
from flipped_eval.recipes import Recipe
from t5_engine.run_settings import TrainRun
from t5_engine.weights import Weights, lazy_params, leaves

TEMPLATE = pathlib.Path(__file__).with_name("model_card.md.jinja")
# What the 20 training datasets ask for; `tests/flipped_cli/test_model_card.py` holds it to the catalog.
FAMILIES: Mapping[str, Sequence[str]] = {
    "multiple-choice question answering": (
        *("commonsense_qa", "dream", "quail", "quartz", "social_i_qa"),
        *("wiqa", "cosmos_qa", "qasc", "quarel", "sciq"),
    ),
    "sentiment": ("amazon_polarity", "app_reviews", "imdb", "rotten_tomatoes", "yelp_review_full"),
    "topic": ("ag_news", "dbpedia_14"),
    "paraphrase": ("glue/mrpc", "glue/qqp", "paws/labeled_final"),
}
_SAMPLING = {
    "recipe": "datasets in proportion to their published number of examples, at most 500,000 each",
    "rows": "datasets in proportion to the rows at hand, at most 500,000 each",
    "equal": "all datasets alike",
}
_SUITES = {"nlp14": "14 NLP tasks", "bigbench14": "14 tasks of BIG-bench", "labels": "labels"}


def read_results(path: str, weights: Weights) -> dict[str, Any]:
    """The results of an evaluation, which must be of these weights.

    Args:
      path: the evaluation's folder, or its `results.json`.
      weights: the checkpoint; read once, to compare.

    Raises:
      UserError: there are no results, or they are of other weights.
    """
    from flipped_eval.keys import fingerprint
    from flipped_eval.results import of_weights, results_of

    results = of_weights(results_of(path), fingerprint(lazy_params(weights)))
    if results is None:
        raise UserError(f"--results {path}: they are of other weights than {weights.path}")
    return results


def write_card(
    name: str,
    weights: Weights,
    trained: Recipe,
    origin: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    size: str,
) -> str:
    """The card as Markdown.

    Args:
      name: its title.
      weights: the checkpoint.
      trained: what the checkpoint's files record of its training.
      origin: the content of `origin.json`; {} where there is none.
      results: as from `read_results`; None where there are none.
      size: the name of the model's size.
    """
    known = declared(TrainRun)
    whole = all(name in trained.run for name, one in known.items() if one.required)
    recipe = {n: one.default for n, one in known.items()} | dict(trained.run) if whole else {}
    mixture = str(recipe.get("mixture", ""))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: escape(value) if isinstance(value, str) else value,
    )
    environment.filters["code"] = code
    parameters = sum(math.prod(leaf.shape) for leaf in leaves(weights.config).values())
    return environment.get_template(TEMPLATE.name).render(
        name=name,
        method=trained.method,
        size=size,
        parameters=f"{parameters:,}",
        model=weights.config.to_dict(),
        step=weights.step,
        recipe=recipe,
        input_eos=trained.input_eos,
        lengths=trained.lengths,
        made_by=origin.get("command"),
        suites=_suites(),
        label_sets=_label_sets(),
        **(_training(recipe, trained.run_content, mixture) if recipe else {}),
        **_evaluation(results),
    )


def _training(recipe: Mapping[str, Any], run: Mapping[str, Any], mixture: str) -> dict[str, Any]:
    """What the sections on training say; of paths only the last part, which tells nothing of a machine."""
    start = recipe.get("initial_checkpoint_path")
    warmup, decay = recipe.get("warmup_steps", 0), recipe.get("decay", "constant")
    versions = [f"{package} {version}" for package, version in run.get("versions", {}).items()]
    commit = run.get("git_commit")
    data_dir = recipe.get("data_dir")
    return {
        "start": Markdown(f"the checkpoint {code(_last(start))}")
        if start
        else "parameters drawn at random",
        "rate": f"{decay}{f', after {warmup} steps of warm-up' if warmup else ''}",
        "sampling": _SAMPLING.get(recipe.get("mixture_rates", "recipe"), "unknown"),
        "software": ", ".join(versions + ([f"this project at commit {commit}"] if commit else []))
        or "unknown",
        "rows": (
            Markdown(f"rows from prepared files ({code(_last(data_dir))})")
            if data_dir
            else "rows of this project's made-up world, no real data"
        ),
        "families": FAMILIES if mixture.endswith("_train") else {},
        "modules": [_last(module) for module in recipe.get("task_modules", ())],
    }


def _evaluation(results: Mapping[str, Any] | None) -> dict[str, Any]:
    """The tables of the sections on evaluation."""
    if results is None:
        nothing: dict[str, Any] = dict.fromkeys(("evaluated", "labels", "results", "missing"), [])
        return nothing | {"rows_scored": ""}
    rows = [row for row in results["results"] if row["template"] is None]
    ordinary = [row for row in rows if row["suite"] != "labels" and row["metric"] == "accuracy"]
    most = results["run"].get("max_examples_per_task")
    world = results["run"].get("data") == "embedded"
    whole = [row["suite"] for row in ordinary if row["task"] is None]
    return {
        "rows_scored": (
            f"{'Rows of the made-up world of this project' if world else 'Rows from prepared files'}; "
            f"{f'at most {most} examples of each task' if most else 'all examples'}."
        ),
        "evaluated": _evaluated(results["counts"], rows),
        "labels": _labels(rows),
        "results": [
            {
                "suite": _SUITES.get(row["suite"], row["suite"]),
                "task": row["task"] or Markdown(f"**mean of {row['tasks']} tasks**"),
                "value": _percent(row["value"]),
                "interval": _interval(row),
                "chance": _percent(row["chance"]),
            }
            for row in sorted(ordinary, key=lambda row: whole.index(row["suite"]))
        ],
        "missing": [
            *(f"{name} (left out by request)" for name in results["run"]["exclude_datasets"]),
            *(f"{task} (no usable example)" for task in _not_run(results)),
        ],
    }


def _not_run(results: Mapping[str, Any]) -> list[str]:
    """The tasks of which no template had an example that can be used."""
    return sorted({one["task"] for one in results.get("not_run", ()) if one["whole_task"]})


def _evaluated(
    counts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One line for each (suite, task): its data, its number of templates and of examples."""
    examples = {(row["suite"], row["task"]): row["n"] for row in rows}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for count in counts:
        key = count["suite"], count["task"]
        line = found.setdefault(key, {"data": set(), "templates": set()})
        line["data"].add(f"{count['dataset']}, {count['split']}")
        line["templates"].add(count["template"])
    return [
        {
            "suite": _SUITES.get(suite, suite),
            "task": task,
            "data": "; ".join(sorted(line["data"])),
            "templates": len(line["templates"]),
            "examples": examples.get((suite, task), 0),
        }
        for (suite, task), line in found.items()
    ]


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Macro F1 of each task of the suite with its own words, and the mean over all substitutes."""
    from flipped_eval.results import ORIGINAL, SUBSTITUTES

    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["suite"] != "labels" or row["metric"] != "macro_f1":
            continue
        task = row["task"] or ""
        line = found.setdefault(
            task, {"task": task or Markdown("**mean**"), "original": "–", "substitutes": "–"}
        )
        if row["label_set"] == ORIGINAL:
            line["original"] = _percent(row["value"])
        elif row["label_set"] == SUBSTITUTES:
            line["substitutes"] = _percent(row["value"])
    mean = found.pop("", None)
    return [*found.values(), *([mean] if mean else [])]


def _suites() -> dict[str, list[str]]:
    from mixtures.catalog import BIGBENCH
    from mixtures.suites import NLP14

    return {"nlp14": list(NLP14), "bigbench14": list(BIGBENCH)}


def _label_sets() -> list[dict[str, Any]]:
    from mixtures.suites import load_label_sets

    return [
        {
            "dataset": entry.dataset,
            "template": entry.template,
            "words": entry.words,
            "sets": len(entry.sets),
        }
        for entry in load_label_sets()
    ]


def _last(path: str) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "–"
    return f"{_percent(row['low'])} to {_percent(row['high'])}"
