"""What an evaluation job will do: which tasks, on which rows, under which keys, and about how much that is."""

from __future__ import annotations

import contextlib
import functools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any

from flipped_core.errors import UserError, unknown
from flipped_core.files import Json
from flipped_eval import keys
from flipped_eval.examples import Case, CaseBuilder, Row, TaskCases
from flipped_eval.request import Request
from flipped_tasks.datasets import dataset_names, get_dataset, template_names, usable_templates
from flipped_tasks.promptsource import TemplateSpec, load_template
from flipped_tasks.rendering import compile_template
from flipped_tasks.sources import load_numbered, split_names
from flipped_tasks.tokens import Vocabulary
from mixtures import suites as all_suites
from mixtures.suites import CHOSEN, EvalTask

SUITES: Mapping[str, Callable[[str, str | None], list[EvalTask]]] = {
    "nlp14": lambda templates, label_sets: all_suites.nlp14(templates),
    "bigbench14": lambda templates, label_sets: all_suites.bigbench14(),
    "labels": lambda templates, label_sets: all_suites.labels(label_sets),
    "seen": lambda templates, label_sets: all_suites.seen(templates),
}
SAMPLED_ROWS = 32  # of each split, for the plan's estimate


@dataclass(frozen=True)
class Model:
    """One column of the results, as far as scores depend on it.

    Attributes:
      label: its name in the report.
      method: "direct", "channel" or "flipped".
      weights, tokenizer: hashes.
      config: the model's config as plain values.
      lengths: most tokens of "inputs" and "targets".
      input_eos: whether encoder inputs end with the end-of-sequence id.
      length_normalize: whether choices are ranked by log-probability per target token.
      vocabulary: the tokenizer itself.
      example_flops: the arithmetic of the pairs of one example; None where the model's sizes are not known.
    """

    label: str
    method: str
    weights: str
    tokenizer: str
    config: Any
    lengths: Mapping[str, int]
    input_eos: bool
    length_normalize: bool
    vocabulary: Vocabulary
    example_flops: Callable[[Case], float] | None = None

    def describe(self) -> Json:
        """What `run.json` and `results.json` keep of it."""
        names = ("label", "method", "weights", "tokenizer", "input_eos", "length_normalize")
        described = {name: getattr(self, name) for name in names}
        return described | {"lengths": dict(self.lengths), "model": plain(self.config)}


@dataclass
class Unit:
    """One (task, template, label set) that one model is to be asked about, with its key and the size of its split."""

    model: Model
    task: EvalTask
    spec: TemplateSpec
    data: str
    key: str
    builder: CaseBuilder
    split_rows: int = 0

    def about(self) -> Json:
        """What the key stands for, as the shards say it."""
        names = ("suite", "task", "dataset", "split", "template", "label_set")
        return {name: getattr(self.task, name) for name in names} | {
            "method": self.model.method,
            "weights": self.model.weights,
            "tokenizer": self.model.tokenizer,
            "data": self.data,
        }


@dataclass
class Group:
    """The units of one model and suite on one split: they share its rows, and some their prompts."""

    model: Model
    suite: str
    dataset: str
    split: str
    units: list[Unit]
    request: Request

    def rows(self) -> list[Row]:
        """(place in the split, row), in the order in which they are looked at."""
        rows = load_numbered(self.dataset, self.split, self.request.data_dir)
        return ordered_rows(rows, self.dataset, self.split, self.request)


