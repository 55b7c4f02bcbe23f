"""What an evaluation job will do: which tasks, on which rows, into which files, depending on what."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flipped_errors import UserError, unknown
from flipped_eval import results
from flipped_eval.examples import Row
from flipped_tasks.datasets import get_dataset
from flipped_tasks.promptsource import TemplateSpec, load_template
from flipped_tasks.sources import load_numbered
from mixtures import suites as all_suites
from mixtures.suites import EvalTask

SUITES: dict[str, Callable[[str], list[EvalTask]]] = {
    "nlp14": lambda templates: all_suites.nlp14(templates),
    "bigbench14": lambda templates: all_suites.bigbench14(),
    "labels": lambda templates: all_suites.labels(),
    "seen": lambda templates: all_suites.seen(templates),
}


@dataclass(frozen=True)
class Planned:
    """One (task, template, label set) that is to be scored: its rows, its template, its file."""

    task: EvalTask
    spec: TemplateSpec
    rows: Sequence[Row]
    path: pathlib.Path
    key: Mapping[str, Any]


def select_tasks(
    suites: Sequence[str],
    templates: str = "original",
    splits: Mapping[str, str] | None = None,
    exclude_datasets: Sequence[str] = (),
) -> list[EvalTask]:
    """The tasks of the suites, each (dataset, split) together, so that its rows are read once.

    Args:
      suites: names in `SUITES`.
      templates: "original" or "all"; the label suite and BIG-bench have their own.
      splits: dataset -> split instead of the suite's.
      exclude_datasets: datasets to leave out.

    Raises:
      UserError: an unknown suite, dataset or split, or nothing is left.
    """
    tasks: list[EvalTask] = []
    for suite in dict.fromkeys(suites):
        if suite not in SUITES:
            raise unknown("suite", suite, SUITES)
        tasks += SUITES[suite](templates)
    named = {task.dataset for task in tasks}
    for dataset in exclude_datasets:
        if dataset not in named:
            raise unknown("dataset in exclude_datasets", dataset, named)
    tasks = [task for task in tasks if task.dataset not in exclude_datasets]
    if not tasks:
        raise UserError(f"exclude_datasets: nothing is left of suites {list(suites)}")
    for dataset, split in (splits or {}).items():
        if dataset not in named:
            raise unknown("dataset in splits", dataset, named)
        if split not in get_dataset(dataset).splits:
            raise unknown(f"split of {dataset!r}", split, get_dataset(dataset).splits)
    tasks = [replace(task, split=(splits or {}).get(task.dataset, task.split)) for task in tasks]
    places = {
        place: index
        for index, place in enumerate(dict.fromkeys((t.dataset, t.split) for t in tasks))
    }
    return sorted(tasks, key=lambda task: places[task.dataset, task.split])


def make_plan(
    tasks: Sequence[EvalTask],
    request: Mapping[str, Any],
    folder: pathlib.Path,
    data_dir: str | None,
) -> list[Planned]:
    """What is to be scored, with the key of each: a hash of all that the predictions depend on."""
    planned: list[Planned] = []
    rows: list[Row] = []
    rows_hash, read = "", None
    shared = {name: request[name] for name in _KEY_FIELDS}
    for task in tasks:
        if read != (task.dataset, task.split):
            rows = _sample(task, data_dir, request["max_examples_per_task"], request["seed"])
            rows_hash, read = _hash(rows), (task.dataset, task.split)
        spec = load_template(task.dataset, task.template)
        template = {
            "jinja": spec.jinja,
            "answer_choices": spec.answer_choices,
            "words": dict(task.label_words or {}),
        }
        key = {**shared, "template": _hash(template), "rows": rows_hash}
        path = results.prediction_path(folder, task)
        planned.append(Planned(task, spec, rows, path, key))
    clashes = [path for path, n in Counter(one.path for one in planned).items() if n > 1]
    if clashes:
        raise UserError(
            f"suites: two tasks would be written to {clashes[0]}; names must differ within a suite"
        )
    return planned


_KEY_FIELDS = (
    "method",
    "weights",
    "model",
    "tokenizer",
    "lengths",
    "input_eos",
    "length_normalize",
    "seed",
)


def _sample(task: EvalTask, data_dir: str | None, most: int | None, seed: int) -> list[Row]:
    """(number in the split, row) in the split's order, sampled down to `most`."""
    rows: list[Row] = list(load_numbered(task.dataset, task.split, data_dir))
    if most is not None and most < len(rows):
        name = f"{seed}\n{task.dataset}\n{task.split}".encode()
        draw = random.Random(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big"))
        rows = [rows[place] for place in sorted(draw.sample(range(len(rows)), most))]
    return rows


def fingerprint(params: Any) -> str:
    """A hash of all weights: of each parameter's path, shape, dtype and bytes, in the order of paths."""
    import jax

    digest = hashlib.blake2b(digest_size=16)
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        array = np.asarray(leaf)
        digest.update(f"{path}\n{array.shape}\n{array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _hash(value: Any) -> str:
    """A hash of JSON-like data (numpy numbers included) that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def file_hash(path: str) -> str:
    """A hash of a file's bytes; `UserError` where it cannot be read."""
    try:
        return hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"vocab_path: cannot read {path}: {error.strerror}") from error
