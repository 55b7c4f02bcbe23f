"""The results of an evaluation: all files that are made of its scores.

    output_dir/
      run.json, plan.json what was asked for (`flipped_eval.run_files`)
      scores/             append-only shards (`flipped_eval.shards`)
      results.json        every number, and the checksum of predictions.jsonl
      predictions.jsonl   what was predicted for each example, one line a unit
      examples.json       examples as text: one of each task, and those that were most wrong

The last three are made anew from the others. They hold no times and no paths: the same scores give the same bytes.
The JSON files carry a checksum of their content (`flipped_core.sealed`); one that is damaged is refused by name.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import Json, to_json, write_atomically
from flipped_core.paths import explain, to_path
from flipped_core.sealed import DAMAGED, checksum, read_sealed, write_sealed
from flipped_eval import aggregates, metrics, records, run_files, shards, significance
from flipped_eval.aggregates import SUBSTITUTES
from flipped_eval.records import Prediction, UnitEnd, checked
from flipped_eval.run_files import FORMAT, KEPT, NAMES, PLAN, RUN, in_order
from mixtures.suites import ORIGINAL

READABLE = (2, 3)  # the formats of results.json that are read
RESULTS, PREDICTIONS, EXAMPLES = "results.json", "predictions.jsonl", "examples.json"
CLASSES_SHOWN = 10  # a confusion matrix of more is left out
WORST_SHOWN = 3


def finish(output_dir: epath.Path, resamples: int) -> Json:
    """Makes `results.json` and what belongs to it of all that was scored; returns `results.json`'s content.

    Raises:
      UserError: a file is damaged, and scores that it holds (or held) are nowhere else; nothing is written then.
    """
    run, plan = run_files.read_run(output_dir), run_files.read_plan(output_dir)
    if run is None:
        raise UserError(f"output_dir {output_dir}: expected an evaluation's folder, got no {RUN}")
    run_files.refuse_unlisted(output_dir, plan)
    checked(run["models"], list[records.RunInfo], output_dir / RUN)
    stored = shards.read(output_dir)
    _refuse_loss(output_dir, plan, stored)
    lines: list[Prediction] = []
    counts, shown, worst = [], [], []
    not_run = [dict(one) for one in plan["failed"]]
    models = {model["label"]: model for model in run["models"]}
    for planned in plan["units"]:
        unit = _scores(stored, planned)
        names = {name: planned[name] for name in ("method", *NAMES)}
        if unit.end is None or not unit.complete:
            not_run.append(names | {"why": "not finished"})
            continue
        if not unit.scores:
            not_run.append(names | {"why": _no_example(unit.end)})
        normalize = models[planned["method"]].get("length_normalize", False)
        ranked = {example: one.ranked_by(normalize) for example, one in unit.scores.items()}
        line = _predicted(names | {"data": planned["data"]}, unit, ranked)
        lines.append(line)
        counts.append(_counts(line, unit.end, planned.get("split_rows")))
        if unit.end.shown and planned["label_set"] == ORIGINAL:
            shown.append(names | dataclasses.asdict(unit.end.shown))
        worst += _worst(names, unit, line, ranked)
    text = "".join(to_json(line.to_json(), indent=None) for line in lines)
    summary = _summary(run, lines, counts, not_run, resamples)
    summary["predictions_crc32"] = checksum(text.encode("utf-8"))
    examples = {"format": FORMAT, "shown": _first(shown), "worst": _most(worst)}
    write_atomically(output_dir / PREDICTIONS, text)
    write_sealed(output_dir / EXAMPLES, examples)
    return write_sealed(output_dir / RESULTS, summary)


def left_out(output_dir: epath.Path, stored: shards.Stored, *, unfinished: bool) -> list[str]:
    """A line for each part of the shards that cannot be used, and one for results whose scores are not whole.

    Args:
      output_dir: of the job.
      stored: what its shards hold.
      unfinished: whether something is left to score; if not, what a kill once left at the end of a shard is no news.
    """
    lines = [
        f"warning: {one}; left out"
        for one in stored.damage
        if unfinished or one.fault is not shards.Fault.TORN
    ]
    earlier = {_unit_name(count) for count in _earlier_counts(output_dir)}
    units = [one for one in run_files.read_plan(output_dir)["units"] if _unit_name(one) in earlier]
    if number := sum(not _scores(stored, one).complete for one in units):
        lines.append(
            f"warning: {output_dir / shards.FOLDER}: the scores of {number} units that {RESULTS} has numbers of are "
            "not whole; what is missing is scored again"
        )
    return lines


def _refuse_loss(output_dir: epath.Path, plan: Json, stored: shards.Stored) -> None:
    """Refuses to make results without scores that were there once."""
    earlier = _earlier_counts(output_dir)
    planned = {(one["method"], one["suite"]) for one in (*plan["units"], *plan["failed"])}
    for count in earlier:
        if (count["method"], count["suite"]) not in planned:
            raise UserError(
                f"{output_dir / PLAN}: it lacks the units of {count['method']!r} on {count['suite']!r}, which "
                f"{RESULTS} has numbers of; run that evaluation again ({KEPT}), or remove {RESULTS}"
            )
    names, lost = {_unit_name(count) for count in earlier}, stored.lost()
    for one in plan["units"]:
        unit = _scores(stored, one)
        if not unit.complete and (unit.end or lost or _unit_name(one) in names):
            where = lost or next(iter(stored.damage), output_dir / shards.FOLDER)
            raise UserError(
                f"{where}; scores of {one['method']!r} on {one['suite']} {one['task']}, template {one['template']!r}, "
                f"are missing: run that evaluation again ({KEPT}), or name another output_dir"
            )


def _earlier_counts(output_dir: epath.Path) -> list[Json]:
    """The counts of an earlier `results.json`; none where there is none, or a damaged one, which is made anew."""
    path = output_dir / RESULTS
    try:
        return results_of(path)["counts"] if path.is_file() else []
    except UserError:
        return []


def _scores(stored: shards.Stored, planned: Json) -> shards.UnitScores:
    """What is stored of a planned unit."""
    return stored.units.get(planned["key"], shards.UnitScores())


def _unit_name(one: Json) -> tuple[str, ...]:
    return tuple(one[name] for name in ("method", *NAMES, "data"))


def _summary(
    run: Json, lines: Sequence[Prediction], counts: list[Json], not_run: list[Json], resamples: int
) -> Json:
    seed = run["request"]["seed"]
    scored: Counter[tuple[str, str, str, str]] = Counter()
    for line in lines:
        scored[line.method, line.suite, line.task, line.label_set] += len(line.examples)
    for one in not_run:
        task = one["method"], one["suite"], one["task"], one["label_set"]
        one["whole_task"] = not scored[task]
    by_model: dict[str, list[metrics.Unit]] = {model["label"]: [] for model in run["models"]}
    for line in lines:
        if line.examples:
            by_model[line.method].append(line.to_unit())
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


def _with_sources(model: Json, run: Json) -> Json:
    """A run with where its method, lengths, eos and vocabulary were read; unknown of older folders."""
    sources = run.get("sources", {}).get(model["label"])
    return model | {"sources": sources} if sources else model


def _no_example(end: UnitEnd) -> str:
    listed = ", ".join(f"{number} {reason}" for reason, number in end.dropped.items())
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
    names: Json, unit: shards.UnitScores, ranked: Mapping[str, Sequence[float]]
) -> Prediction:
    """What was predicted in a unit whose choices are ranked by `ranked`, example by example."""
    examples = sorted(unit.scores, key=lambda name: (len(name), name))
    predicted = [metrics.predict(ranked[example]) for example in examples]
    assert unit.end is not None
    return Prediction(
        **names,
        words=unit.end.words,
        examples=tuple(examples),
        predicted=tuple(best for best, _ in predicted),
        ties=sum(tie for _, tie in predicted),
        choices=tuple(len(ranked[example]) for example in examples),
        right=tuple(
            tuple(c for c, is_right in enumerate(unit.scores[e].right) if is_right)
            for e in examples
        ),
    )


def _counts(line: Prediction, end: UnitEnd, split_rows: int | None) -> Json:
    """What became of the rows of a unit, and which choice was taken for which."""
    names = (
        "rows", "dropped", "inputs_cut", "targets_cut", "several_correct", "duplicate_choices", "same_ids",
    )  # fmt: skip
    counts: Json = {name: getattr(line, name) for name in ("method", *NAMES, "data", "ties")}
    counts |= {name: getattr(end, name) for name in names} | {"scored": len(line.examples)}
    if split_rows is not None:
        counts["split_rows"] = split_rows
    classes = max(line.choices, default=0)
    if 2 <= classes <= CLASSES_SHOWN:
        unit = line.to_unit()
        matrix = np.zeros((classes, classes), int)
        np.add.at(matrix, (unit.correct, unit.predicted), 1)
        words = None if line.words is None else list(line.words)
        counts["confusion"] = {"words": words, "matrix": matrix.tolist()}
    return counts


def _worst(
    names: Json, unit: shards.UnitScores, line: Prediction, ranked: Mapping[str, Sequence[float]]
) -> list[Json]:
    """The examples of a unit that are there as text and were predicted wrong, with their scores."""
    found = []
    for example, predicted, right in zip(line.examples, line.predicted, line.right, strict=True):
        if example in unit.shown and predicted not in right:
            lead = ranked[example][predicted] - max(ranked[example][choice] for choice in right)
            found.append(
                names
                | dataclasses.asdict(unit.shown[example])
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
    return in_order([one for here in by_task.values() for one in here])


def _first(shown: Iterable[Json]) -> list[Json]:
    """One example as text for each (method, suite, task): that of the first template."""
    first: dict[tuple[str, str, str], Json] = {}
    for one in shown:
        first.setdefault((one["method"], one["suite"], one["task"]), one)
    return list(first.values())


def results_of(source: str | os.PathLike[str] | Mapping[str, Any]) -> Json:
    """`results.json` of a folder, or the object itself.

    Raises:
      UserError: the folder has none, it is damaged, or it is of another format.
    """
    if isinstance(source, Mapping):
        found, name = dict(source), "the results"
    else:
        path = to_path(source, "results")
        path = path / RESULTS if path.is_dir() or not path.suffix else path
        found, name = read_sealed(path, FORMAT, records.Results.__annotations__), str(path)
    if found.get("format") not in READABLE:
        raise UserError(f"{name}: expected results of format {FORMAT}, got {found.get('format')!r}")
    records.check_results(checked(found, records.Results, name), name)  # type: ignore[arg-type]
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


def predictions_of(output_dir: epath.Path) -> list[Prediction]:
    """The lines of `predictions.jsonl`; none where there is no file and the results are older than checksums.

    Raises:
      UserError: it is missing or damaged, or belongs to other results than `results.json`.
    """
    path = output_dir / PREDICTIONS
    expected = results_of(output_dir).get("predictions_crc32")
    if expected is None and not path.is_file():
        return []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from error
    if expected not in (None, checksum(data)):
        raise UserError(
            f"{path}: {DAMAGED}, or it does not belong to {RESULTS}: run the evaluation again ({KEPT})"
        )
    found = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line:
            try:
                found.append(records.prediction(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {DAMAGED}: {error}") from error
    return found


def examples_of(output_dir: epath.Path, labels: Sequence[str]) -> Json:
    """`examples.json`: "shown" and "worst"; none where the folder has no such file.

    Args:
      output_dir: of the results.
      labels: of the runs in them.

    Raises:
      UserError: it is damaged.
    """
    path = output_dir / EXAMPLES
    if not path.is_file():
        return {"shown": [], "worst": []}
    found = checked(
        read_sealed(path, FORMAT, records.Examples.__annotations__), records.Examples, path
    )  # type: ignore[arg-type]
    records.check_examples(found, labels, str(path))
    return cast(Json, found)