@dataclass
class Size:
    """How much work something is. `exact` is False where it was extrapolated from a sample."""

    tasks: set[tuple[str, str]] = field(default_factory=set)
    templates: int = 0
    examples: float = 0.0
    choices: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    exact: bool = True

    def scaled(self, share: float) -> Size:
        """That share of it; the tasks and templates are the same ones."""
        if share == 1:
            return self
        names = ("examples", "choices", "tokens", "flops")
        return replace(self, **{name: share * getattr(self, name) for name in names})

    def add(self, other: Size) -> None:
        """Adds another one's work to this."""
        self.tasks |= other.tasks
        self.exact &= other.exact
        for name in ("templates", "examples", "choices", "tokens", "flops"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Plan:
    """The groups of all models, what cannot be run and why, and the sizes by unit key."""

    groups: list[Group]
    failed: list[Json]
    sizes: dict[str, Size]

    def units(self) -> Iterator[Unit]:
        """All units that can be tried."""
        for group in self.groups:
            yield from group.units

    def total(self, share: Callable[[Unit], float] = lambda unit: 1.0) -> Size:
        """The size of the units, of each that share; equal keys count once, and what has no share not at all."""
        total = Size()
        for unit in {unit.key: unit for unit in self.units()}.values():
            if (of := share(unit)) > 0:
                total.add(self.sizes[unit.key].scaled(of))
        return total


def select_tasks(request: Request) -> list[EvalTask]:
    """The tasks of the suites; in each suite those of one (dataset, split) together.

    A suite is a name in `SUITES`, or a dataset, such as 'super_glue/rte' or one of the user's own, which stands for
    all of its templates, or `DATASET:TEMPLATE`. The latter two form the suite "chosen".

    Raises:
      UserError: an unknown suite, dataset, template or split, or nothing is left.
    """
    tasks: list[EvalTask] = []
    for suite in dict.fromkeys(request.suites):
        if suite in SUITES:
            tasks += SUITES[suite](request.templates, request.label_sets)
        else:
            tasks += _chosen(suite, request)
    named = {task.dataset for task in tasks}
    for dataset in request.exclude_datasets:
        if dataset not in named:
            raise unknown("dataset in exclude_datasets", dataset, named)
    tasks = [task for task in tasks if task.dataset not in request.exclude_datasets]
    if not tasks:
        raise UserError(f"exclude_datasets: nothing is left of suites {list(request.suites)}")
    for dataset, split in request.splits.items():
        if dataset not in named:
            raise unknown("dataset in splits", dataset, named)
        spec = get_dataset(dataset)
        known = spec.rows.splits() if spec.rows is not None else spec.splits
        if split not in known:
            raise unknown(f"split of {dataset!r}", split, known)
    tasks = [replace(task, split=request.splits.get(task.dataset, task.split)) for task in tasks]
    together: dict[tuple[str, str, str], list[EvalTask]] = defaultdict(list)
    for task in _distinct(tasks):
        together[task.suite, task.dataset, task.split].append(task)
    return [task for tasks in together.values() for task in tasks]


def _distinct(tasks: Sequence[EvalTask]) -> list[EvalTask]:
    """Each task once; `UserError` where two different ones have the same names in the report."""
    found: dict[tuple[str, ...], EvalTask] = {}
    for task in tasks:
        name = (task.suite, task.task, task.template, task.label_set)
        if found.setdefault(name, task) != task:
            raise UserError(f"suites: two different tasks are called {' | '.join(name)}")
    return list(found.values())


def _chosen(name: str, request: Request) -> list[EvalTask]:
    """The tasks of one dataset, or of one of its templates."""
    known = dataset_names()
    dataset, _, template = (name, "", "") if name in known else name.partition(":")
    if dataset not in known:
        raise unknown("suite or dataset", name, [*SUITES, *known])
    usable = usable_templates(dataset, "direct")
    if template and template not in usable:
        raise unknown(f"template of {dataset!r}", template, usable)
    names = template_names(dataset, "direct", original_task=request.templates == "original")
    at_hand: Sequence[str] = ()
    with contextlib.suppress(
        UserError
    ):  # the plan names a dataset without rows, and goes on with the others
        at_hand = split_names(dataset, request.data_dir)
    split = request.splits.get(dataset) or next(
        (known for known in ("validation", "test", *at_hand[:1]) if known in at_hand), "validation"
    )
    return [
        EvalTask(CHOSEN, dataset, dataset, split, each)
        for each in ([template] if template else names or usable)
    ]


def make_plan(tasks: Sequence[EvalTask], models: Sequence[Model], request: Request) -> Plan:
    """The units of all models, with their keys and about how much they are.

    Rows that cannot be read or that contradict the catalog make their tasks `failed`; the others are planned.

    Raises:
      UserError: no task has rows.
    """
    plan = Plan([], [], {})
    places: dict[tuple[str, str, str], list[EvalTask]] = defaultdict(list)
    for task in tasks:
        places[task.suite, task.dataset, task.split].append(task)
    look = functools.cache(functools.partial(_look_at, request))
    for model in models:
        for (suite, dataset, split), here in places.items():
            group = Group(model, suite, dataset, split, [], request)
            for task in here:
                looked = look(dataset, split)
                try:
                    if isinstance(looked, UserError):
                        raise looked
                    unit = _unit(model, task, looked, request)
                    plan.sizes[unit.key] = plan.sizes.get(unit.key) or _size(
                        unit, looked, request.max_examples
                    )
                    group.units.append(unit)
                except UserError as error:
                    plan.failed.append(failure(model, task, str(error)))
            if group.units:
                plan.groups.append(group)
    if not plan.groups:
        raise UserError(plan.failed[0]["why"])
    return plan


@dataclass(frozen=True)
class _Look:
    """What planning keeps of a split: the hash of its labelled rows, their number, and those it looks at first."""

    version: str
    rows: int
    sample: Sequence[Row]


def _look_at(request: Request, dataset: str, split: str) -> _Look | UserError:
    """Reads a split; where it cannot be read, or contradicts the catalog, the error is what is told of its tasks."""
    try:
        check = get_dataset(dataset).check_row
        rows = load_numbered(dataset, split, request.data_dir)
        version = keys.rows_hash((n, row) for n, row in rows if check(row, n + 1) is None)
        return _Look(version, len(rows), ordered_rows(rows, dataset, split, request)[:SAMPLED_ROWS])
    except UserError as error:
        return error


def ordered_rows(
    rows: Sequence[tuple[int, Mapping]], dataset: str, split: str, request: Request
) -> list[Row]:
    """The rows in their own order where all are wanted, else in a drawn one.

    Each template takes the first `max_examples` rows that it can use, so that templates share their examples as
    far as they can use the same ones.
    """
    ordered: list[Row] = list(rows)
    if request.max_examples is not None and request.max_examples < len(ordered):
        name = keys.value_hash([request.seed, dataset, split], size=8)
        random.Random(int(name, 16)).shuffle(ordered)
    return ordered


def _unit(model: Model, task: EvalTask, look: _Look, request: Request) -> Unit:
    spec = load_template(task.dataset, task.template)
    key = {
        "version": keys.VERSION,
        "method": model.method,
        "weights": model.weights,
        "model": plain(model.config),
        "tokenizer": model.tokenizer,
        "lengths": dict(model.lengths),
        "input_eos": model.input_eos,
        "seed": request.seed,
        "max_examples": request.max_examples,
        "data": look.version,
        "task": [task.suite, task.task, task.dataset, task.split, task.template, task.label_set],
        "template": [spec.jinja, spec.answer_choices, dict(task.label_words or {})],
    }
    builder = CaseBuilder(
        task=task,
        template=compile_template(spec),
        method=model.method,
        vocabulary=model.vocabulary,
        lengths=model.lengths,
        seed=request.seed,
        input_eos=model.input_eos,
        check_row=get_dataset(task.dataset).check_row,
    )
    name = keys.value_hash(key, size=8)
    return Unit(model, task, spec, look.version, name, builder, split_rows=look.rows)


def _size(unit: Unit, look: _Look, most: int | None) -> Size:
    """What the unit is, extrapolated from the first rows."""
    built = TaskCases()
    cases: list[Case] = []
    for number, row in look.sample:
        if most is not None and len(cases) >= most:
            break
        if (case := unit.builder.add(built, number, row)) is not None:
            cases.append(case)
    complete = len(cases) == most or len(look.sample) == look.rows
    usable = len(cases) if complete else look.rows * len(cases) / max(1, len(look.sample))
    examples = usable if most is None else min(most, usable)
    each = examples / max(1, len(cases))
    tokens = sum(
        len(ids)
        for case in cases
        for side in zip(*case.pairs, strict=True)
        for ids in set(side)  # what the choices share is read once
    )
    flops = unit.model.example_flops
    return Size(
        tasks={(unit.task.suite, unit.task.task)},
        templates=1,
        examples=examples,
        choices=each * sum(len(case.pairs) for case in cases),
        tokens=each * tokens,
        flops=each * sum(map(flops, cases)) if flops else 0.0,
        exact=complete,
    )


def failure(model: Model, task: EvalTask, why: str) -> Json:
    """What is told of a task that a model could not be asked about."""
    names = ("suite", "task", "dataset", "split", "template", "label_set")
    return {name: getattr(task, name) for name in names} | {"method": model.label, "why": why}


def plain(config: Any) -> Any:
    """A model's config as plain values."""
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    return config
