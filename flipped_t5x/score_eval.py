"""`score_eval` tasks in T0's manner: rank classification by SeqIO's own evaluator.

A task is a (method, dataset, template); its examples are the pairs (input, target) of every choice of every case, made
by `flipped_eval.examples` like those of our own evaluation, so that both are asked about the same ids.

| name | what |
|---|---|
| `flipped.super_glue_rte.does_it_follow_that_score_eval` | one template, any split |
| `flipped.anli.guaranteed_possible_impossible.dev_r1_score_eval` | one split of it, which is called 'validation' |
| `flipped.super_glue_rte_score_eval` | a mixture: all templates of a dataset that the method can use |
| `flipped_nlp14_score_eval` | a mixture: the templates of a suite; what is evaluated is called 'validation' |
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import UserError, unknown
from flipped_eval.examples import Case, build_cases
from flipped_eval.planning import Request, ordered_rows
from flipped_tasks import sources
from flipped_tasks.datasets import dataset_names, get_dataset, usable_templates
from flipped_tasks.methods import METHODS
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import compile_template
from flipped_tasks.seqio_tasks import method_features, task_name
from flipped_tasks.seqio_vocabulary import SeqioVocabulary
from mixtures import modules, suites
from mixtures.suites import EvalTask

SUFFIX = "_score_eval"
VALIDATION = "validation"
_SUITES = ("nlp14", "bigbench14", "seen")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How all score_eval tasks of a job are made; see `register`."""

    data_dir: str | None
    vocab_path: str
    lengths: tuple[tuple[str, int], ...]
    input_eos: bool
    seed: int
    max_examples: int | None = None


def register(
    name: str,
    data_dir: str | None,
    vocab_path: str,
    lengths: Mapping[str, int],
    input_eos: bool = True,
    seed: int = 0,
    templates: str = "original",
    task_modules: Sequence[str] = (),
    exclude_datasets: Sequence[str] = (),
    max_examples: int | None = None,
    split: str | None = None,
) -> str:
    """Registers what a name means (see the module) and returns the name.

    Args:
      name: ends with `_score_eval`.
      data_dir: a folder of rows; None for the made-up world.
      vocab_path: the SentencePiece model.
      lengths: most tokens of 'inputs' and 'targets'.
      input_eos: whether inputs end with eos.
      seed: of the templates' random draws.
      templates: of a suite: 'original' or 'all'.
      task_modules: modules or files that register datasets of one's own.
      exclude_datasets: of a suite: those to leave out, such as "story_cloze/2016".
      max_examples: of each template, drawn as `flipped eval` draws them; None takes all.
      split: what will be evaluated, which each task must have.

    Raises:
      UserError: nothing has that name, nothing is left of the suite, or a task lacks the split.
    """
    modules.load(task_modules)
    if max_examples is not None and max_examples < 1:
        raise UserError(f"max_examples: expected at least 1, or None for all, got {max_examples}")
    method = next((m for m in METHODS if name.startswith((f"{m}_", f"{m}."))), None)
    if method is None or not name.endswith(SUFFIX):
        raise UserError(
            f"score_eval task: expected a name such as 'flipped_nlp14{SUFFIX}' or "
            f"'flipped.super_glue_rte{SUFFIX}', got {name!r}"
        )
    settings = Settings(data_dir, vocab_path, tuple(lengths.items()), input_eos, seed, max_examples)
    _register_named(name, method, settings, templates, exclude_datasets)
    for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
        if split is not None and split not in task.splits:
            raise unknown(f"split of {task.name!r}", split, task.splits)
    return name


def _register_named(
    name: str, method: str, settings: Settings, templates: str, exclude_datasets: Sequence[str]
) -> str:
    if name.startswith(f"{method}_"):
        suite = name.removeprefix(f"{method}_").removesuffix(SUFFIX)
        parts = _of_suite(suite, method, templates, exclude_datasets)
        return _register_mixture(name, parts, method, settings)
    base = name.removesuffix(SUFFIX)
    for dataset in dataset_names():
        head = task_name(dataset, method)
        if base != head and not base.startswith(f"{head}."):
            continue
        parts = [EvalTask("", dataset, dataset, "", t) for t in usable_templates(dataset, method)]
        if base == head:
            return _register_mixture(name, parts, method, settings)
        named = {_name(part, method): part for part in parts}
        for part in parts:
            for split in sources.split_names(dataset, settings.data_dir):
                chosen = dataclasses.replace(part, split=split)
                named[_name(chosen, method)] = chosen
        if name not in named:
            raise unknown("score_eval task", name, named)
        return _register(named[name], method, settings)
    raise unknown("score_eval task", name, [task_name(d, method) + SUFFIX for d in dataset_names()])


