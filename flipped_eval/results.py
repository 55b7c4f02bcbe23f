"""The files of an evaluation: predictions of each (task, template), and `results.json` made of them.

    output_dir/
      run.json                                       what was asked for; another request is refused
      predictions/<suite>/<task>/<template>.json     one file per (task, template, label set)
      results.json                                   every number; made anew from all of `predictions/`

Every file is written under another name first and renamed when complete, so a job that is killed leaves
whole files only, and the next one goes on where it stopped. `results.json` holds no times and no paths
of the machine's own making: the same request gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flipped_errors import UserError
from flipped_eval import metrics
from mixtures.catalog import BIGBENCH, TRAINING
from mixtures.suites import NLP14, ORIGINAL

FORMAT = 1
SUBSTITUTES = "all substitutes"

Json = dict[str, Any]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes `path` so that a reader, or a job that comes after a kill, sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp"
    )
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def to_json(value: Any, indent: int | None = 1) -> str:
    """`value` as JSON text that depends on nothing but `value`; NaN is refused, as JSON has none."""
    return (
        json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def read_json(path: pathlib.Path) -> Json:
    """A JSON file that one of these functions wrote.

    Raises:
      UserError: it cannot be read, is not JSON, or is no object; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def slug(name: str) -> str:
    """`name` as a file name: readable, and different for different names."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_.")[:80]
    if plain == name != "":
        return plain
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def prediction_path(output_dir: pathlib.Path, task: Any) -> pathlib.Path:
    """Where the predictions of one (task, template, label set) are kept."""
    name = slug(task.template)
    if task.label_set != ORIGINAL:
        name += "--" + slug(task.label_set)
    return output_dir / "predictions" / slug(task.suite) / slug(task.task) / f"{name}.json"


def open_run(output_dir: pathlib.Path, asked: Json) -> None:
    """Takes `output_dir` for the request `asked`, or goes on with it if it was taken for the same one.

    Raises:
      UserError: the folder holds results of another request; names the first field that differs.
    """
    path = output_dir / "run.json"
    if not path.exists():
        write_atomically(path, to_json(asked))
        return
    found = read_json(path)
    for name in sorted(set(found) | set(asked)):
        if found.get(name) != asked.get(name):
            raise UserError(
                f"output_dir {output_dir} holds results of another run: {name} was {_short(found.get(name))}, "
                f"now {_short(asked.get(name))}; name another output_dir or remove that one"
            )


def finished(path: pathlib.Path, key: Mapping[str, Any]) -> bool:
    """Whether the predictions at `path` are there and answer exactly `key`.

    Raises:
      UserError: they answer another question; they are never overwritten.
    """
    if not path.exists():
        return False
    found = read_json(path).get("key")
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: expected predictions with a key; remove the file to score it anew"
        )
    changed = [name for name in sorted(set(found) | set(key)) if found.get(name) != key.get(name)]
    if changed:
        raise UserError(
            f"{path} holds predictions for other {', '.join(changed)}; "
            "name another output_dir, or remove the file to score it anew"
        )
    return True


def load_predictions(output_dir: pathlib.Path) -> list[Json]:
    """Every prediction file of a folder: suites by name, tasks as the recipe lists them, then by names."""
    paths = sorted((output_dir / "predictions").glob("*/*/*.json"))
    files = [read_json(path) for path in paths if not path.name.startswith(".")]
    places = {task: place for place, task in enumerate((*NLP14, *BIGBENCH, *TRAINING))}

    def order(file: Json) -> tuple[Any, ...]:
        names = [file[name] for name in ("task", "template", "label_set")]
        return file["suite"], places.get(file["task"], len(places)), *names

    return sorted(files, key=order)


def to_unit(file: Json) -> metrics.Unit:
    """The arrays of one prediction file."""
    examples = file["examples"]
    return metrics.Unit(
        **{
            name: file[name]
            for name in ("suite", "task", "template", "label_set", "dataset", "split")
        },
        examples=tuple(example["id"] for example in examples),
        correct=np.array([example["correct"] for example in examples], dtype=np.int64),
        predicted=np.array([example["predicted"] for example in examples], dtype=np.int64),
        choices=np.array([len(example["logprobs"]) for example in examples], dtype=np.int64),
        words=tuple(file["words"]) if file["words"] is not None else None,
        ties=sum(example["tie"] for example in examples),
    )


def summarize(files: Sequence[Json], run: Json, resamples: int) -> Json:
    """`results.json`: the rows of `rows`, the counts of every unit, and the request itself."""
    units = [to_unit(file) for file in files if file["examples"]]
    rows_of_units = rows(units, seed=run["seed"], resamples=resamples)
    for row in rows_of_units:
        row.update(method=run["label"], form=run["method"])
    counts = [
        {
            name: file[name]
            for name in ("suite", "task", "template", "label_set", "dataset", "split")
        }
        | file["counts"]
        | {
            "scored": len(file["examples"]),
            "ties": sum(example["tie"] for example in file["examples"]),
        }
        for file in files
    ]
    dropped: Counter[str] = Counter()
    for count in counts:
        dropped.update(count["dropped"])
    return {
        "format": FORMAT,
        "run": run,
        "bootstrap": {"confidence": metrics.CONFIDENCE, "resamples": resamples, "unit": "example"},
        "results": rows_of_units,
        "counts": counts,
        "dropped": dict(dropped),
        "shown": _shown(files),
    }


@dataclass(frozen=True)
class _Measured:
    """Units and one metric of each of them; `distribution` is [len(units), R]."""

    metric: str
    units: Sequence[metrics.Unit]
    value: np.ndarray
    chance: np.ndarray
    majority: np.ndarray
    distribution: np.ndarray


def rows(units: Sequence[metrics.Unit], seed: int, resamples: int) -> list[Json]:
    """One row for each number.

    - Each unit: `task` and `template` given.
    - Each (task, label set), over its templates: `template` null, with median, min, max and std.
    - Each suite, over its tasks: `task` null too. Where a suite has substituted label words, once for
      the original words and once (`label_set` "all substitutes") over all (task, label set) pairs; the
      same mean is given for each task.

    All values are in [0, 1]; `low` and `high` are the 95% bootstrap interval, null where there is none.
    """
    distributions = _distributions(units, seed, resamples)
    found: list[Json] = []
    for suite in dict.fromkeys(unit.suite for unit in units):
        for metric in metrics.METRICS:
            chosen = [
                index
                for index, unit in enumerate(units)
                if unit.suite == suite and metric in unit.metrics()
            ]
            here = [units[index] for index in chosen]
            value, chance, majority = (
                np.array([of(unit, metric) for unit in here])
                for of in (metrics.value, metrics.chance, metrics.majority)
            )
            drawn = distributions[metric][chosen]
            measured = _Measured(metric, here, value, chance, majority, drawn)
            found += _rows_of_suite(measured)
    return found


def _distributions(
    units: Sequence[metrics.Unit], seed: int, resamples: int
) -> dict[str, np.ndarray]:
    """metric -> float [len(units), R]; units over the same examples are drawn together."""
    together: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        together[unit.dataset, unit.split].append(index)
    found = {metric: np.full((len(units), resamples), np.nan) for metric in metrics.METRICS}
    for indices in together.values():
        drawn = metrics.resampled([units[index] for index in indices], seed, resamples)
        for metric, values in drawn.items():
            found[metric][indices] = values
    return found


def _rows_of_suite(measured: _Measured) -> list[Json]:
    """All rows of one metric of one suite."""

    def row(members: Sequence[Sequence[int]], **names: Any) -> Json:
        return _row(measured, members) | names

    found: list[Json] = []
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, unit in enumerate(measured.units):
        groups[unit.task, unit.label_set].append(index)
        words = {"words": list(unit.words)} if unit.words else {}
        found.append(row([[index]], template=unit.template, ties=unit.ties, **words))
    for members in groups.values():
        ties = sum(measured.units[index].ties for index in members)
        found.append(row([[index] for index in members], templates=len(members), ties=ties))

    substitutes = {key: members for key, members in groups.items() if key[1] != ORIGINAL}
    for task in dict.fromkeys(task for task, _ in substitutes):
        pairs = [members for (owner, _), members in substitutes.items() if owner == task]
        found.append(row(pairs, label_set=SUBSTITUTES, label_sets=len(pairs)))
    if substitutes:
        names = {"task": None, "tasks": len({task for task, _ in substitutes})}
        pairs = list(substitutes.values())
        found.append(row(pairs, label_set=SUBSTITUTES, label_sets=len(pairs), **names))
    originals = [members for key, members in groups.items() if key[1] == ORIGINAL]
    if originals:
        found.append(row(originals, task=None, tasks=len(originals)))
    return found


def _row(measured: _Measured, members: Sequence[Sequence[int]]) -> Json:
    """The mean over `members`, each of which is the mean over its units, with spread and interval."""

    def means(of: np.ndarray) -> np.ndarray:
        return np.array([of[list(indices)].mean(axis=0) for indices in members])

    units = [measured.units[index] for indices in members for index in indices]
    low, high = metrics.interval(means(measured.distribution).mean(axis=0))
    numbers: dict[str, float | None] = {
        **metrics.spread(means(measured.value)),
        "chance": float(means(measured.chance).mean()),
        "majority": float(means(measured.majority).mean()),
        "low": low,
        "high": high,
    }
    if len(units) == 1:
        for name in ("median", "min", "max", "std"):
            del numbers[name]
    examples = {(unit.dataset, unit.split, example) for unit in units for example in unit.examples}
    return {
        "suite": units[0].suite,
        "task": units[0].task,
        "template": None,
        "label_set": units[0].label_set,
        "metric": measured.metric,
        "n": len(examples),
        **{name: None if number is None else round(number, 6) for name, number in numbers.items()},
    }


def _shown(files: Iterable[Json]) -> list[Json]:
    """One example as text for each (suite, task): that of the first template."""
    first: dict[tuple[str, str], Json] = {}
    for file in files:
        if file["shown"] and file["label_set"] == ORIGINAL:
            names = {name: file[name] for name in ("suite", "task", "template")}
            first.setdefault((file["suite"], file["task"]), names | file["shown"])
    return list(first.values())


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
        path = path / "results.json" if path.is_dir() or not path.suffix else path
        found, name = read_json(path), str(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{name}: expected results of format {FORMAT}, got {found.get('format')!r}")
    return found
