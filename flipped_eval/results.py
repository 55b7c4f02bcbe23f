"""The results of an evaluation: the request that a folder belongs to, and all files that are made of its scores.

    output_dir/
      run.json            what was asked for; another request is refused
      plan.json           the units of each model, with the keys of their scores, and what could not be run
      scores/             append-only shards (`flipped_eval.shards`)
      results.json        every number
      predictions.jsonl   what was predicted for each example, one line a unit
      examples.json       examples as text: one of each task, and those that were most wrong

The last three are made anew from the others. They hold no times and no paths: the same scores give the same bytes.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flipped_core.errors import UserError
from flipped_core.files import Json, read_json, to_json, write_atomically
from flipped_eval import aggregates, metrics, shards, significance
from flipped_eval.aggregates import SUBSTITUTES
from mixtures.catalog import BIGBENCH, TRAINING
from mixtures.suites import NLP14, ORIGINAL

if TYPE_CHECKING:
    from flipped_eval.planning import Plan

FORMAT = 2
CHOSEN = "chosen"  # the suite of the datasets that are named one by one
RUN, PLAN, RESULTS = "run.json", "plan.json", "results.json"
PREDICTIONS, EXAMPLES = "predictions.jsonl", "examples.json"
NAMES = ("suite", "task", "template", "label_set", "dataset", "split")
CLASSES_SHOWN = 10  # a confusion matrix of more is left out
WORST_SHOWN = 3


def check_run(output_dir: pathlib.Path, request: Json, models: Sequence[Json]) -> list[Json]:
    """The models that `output_dir` is known to hold; nothing is written.

    Args:
      request: what all models have in common.
      models: `planning.Model.describe` of each.

    Raises:
      UserError: the folder holds results of another request, or of another model with the same label; names
        the first field that differs.
    """
    path = output_dir / RUN
    if not path.exists():
        return []
    found = read_json(path)
    _refuse_other(output_dir, found.get("request", {}), request, "")
    known = {model["label"]: model for model in found.get("models", [])}
    for model in models:
        if model["label"] in known:
            _refuse_other(output_dir, known[model["label"]], model, f" of {model['label']!r}")
    return list(known.values())


def open_run(
    output_dir: pathlib.Path,
    request: Json,
    models: Sequence[Json],
    checkpoints: Mapping[str, str],
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Takes `output_dir` for a request, or goes on with it; models that it does not know are added to it.

    Args:
      request, models: as for `check_run`.
      checkpoints: label -> where the weights were read; the report looks there for the log of the training.
      sources: label -> for method, lengths, input_eos and vocab_path, the file that says it, or "given".

    Raises:
      UserError: as `check_run`.
    """
    known = check_run(output_dir, request, models)
    labels = {model["label"] for model in known}
    new = [model for model in models if model["label"] not in labels]
    if new:
        before = read_json(output_dir / RUN) if known else {}
        run = {
            "request": request,
            "models": known + new,
            "checkpoints": {**before.get("checkpoints", {}), **checkpoints},
            "sources": {**before.get("sources", {}), **(sources or {})},
        }
        write_atomically(output_dir / RUN, to_json(run))


def _refuse_other(output_dir: pathlib.Path, found: Json, asked: Json, of: str) -> None:
    for name in sorted(set(found) | set(asked)):
        if found.get(name) != asked.get(name):
            raise UserError(
                f"output_dir {output_dir} holds results of another run: {name}{of} was "
                f"{_short(found.get(name))}, now {_short(asked.get(name))}; name another output_dir or "
                "remove that one"
            )


