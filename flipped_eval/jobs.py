"""The evaluation job: checkpoints, methods and suites in; scores, predictions and `results.json` out.

First everything is planned: which units there are, under which keys, on which rows, and about how much that is. What
cannot be run is known then, and the rest is run. Then each model's units are scored chunk by chunk; what a killed
job has written is not scored again. At the end `results.json` is made of all that the folder holds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from flipped_core import files, interrupts, locks
from flipped_core.errors import UserError, unknown
from flipped_core.files import Json
from flipped_core.paths import has_scheme, is_bucket, to_local_path, to_path
from flipped_eval import estimate, keys, planning, results, run_files, shards
from flipped_eval.planning import Model, Plan, Request
from flipped_eval.scoring import Announce, Job, Progress, Scorer
from flipped_tasks.methods import METHODS
from flipped_tasks.tokens import Vocabulary
from t5_engine import processes

PAIRS_TOGETHER = 4096
RESAMPLES = 1_000
LENGTHS: Mapping[str, int] = {"inputs": 512, "targets": 128}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One column of the results: a model and how it is asked.

    Attributes:
      method: "direct", "channel" or "flipped": how a choice is scored.
      vocab_path: the SentencePiece model.
      label: the column's name in the report, such as "flipped_no_ul".
      checkpoint: what `t5_engine.exchange` reads, such as a run's folder; or give `params` and `model_config`.
      params, model_config: weights (a pytree of arrays) and their `t5_engine.config.T5Config`.
      lengths: most tokens of "inputs" and "targets".
      input_eos: whether encoder inputs end with the end-of-sequence id, as in training.
      length_normalize: rank by log-probability per target token (DIRECT only).
      sources: of method, lengths, input_eos and vocab_path, the file that each was read from, or "given".
      exact_vocabulary: whether the model must not have more rows than the vocabulary's ids, padded as T5's are.
    """

    method: str
    vocab_path: str
    label: str
    checkpoint: str | None = None
    params: Any = field(default=None, repr=False)
    model_config: Any = None
    lengths: Mapping[str, int] = field(default_factory=lambda: LENGTHS)
    input_eos: bool = True
    length_normalize: bool = False
    exact_vocabulary: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a job tells before it scores: the plan, the units that are left to score, and about how long they take."""

    plan: Plan
    waiting: planning.Size
    seconds: float | None


def evaluate(
    runs: Sequence[Run],
    request: Request,
    output_dir: str,
    *,
    scorer: Callable[[Any, Any], Scorer] | None = None,
    batch_size: int | None = None,
    model_parallelism: int = 1,
    verify_checkpoints: bool = True,
    resamples: int = RESAMPLES,
    pairs_together: int = PAIRS_TOGETHER,
    announce: Announce = log.info,
    tell_plan: Callable[[Told], object] = lambda told: None,
    plan_only: bool = False,
    commit: str | None = None,
) -> Json:
    """Evaluates models on suites and writes `results.json` into `output_dir`.

    Args:
      runs: the columns; labels differ.
      request: what all of them are asked.
      output_dir: the folder of this job; goes on where an earlier one for the same request stopped.
      scorer: (model_config, params) -> something with `score(pairs)`; `t5_engine.scorer.Scorer` where not given.
      batch_size: targets that the model scores at a time; None, the scorer's own.
      model_parallelism: devices that share one copy of the weights.
      verify_checkpoints: whether every byte that is read of a checkpoint is compared with its checksum first.
      resamples: draws of the bootstrap and of the permutation test.
      pairs_together: (input, target) pairs of a chunk; a killed job scores its last chunk again.
      announce: gets a line for each unit that is done.
      tell_plan: gets the plan before anything is scored.
      commit: of this code, for the report.
      plan_only: ends the job there; nothing is written, and another job may be running in `output_dir`.

    Returns:
      What was written to `results.json`, {} where only planned; see `results.finish`.

    Raises:
      UserError: an argument is not valid, a checkpoint or vocabulary does not fit, `output_dir` holds results of
        another request, another job is running there, no task can be run, or a file cannot be written.
    """
    _check(runs, request, resamples, batch_size)
    with contextlib.ExitStack() as stack:
        lock = None
        if not plan_only:
            kept = f"what was scored is kept in {output_dir}, and the same command resumes there"
            stack.enter_context(interrupts.at_once(lambda: kept))
            lock = stack.enter_context(processes.hold(output_dir, "output_dir")).lock
            if processes.is_first() and not is_bucket(output_dir):
                files.remove_temporary(to_local_path(output_dir), dead_only=False)
        tasks = planning.select_tasks(request)
        engine = _Engine(batch_size, model_parallelism)
        shardings = None if scorer else engine.shardings
        weights = _Weights(runs, scorer or engine, shardings, verify_checkpoints)
        models = [_model(run, *weights.described(run)) for run in runs]
        plan = planning.make_plan(tasks, models, request)
        processes.refuse_differences(_hashes(models, plan))
        folder = to_path(output_dir, "output_dir")
        described = _describe(request), [model.describe() for model in models]

        def look() -> Json:
            """What the folder holds: what the first process finds, in all of them."""
            run_files.check_run(folder, *described)
            scores = shards.read(folder)
            stored = scores.done()

            left = functools.partial(_left, plan, stored)
            told = Told(plan, plan.total(left), estimate.seconds(plan, left))
            for line in results.left_out(folder, scores, unfinished=told.waiting.templates > 0):
                announce(line)
            tell_plan(told)
            if not plan_only:
                provenance = weights.provenance(runs, commit)
                run_files.open_run(folder, *described, _places(runs), _sources(runs), provenance)
                run_files.write_plan(folder, plan)
            return stored.to_json()

        found = processes.from_first(look)
        if plan_only:
            return {}
        first = processes.is_first()
        stored = shards.Done.from_json(found)
        waiting = plan.total(functools.partial(_left, plan, stored)).choices
        progress = Progress(plan.total().choices, waiting, announce if first else None)
        job = Job(plan, stored, _Writer(folder, lock) if first else None, progress, pairs_together)
        with contextlib.closing(progress):
            _score(job, runs, models, weights)
        plan.failed += job.failed

        def conclude() -> Json:
            run_files.write_plan(folder, plan)
            return results.finish(folder, resamples)

        return processes.from_first(conclude)


def _score(job: Job, runs: Sequence[Run], models: Sequence[Model], weights: _Weights) -> None:
    """Scores what is left of each model; models with the same weights follow each other."""
    both = zip(runs, models, strict=True)
    for run, model in sorted(both, key=lambda one: weights.place(one[0])):
        if segments := job.waiting(model):
            job.score(segments, weights.scorer(run))


def _left(plan: Plan, stored: shards.Done, unit: planning.Unit) -> float:
    """The share of a unit's examples that are still to be scored."""
    if unit.key in stored.ended:
        return 0.0
    done = len(stored.examples.get(unit.key, ()))
    return max(0.0, 1 - done / max(done, plan.sizes[unit.key].examples, 1))