def _of_suite(
    suite: str, method: str, templates: str, exclude_datasets: Sequence[str]
) -> list[EvalTask]:
    if suite not in _SUITES:
        raise unknown("suite of score_eval tasks", suite, _SUITES)
    found = suites.bigbench14() if suite == "bigbench14" else getattr(suites, suite)(templates)
    datasets = {task.dataset for task in found}
    for dataset in exclude_datasets:
        if dataset not in datasets:
            raise unknown("dataset in exclude_datasets", dataset, datasets)
    found = [task for task in found if task.dataset not in exclude_datasets]
    usable = {dataset: usable_templates(dataset, method) for dataset in datasets}
    return [task for task in found if task.template in usable[task.dataset]]


def _name(task: EvalTask, method: str) -> str:
    split = f".{task.split}" if task.split else ""
    return f"{task_name(task.dataset, method, task.template)}{split}{SUFFIX}"


def _register_mixture(name: str, parts: Sequence[EvalTask], method: str, settings: Settings) -> str:
    if not parts:
        raise UserError(f"{name!r}: no template is left that {method} can use")
    tasks = [(_register(part, method, settings), 1.0) for part in parts]
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, tasks)
    return name


def _register(task: EvalTask, method: str, settings: Settings) -> str:
    """One task; with a split in `task` it has that one only, as 'validation'."""
    name = _name(task, method)
    splits = (
        {VALIDATION: task.split}
        if task.split
        else {split: split for split in sources.split_names(task.dataset, settings.data_dir)}
    )
    features = method_features(SeqioVocabulary(settings.vocab_path), method, settings.input_eos)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            functools.partial(_pairs, task, method, settings, splits), splits=tuple(splits)
        ),
        output_features={key: features[key] for key in ("inputs", "targets")},
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        postprocess_fn=postprocess,
        metric_fns=[rank_classification],
    )
    return name


def _pairs(
    task: EvalTask,
    method: str,
    settings: Settings,
    splits: Mapping[str, str],
    split: str,
    shuffle_files: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
    """The pairs of a split, in its order: ids, 'idx' [case, choice] and whether the choice is right."""
    del shuffle_files, seed  # the order is the split's
    try:
        made = list(_flat(cases(dataclasses.replace(task, split=splits[split]), method, settings)))
    except UserError as error:
        hint = f"; EXCLUDE_DATASETS = [{task.dataset!r}] leaves it out" if task.suite else ""
        raise UserError(f"{error}{hint}") from None
    if not made:
        raise UserError(f"{_name(task, method)!r}, split {split!r}: no row can be ranked")
    columns = {
        "inputs": tf.ragged.constant([pair[0] for _, _, pair, _ in made], tf.int32),
        "targets": tf.ragged.constant([pair[1] for _, _, pair, _ in made], tf.int32),
        "idx": tf.constant([(case, choice) for case, choice, _, _ in made], tf.int32),
        "is_correct": tf.constant([right for _, _, _, right in made]),
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def _flat(made: Sequence[Case]) -> Iterator[tuple[int, int, Any, bool]]:
    for case in made:
        for choice, pair in enumerate(case.pairs):
            yield int(case.example), choice, pair, case.is_right(choice)


def cases(task: EvalTask, method: str, settings: Settings) -> list[Case]:
    """The cases of a task, as our own evaluation makes them.

    Raises:
      UserError: a row lacks a column.
    """
    rows = sources.load_numbered(task.dataset, task.split, settings.data_dir)
    request = Request((), seed=settings.seed, max_examples=settings.max_examples)
    return build_cases(
        task,
        ordered_rows(rows, task.dataset, task.split, request),
        method=method,
        template=compile_template(load_template(task.dataset, task.template)),
        vocabulary=SeqioVocabulary(settings.vocab_path).tokens,
        lengths=dict(settings.lengths),
        seed=settings.seed,
        input_eos=settings.input_eos,
        check_row=get_dataset(task.dataset).check_row,
        most=settings.max_examples,
    ).cases


def postprocess(
    text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> tuple[int, int, bool] | str:
    """SeqIO's hook: of a target (case, choice, whether it is right); anything else stays as it is."""
    if not is_target or example is None:
        return text
    case, choice = np.asarray(example["idx"]).tolist()
    return case, choice, bool(example["is_correct"])


def rank_classification(targets: Sequence[tuple[int, int, bool]], scores: Any) -> dict[str, float]:
    """SeqIO metric: percent of cases whose best choice is right; of equal scores the first choice wins.

    Args:
      targets: what `postprocess` gives of each pair.
      scores: the summed log-probability of each pair's target; T5X may give (scores, further outputs).
    """
    values = scores[0] if isinstance(scores, tuple) else scores
    by_case: dict[int, dict[int, tuple[float, bool]]] = defaultdict(dict)
    for (case, choice, right), score in zip(targets, values, strict=True):
        by_case[case][choice] = (float(score), right)
    hits = ties = 0
    for choices in by_case.values():
        ordered = [choices[number] for number in sorted(choices)]
        best = max(score for score, _ in ordered)
        first = next(place for place, (score, _) in enumerate(ordered) if score == best)
        hits += ordered[first][1]
        ties += sum(score == best for score, _ in ordered) > 1
    return {
        "accuracy": 100 * hits / len(by_case),
        "examples": float(len(by_case)),
        "ties": float(ties),
    }