def write_plan(output_dir: pathlib.Path, plan: Plan) -> None:
    """Writes which units there are; those of other models and suites, planned earlier, stay.

    Raises:
      UserError: those were planned with another version of a dataset.
    """
    broken = {tuple(one[name] for name in ("method", *NAMES)) for one in plan.failed}
    units = [
        {name: getattr(unit.task, name) for name in NAMES}
        | {"method": unit.model.label, "key": unit.key, "data": unit.data}
        for unit in plan.units()
        if (unit.model.label, *(getattr(unit.task, name) for name in NAMES)) not in broken
    ]
    now = {(one["method"], one["suite"]) for one in (*units, *plan.failed)}
    path = output_dir / PLAN
    before = read_json(path) if path.exists() else {"units": [], "failed": []}
    kept = {
        name: [one for one in before[name] if (one["method"], one["suite"]) not in now]
        for name in ("units", "failed")
    }
    refuse_versions([*kept["units"], *units], f"output_dir {output_dir}")
    found = {"units": kept["units"] + units, "failed": kept["failed"] + plan.failed}
    write_atomically(path, to_json({name: _in_order(lines) for name, lines in found.items()}))


def refuse_versions(lines: Iterable[Json], where: str) -> None:
    """Refuses lines that were made with different rows of the same split: their numbers cannot be compared.

    Args:
      lines: with "dataset", "split", "data" and "method".
      where: what the message begins with.
    """
    seen: dict[tuple[str, str], Json] = {}
    for line in lines:
        first = seen.setdefault((line["dataset"], line["split"]), line)
        if first["data"] != line["data"]:
            raise UserError(
                f"{where}: {line['method']!r} was evaluated on another version of {line['dataset']}, split "
                f"{line['split']!r}, than {first['method']!r} (hashes of the rows {line['data'][:8]} and "
                f"{first['data'][:8]}); evaluate both on the same rows"
            )


def finish(output_dir: pathlib.Path, resamples: int) -> Json:
    """Makes `results.json` and what belongs to it of all that was scored; returns `results.json`'s content."""
    run, plan = (read_json(output_dir / name) for name in (RUN, PLAN))
    scores = shards.read(output_dir)
    lines, counts, shown, worst = [], [], [], []
    not_run = [dict(one) for one in plan["failed"]]
    models = {model["label"]: model for model in run["models"]}
    for planned in plan["units"]:
        unit = scores.get(planned["key"], shards.UnitScores())
        names = {name: planned[name] for name in ("method", *NAMES)}
        if unit.end is None:
            not_run.append(names | {"why": "not finished"})
            continue
        if not unit.logprobs:
            not_run.append(names | {"why": _no_example(unit.end)})
        normalize = models[planned["method"]]["length_normalize"]
        line, ranked = _predicted(names | {"data": planned["data"]}, unit, normalize)
        lines.append(line)
        counts.append(_counts(line, unit.end))
        if unit.end["shown"] and planned["label_set"] == ORIGINAL:
            shown.append(names | unit.end["shown"])
        worst += _worst(names, unit, line, ranked)
    summary = _summary(run, lines, counts, not_run, resamples)
    text = "".join(to_json(line, indent=None) for line in lines)
    examples = {"shown": _first(shown), "worst": _most(worst)}
    write_atomically(output_dir / PREDICTIONS, text)
    write_atomically(output_dir / EXAMPLES, to_json(examples))
    write_atomically(output_dir / RESULTS, to_json(summary))
    return summary


def _summary(
    run: Json, lines: Sequence[Json], counts: list[Json], not_run: list[Json], resamples: int
) -> Json:
    seed = run["request"]["seed"]
    scored: Counter[tuple[str, str, str, str]] = Counter()
    for line in lines:
        scored[_task(line)] += len(line["examples"])
    for one in not_run:
        one["whole_task"] = not scored[_task(one)]
    by_model: dict[str, list[metrics.Unit]] = {model["label"]: [] for model in run["models"]}
    for line in lines:
        if line["examples"]:
            by_model[line["method"]].append(to_unit(line))
    rows: list[Json] = []
    for model in run["models"]:
        label = model["label"]
        for row in aggregates.rows(by_model[label], seed, resamples):
            row |= {"method": label, "form": model["method"]}
            _mark(row, not_run)
            rows.append(row)
    dropped: Counter[str] = Counter()
    for count in counts:
        dropped.update(count["dropped"])
    return {
        "format": FORMAT,
        "request": run["request"],
        "runs": [_with_sources(model, run) for model in run["models"]],
        "bootstrap": {"confidence": metrics.CONFIDENCE, "resamples": resamples},
        "results": rows,
        "comparisons": significance.compare_all(by_model, seed, resamples),
        "counts": counts,
        "not_run": not_run,
        "dropped": dict(sorted(dropped.items())),
    }