class _Writer(shards.Writer):
    """Writes only while the folder is this job's."""

    def __init__(self, output_dir: epath.Path, lock: locks.Lock | None) -> None:
        super().__init__(output_dir)
        self._lock = lock

    def append(self, lines: Sequence[Json], about: Mapping[str, Json]) -> None:
        """As `shards.Writer`; `UserError` also where another job has taken the folder over."""
        if self._lock is not None:
            self._lock.check()
        super().append(lines, about)


def _places(runs: Sequence[Run]) -> dict[str, str]:
    """label -> where the weights were read."""
    return {
        run.label: run.checkpoint
        if has_scheme(run.checkpoint)
        else os.fspath(to_path(run.checkpoint))
        for run in runs
        if run.checkpoint
    }


def _sources(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """label -> field -> the name of the file that says it; no path, so that results do not depend on the folder."""
    return {
        run.label: {name: pathlib.PurePath(file).name for name, file in run.sources.items()}
        for run in runs
        if run.sources
    }


def _hashes(models: Sequence[Model], plan: Plan) -> dict[str, str]:
    """What all processes must have read alike; the rows and templates are in the keys of the units."""
    units = [(unit.key, plan.sizes[unit.key].choices) for unit in plan.units()]
    return {
        "weights": keys.value_hash([model.weights for model in models]),
        "vocabulary and settings": keys.value_hash([model.describe() for model in models]),
        "rows and templates": keys.value_hash([units, plan.failed]),
    }


class _Engine:
    """The engine's scorer, over all devices of all processes."""

    def __init__(self, batch_size: int | None, model_parallelism: int) -> None:
        self._options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
        self._model_parallelism = model_parallelism

    @functools.cached_property
    def mesh(self) -> Any:
        """The devices."""
        from t5_engine import partitioning

        return partitioning.make_mesh(self._model_parallelism)

    def shardings(self, config: Any) -> Any:
        """Where the weights go; refuses sizes that the mesh does not divide."""
        from t5_engine import partitioning

        return partitioning.param_shardings(config, self.mesh)

    def __call__(self, config: Any, params: Any) -> Scorer:
        from t5_engine.scorer import Scorer as EngineScorer

        return EngineScorer(config, params, mesh=self.mesh, **self._options)


class _Weights:
    """The weights of the runs: described for the plan one array at a time, and one model's on the devices."""

    def __init__(
        self,
        runs: Sequence[Run],
        make: Callable[[Any, Any], Scorer],
        shardings: Callable[[Any], Any] | None,
        verify: bool,
    ) -> None:
        """Args: make: from config and weights to a scorer; shardings: from a config to where the weights go."""
        self._order = list(dict.fromkeys(run.checkpoint for run in runs))
        self._make, self._shardings, self._verify = make, shardings, verify
        self._found: dict[str, str] = {}  # a run's folder -> the step in it that was described
        self._described: dict[str, tuple[str, Any]] = {}
        self._steps: dict[str, int] = {}
        self._kept: tuple[str, Scorer] | None = None

    def place(self, run: Run) -> int:
        """Runs with the same checkpoint have the same place."""
        return self._order.index(run.checkpoint)

    def described(self, run: Run) -> tuple[str, Any]:
        """(hash of the weights, model config).

        Raises:
          UserError: there is no checkpoint, a part of it cannot be read, or it does not fit its config or the mesh.
        """
        if run.params is not None:
            return keys.fingerprint(run.params), run.model_config
        if run.checkpoint is None:
            raise UserError("checkpoint: expected a folder of checkpoints, got none")
        if run.checkpoint not in self._described:
            self._described[run.checkpoint] = self._read(run.checkpoint)
        return self._described[run.checkpoint]

    def _read(self, checkpoint: str) -> tuple[str, Any]:
        from t5_engine import exchange
        from t5_engine.weights import lazy_params

        stored = exchange.open_checkpoint(checkpoint, verify=self._verify)
        # A run that is being trained may soon have a newer step than the one that the results name.
        self._found[checkpoint] = stored.path if stored.layout == "flipped" else checkpoint
        if self._shardings is not None:
            self._shardings(stored.config)
        log.info("read step %d of %s", stored.step, checkpoint)
        self._steps[checkpoint] = stored.step
        return keys.fingerprint(lazy_params(stored)), stored.config

    def provenance(self, runs: Sequence[Run], commit: str | None) -> dict[str, Json]:
        """label -> `records.CheckpointInfo` of the runs that have a checkpoint."""
        from t5_engine.config import size_name
        from t5_engine.weights import count_parameters

        found = {}
        for run in runs:
            if run.checkpoint in self._steps:
                _, config = self._described[run.checkpoint]
                found[run.label] = {
                    "step": self._steps[run.checkpoint],
                    "parameters": count_parameters(config),
                    "size": size_name(config),
                    "commit": commit,
                }
        return found

    def scorer(self, run: Run) -> Scorer:
        """The scorer of a run; that of the last checkpoint is kept, since two models may not fit into memory."""
        if run.params is not None:
            return self._make(run.model_config, run.params)
        assert run.checkpoint is not None
        if self._kept is None or self._kept[0] != run.checkpoint:
            from t5_engine import exchange

            self._kept = None
            place = self._found.get(run.checkpoint, run.checkpoint)
            params, config, _ = exchange.load(place, self._shardings, verify=self._verify)
            self._kept = run.checkpoint, self._make(config, params)
        return self._kept[1]


def _model(run: Run, weights: str, config: Any) -> Model:
    """What the plan and the files know of a run; refuses a vocabulary that does not fit."""
    vocabulary = Vocabulary.from_file(run.vocab_path)
    size = getattr(config, "vocab_size", None)
    if size is not None and (
        vocabulary.num_ids > size or (run.exact_vocabulary and vocabulary.size < size)
    ):
        raise UserError(
            f"vocab_path: {run.vocab_path} has {vocabulary.num_ids} ids ({vocabulary.size} rows, padded as embeddings "
            f"are), the checkpoint of {run.label!r} has {size}: expected the vocabulary that it was trained with"
        )
    return Model(
        label=run.label,
        method=run.method,
        weights=weights,
        tokenizer=keys.file_hash(run.vocab_path),
        config=config,
        lengths=dict(run.lengths),
        input_eos=run.input_eos,
        length_normalize=run.length_normalize,
        vocabulary=vocabulary,
        example_flops=None if size is None else functools.partial(estimate.flops, config),
    )


def _check(runs: Sequence[Run], request: Request, resamples: int, batch_size: int | None) -> None:
    """Refuses arguments that cannot be meant."""
    if not runs:
        raise UserError("runs: expected at least one checkpoint and method, got none")
    labels = [run.label for run in runs]
    for label in labels:
        if not label or labels.count(label) > 1:
            raise UserError(f"labels: expected a name of its own for each run, got {labels}")
    for run in runs:
        if run.method not in METHODS:
            raise unknown("method", run.method, METHODS)
        if run.length_normalize and run.method != "direct":
            raise UserError(f"length_normalize: expected method 'direct', got {run.method!r}")
        _check_lengths(run.lengths)
    if not request.suites:
        raise UserError(f"suites: expected a list of names, got {request.suites!r}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size: expected at least 1, or None, got {batch_size!r}")
    if resamples < 1:
        raise UserError(f"resamples: expected at least 1, got {resamples!r}")


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if set(lengths) != set(LENGTHS) or any(
        not isinstance(n, int) or isinstance(n, bool) or n < 2 for n in lengths.values()
    ):
        raise UserError(
            f"lengths: expected 'inputs' and 'targets' of at least 2 tokens, got {dict(lengths)!r}"
        )


def _describe(request: Request) -> Json:
    """What `run.json` keeps of a request: all but the suites, which may be added to, and paths."""
    return {
        "data": "embedded" if request.data_dir is None else "files",
        "templates": request.templates,
        "splits": dict(request.splits),
        "exclude_datasets": sorted(request.exclude_datasets),
        "max_examples_per_task": request.max_examples,
        "seed": request.seed,
        "label_sets": keys.file_hash(request.label_sets, "label_sets")
        if request.label_sets
        else None,
    }