def _task(line: Json) -> tuple[str, str, str, str]:
    return line["method"], line["suite"], line["task"], line["label_set"]


def _with_sources(model: Json, run: Json) -> Json:
    """A run with where its method, lengths, eos and vocabulary were read; unknown of older folders."""
    sources = run.get("sources", {}).get(model["label"])
    return model | {"sources": sources} if sources else model


def _no_example(end: Json) -> str:
    listed = ", ".join(f"{number} {reason}" for reason, number in end["dropped"].items())
    return f"no example can be used ({listed})" if listed else "the split has no rows"


def _mark(row: Json, not_run: Sequence[Json]) -> None:
    """Says in an aggregate what is missing from it: `templates_missing` of a task, `tasks_missing` of a suite."""
    if row["template"] is not None:
        return
    here = [
        one
        for one in not_run
        if (one["method"], one["suite"]) == (row["method"], row["suite"])
        and (
            one["label_set"] == row["label_set"]
            or (row["label_set"] == SUBSTITUTES and one["label_set"] != ORIGINAL)
        )
    ]
    if row["task"] is None:
        tasks = list(dict.fromkeys(one["task"] for one in here if one["whole_task"]))
        row.update({"tasks_missing": tasks} if tasks else {})
    else:
        number = sum(one["task"] == row["task"] for one in here)
        row.update({"templates_missing": number} if number else {})


def missing_tasks(summary: Json) -> list[str]:
    """The tasks that gave no number at all, each with the reason; no mean contains them."""
    reasons: dict[str, dict[str, None]] = defaultdict(dict)
    for one in summary["not_run"]:
        if one["whole_task"]:
            words = "" if one["label_set"] == ORIGINAL else f" ({one['label_set']})"
            reasons[f"{one['suite']} {one['task']}{words}"][one["why"]] = None
    return [f"{task}: {'; '.join(whys)}" for task, whys in reasons.items()]


def _predicted(
    names: Json, unit: shards.UnitScores, normalize: bool
) -> tuple[Json, dict[str, list[float]]]:
    """A line of `predictions.jsonl`, and by example what its choices were ranked by."""
    examples = sorted(unit.logprobs, key=lambda name: (len(name), name))
    ranked = dict(unit.logprobs)
    if normalize:
        for example in examples:
            pairs = zip(unit.logprobs[example], unit.tokens[example], strict=True)
            ranked[example] = [score / max(1, tokens) for score, tokens in pairs]
    predicted = [metrics.predict(ranked[example]) for example in examples]
    assert unit.end is not None
    line = names | {
        "words": unit.end["words"],
        "examples": examples,
        "predicted": [best for best, _ in predicted],
        "ties": sum(tie for _, tie in predicted),
        "choices": [len(ranked[example]) for example in examples],
        "right": [[c for c, is_right in enumerate(unit.right[e]) if is_right] for e in examples],
    }
    return line, ranked


def to_unit(line: Json) -> metrics.Unit:
    """The arrays of one line of `predictions.jsonl`."""
    right = np.zeros((len(line["examples"]), max(line["choices"])), bool)
    for place, choices in enumerate(line["right"]):
        right[place, choices] = True
    return metrics.Unit(
        **{name: line[name] for name in NAMES},
        examples=tuple(line["examples"]),
        right=right,
        predicted=np.array(line["predicted"], np.int64),
        choices=np.array(line["choices"], np.int64),
        words=tuple(line["words"]) if line["words"] is not None else None,
        ties=line["ties"],
    )


def _counts(line: Json, end: Json) -> Json:
    """What became of the rows of a unit, and which choice was taken for which."""
    names = (
        "rows", "dropped", "inputs_cut", "targets_cut", "several_correct", "duplicate_choices", "same_ids",
    )  # fmt: skip
    counts = {name: line[name] for name in ("method", *NAMES, "data", "ties")}
    counts |= {name: end[name] for name in names} | {"scored": len(line["examples"])}
    classes = max(line["choices"], default=0)
    if 2 <= classes <= CLASSES_SHOWN:
        unit = to_unit(line)
        matrix = np.zeros((classes, classes), int)
        np.add.at(matrix, (unit.correct, unit.predicted), 1)
        counts["confusion"] = {"words": line["words"], "matrix": matrix.tolist()}
    return counts


def _worst(
    names: Json, unit: shards.UnitScores, line: Json, ranked: Mapping[str, Sequence[float]]
) -> list[Json]:
    """The examples of a unit that are there as text and were predicted wrong, with their scores."""
    found = []
    for place, example in enumerate(line["examples"]):
        predicted, right = line["predicted"][place], line["right"][place]
        if example in unit.shown and predicted not in right:
            lead = ranked[example][predicted] - max(ranked[example][choice] for choice in right)
            found.append(
                names
                | unit.shown[example]
                | {
                    "example": example,
                    "scores": [round(score, 3) for score in ranked[example]],
                    "predicted": predicted,
                    "lead": round(lead, 3),
                }
            )
    return found


def _most(worst: Iterable[Json]) -> list[Json]:
    """Of each method and task the examples in which a wrong choice led by most, each example once."""
    by_task: dict[tuple[str, ...], list[Json]] = defaultdict(list)
    for one in sorted(worst, key=lambda one: -one["lead"]):
        if one["label_set"] == ORIGINAL:
            here = by_task[one["method"], one["suite"], one["task"]]
            if len(here) < WORST_SHOWN and all(
                one["example"] != other["example"] for other in here
            ):
                here.append(one)
    return _in_order([one for here in by_task.values() for one in here])


def _first(shown: Iterable[Json]) -> list[Json]:
    """One example as text for each (method, suite, task): that of the first template."""
    first: dict[tuple[str, str, str], Json] = {}
    for one in shown:
        first.setdefault((one["method"], one["suite"], one["task"]), one)
    return list(first.values())


def _in_order(lines: Iterable[Json]) -> list[Json]:
    """Suites by name, tasks as the recipe lists them, then by names; of each, the methods as they came."""
    places = {task: place for place, task in enumerate((*NLP14, *BIGBENCH, *TRAINING))}

    def order(line: Json) -> tuple[Any, ...]:
        task = line["task"]
        label_set = line["label_set"]
        return (
            line["suite"], places.get(task, len(places)), task, line["template"], label_set != ORIGINAL, label_set,
        )  # fmt: skip

    return sorted(lines, key=order)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "…"


def results_of(source: str | os.PathLike[str] | Mapping[str, Any]) -> Json:
    """`results.json` of a folder, or the object itself.

    Raises:
      UserError: the folder has none, or it is of another format.
    """
    if isinstance(source, Mapping):
        found, name = dict(source), "the results"
    else:
        path = pathlib.Path(source)
        path = path / RESULTS if path.is_dir() or not path.suffix else path
        found, name = read_json(path), str(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{name}: expected results of format {FORMAT}, got {found.get('format')!r}")
    return found


def of_weights(found: Json, weights: str) -> Json | None:
    """What results say of the first model with these weights: its "run", "results", "counts" and "not_run".

    Args:
      found: as from `results_of`.
      weights: as from `keys.fingerprint`.

    Returns:
      None where no model has them.
    """
    model = next((run for run in found["runs"] if run["weights"] == weights), None)
    if model is None:
        return None
    parts = {
        name: [one for one in found[name] if one["method"] == model["label"]]
        for name in ("results", "counts", "not_run")
    }
    return {"run": found["request"] | model} | parts


def predictions_of(folder: pathlib.Path) -> list[Json]:
    """The lines of `predictions.jsonl`; none where the folder has no such file."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
