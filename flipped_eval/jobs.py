"""The evaluation job: a checkpoint, a method and suites in; predictions and `results.json` out.

The job first names every file that it will write and what each depends on, so that a folder of another
run is refused before anything is computed. Then it scores groups of tasks: all pairs of a group go to
the scorer together, which encodes each distinct input once and fills its length buckets, and the files
of the group are written when its scores are there. A job that was killed scores what is not yet written.
"""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Protocol

import numpy as np
import tqdm

from flipped_errors import UserError, unknown
from flipped_eval import metrics, results
from flipped_eval.examples import Pair, TaskCases, build_cases
from flipped_eval.planning import Planned, file_hash, fingerprint, make_plan, select_tasks
from flipped_tasks.datasets import get_dataset
from flipped_tasks.methods import METHODS
from flipped_tasks.rendering import compile_template
from flipped_tasks.tokens import Vocabulary
from mixtures.suites import EvalTask

TEMPLATES = ("original", "all")
PAIRS_TOGETHER = 20_000
RESAMPLES = 1_000
LENGTHS = {"inputs": 512, "targets": 128}

_DROPS_TOLERATED = 0.05  # a larger share of a task's rows is warned of
log = logging.getLogger(__name__)


class Scorer(Protocol):
    """What is needed of `t5_engine.scorer.Scorer`."""

    def score(
        self, pairs: Sequence[Pair], progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """The summed log-probability of the target of each pair, float [n]; tells (done, all) as it goes."""


def evaluate(
    *,
    method: str,
    suites: Sequence[str],
    output_dir: str,
    vocab_path: str,
    checkpoint: str | None = None,
    params: Any = None,
    model_config: Any = None,
    label: str | None = None,
    data_dir: str | None = None,
    lengths: Mapping[str, int] | None = None,
    input_eos: bool = True,
    max_examples_per_task: int | None = None,
    templates: str = "original",
    splits: Mapping[str, str] | None = None,
    exclude_datasets: Sequence[str] = (),
    length_normalize: bool = False,
    seed: int = 0,
    scorer: Scorer | None = None,
    scorer_options: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    pairs_together: int = PAIRS_TOGETHER,
    announce: Callable[[str], None] = log.info,
) -> results.Json:
    """Evaluates one model with one method and writes `results.json` into `output_dir`.

    Args:
      method: "direct", "channel" or "flipped": how a choice is scored.
      suites: names of suites, such as "nlp14", "bigbench14", "labels", "seen".
      output_dir: the folder of this run; goes on where an earlier job for the same request stopped.
      vocab_path: the SentencePiece model.
      checkpoint: a folder of checkpoints, of which the newest is read; or give `params` and `model_config`.
      params, model_config: weights (a pytree of arrays) and their `t5_engine.config.T5Config`.
      label: the run's name in the report, such as "flipped_no_ul"; the method's where not given.
      data_dir: a folder of `<dataset>/<split>` files; None for the embedded world.
      lengths: most tokens of "inputs" and "targets"; 512 and 128 where not given.
      input_eos: whether encoder inputs end with the end-of-sequence id, as in training.
      max_examples_per_task: a larger split is sampled down to this many examples, with `seed`; all
        templates of a dataset get the same ones.
      templates: "original" for T0's (original task), "all" for every usable one.
      splits: dataset -> split, where another than the suite's is wanted.
      exclude_datasets: datasets to leave out, such as "story_cloze/2016", which is handed out against a
        form only; the report then says over how many tasks it averages.
      length_normalize: rank by log-probability per target token (DIRECT only).
      seed: decides the sample of examples, the templates' random draws and the bootstrap.
      scorer: something with `score(pairs)`; `t5_engine.scorer.Scorer` where not given.
      scorer_options: further arguments of `t5_engine.scorer.Scorer`.
      resamples: bootstrap draws.
      pairs_together: tasks are grouped until they have this many (input, target) pairs.
      announce: gets one line for each task that is done.

    Returns:
      The object that was written to `results.json`; see `results.summarize`.

    Raises:
      UserError: an argument is not valid, or `output_dir` holds results of another run.
    """
    lengths = _check(
        method, suites, templates, lengths, max_examples_per_task, length_normalize, resamples
    )
    tasks = select_tasks(suites, templates, splits, exclude_datasets)
    if params is None:
        params, model_config = _restore(checkpoint)
    request = {
        "label": label or method,
        "method": method,
        "weights": fingerprint(params),
        "tokenizer": file_hash(vocab_path),
        "lengths": lengths,
        "input_eos": input_eos,
        "length_normalize": length_normalize,
        "data": "embedded" if data_dir is None else "files",
        "templates": templates,
        "splits": dict(splits or {}),
        "exclude_datasets": sorted(exclude_datasets),
        "max_examples_per_task": max_examples_per_task,
        "seed": seed,
        "model": _describe(model_config),
    }
    folder = pathlib.Path(output_dir)
    results.open_run(folder, request)
    planned = make_plan(tasks, request, folder, data_dir)
    waiting = [one for one in planned if not results.finished(one.path, one.key)]
    announce(
        f"{label or method}: {len(planned)} templates, {len(planned) - len(waiting)} done before"
    )
    if waiting:
        scorer = scorer or _scorer(model_config, params, scorer_options)
        vocabulary = Vocabulary.from_file(vocab_path)
        _score_all(waiting, scorer, vocabulary, request, pairs_together, announce)
    summary = results.summarize(results.load_predictions(folder), request, resamples)
    results.write_atomically(folder / "results.json", results.to_json(summary))
    return summary


def _check(
    method: str,
    suites: Sequence[str],
    templates: str,
    lengths: Mapping[str, int] | None,
    max_examples: int | None,
    length_normalize: bool,
    resamples: int,
) -> dict[str, int]:
    """Refuses arguments that cannot be meant; returns the lengths."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if isinstance(suites, str) or not suites:
        raise UserError(f"suites: expected a list of names, got {suites!r}")
    if templates not in TEMPLATES:
        raise unknown("templates", templates, TEMPLATES)
    if length_normalize and method != "direct":
        raise UserError(f"length_normalize: expected method 'direct', got {method!r}")
    if max_examples is not None and max_examples < 1:
        raise UserError(
            f"max_examples_per_task: expected at least 1, or None for all, got {max_examples!r}"
        )
    if resamples < 1:
        raise UserError(f"resamples: expected at least 1, got {resamples!r}")
    asked = dict(LENGTHS if lengths is None else lengths)
    if set(asked) != set(LENGTHS) or any(not isinstance(n, int) or n < 2 for n in asked.values()):
        raise UserError(
            f"lengths: expected 'inputs' and 'targets' of at least 2 tokens, got {asked!r}"
        )
    return asked


def _restore(checkpoint: str | None) -> tuple[Any, Any]:
    """The newest weights of a folder of checkpoints, and their model's config."""
    if checkpoint is None:
        raise UserError("checkpoint: expected a folder of checkpoints, got none")
    from t5_engine import checkpoints

    params, model_config, step = checkpoints.load(checkpoint)
    log.info("read step %d of %s", step, checkpoint)
    return params, model_config


def _scorer(model_config: Any, params: Any, options: Mapping[str, Any] | None) -> Scorer:
    from t5_engine.scorer import Scorer as EngineScorer

    return EngineScorer(model_config, params, **dict(options or {}))


def _describe(model_config: Any) -> Any:
    """The model's config as plain values."""
    if is_dataclass(model_config) and not isinstance(model_config, type):
        return asdict(model_config)
    return model_config


def _score_all(
    waiting: Sequence[Planned],
    scorer: Scorer,
    vocabulary: Vocabulary,
    request: Mapping[str, Any],
    pairs_together: int,
    announce: Callable[[str], None],
) -> None:
    """Scores what is waiting, group by group, and writes the files of each group when it is scored."""
    began, done = time.monotonic(), 0
    for group in _groups(waiting, vocabulary, request, pairs_together):
        pairs = [pair for _, built in group for case in built.cases for pair in case.pairs]
        scores = _score_pairs(scorer, pairs)
        start = 0
        for planned, built in group:
            size = sum(len(case.pairs) for case in built.cases)
            file = _predictions(planned, built, scores[start : start + size], request)
            start += size
            results.write_atomically(planned.path, results.to_json(file, indent=None))
            done += 1
            announce(_line(planned.task, file, done, len(waiting), time.monotonic() - began))


def _score_pairs(scorer: Scorer, pairs: Sequence[Pair]) -> np.ndarray:
    """The scores of a group; on a terminal a bar shows how far it is."""
    if not pairs:
        return np.zeros(0, np.float32)
    with tqdm.tqdm(unit="pair", disable=None, leave=False, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        scores = np.asarray(scorer.score(pairs, progress=progress))
    if scores.shape != (len(pairs),):
        raise ValueError(f"scorer: expected {len(pairs)} scores, got shape {scores.shape}")
    return scores


def _groups(
    waiting: Sequence[Planned],
    vocabulary: Vocabulary,
    request: Mapping[str, Any],
    pairs_together: int,
) -> Iterator[list[tuple[Planned, TaskCases]]]:
    """The cases of what is waiting, in groups of at least `pairs_together` pairs (the last may have fewer)."""
    group: list[tuple[Planned, TaskCases]] = []
    size = 0
    for planned in waiting:
        built = build_cases(
            planned.task,
            planned.rows,
            method=request["method"],
            template=compile_template(planned.spec),
            vocabulary=vocabulary,
            lengths=request["lengths"],
            seed=request["seed"],
            input_eos=request["input_eos"],
            check_row=get_dataset(planned.task.dataset).check_row,
        )
        if built.rows and not built.cases:
            listed = ", ".join(f"{n} {reason}" for reason, n in sorted(built.dropped.items()))
            raise UserError(
                f"{planned.task.dataset}, split {planned.task.split!r}, template {planned.task.template!r}: "
                f"no example can be used ({listed})"
            )
        group.append((planned, built))
        size += sum(len(case.pairs) for case in built.cases)
        if size >= pairs_together:
            yield group
            group, size = [], 0
    if group:
        yield group


def _predictions(
    planned: Planned, built: TaskCases, scores: np.ndarray, request: Mapping[str, Any]
) -> results.Json:
    """The file of one task: every example's choices, log-probabilities, prediction."""
    task, examples, start = planned.task, [], 0
    for case in built.cases:
        summed = [float(score) for score in scores[start : start + len(case.pairs)]]
        start += len(case.pairs)
        ranked = summed
        if request["length_normalize"]:
            ranked = [
                score / len(targets) for score, (_, targets) in zip(summed, case.pairs, strict=True)
            ]
        predicted, tie = metrics.predict(ranked)
        right = predicted if predicted in case.also_correct else case.correct
        examples.append(
            {
                "id": case.example,
                "logprobs": summed,
                "predicted": predicted,
                "correct": right,
                "tie": tie,
                "choices": list(case.choices),
            }
        )
    words = {tuple(case.choices) for case in built.cases}
    return {
        "key": dict(planned.key),
        **{
            name: getattr(task, name)
            for name in ("suite", "task", "dataset", "split", "template", "label_set")
        },
        "words": list(words.pop()) if len(words) == 1 else None,
        "examples": examples,
        "counts": {
            "rows": built.rows,
            "dropped": dict(sorted(built.dropped.items())),
            "inputs_cut": built.inputs_cut,
            "targets_cut": built.targets_cut,
            "several_correct": built.several_correct,
        },
        "shown": asdict(built.shown) if built.shown else None,
    }


def _line(task: EvalTask, file: results.Json, done: int, total: int, seconds: float) -> str:
    examples = file["examples"]
    right = sum(example["predicted"] == example["correct"] for example in examples)
    score = f"accuracy {100 * right / len(examples):5.1f}%" if examples else "nothing to score"
    left = seconds / done * (total - done)
    name = f"{task.suite} {task.task} | {task.template}"
    if task.label_set != results.ORIGINAL:
        name += f" | {task.label_set}"
    told = f"[{done}/{total}, {left:.0f} s left] {name}: {score}, n {len(examples)}"
    return told + _drops(file["counts"])


def _drops(counts: results.Json) -> str:
    """What was left out and cut; with a warning where that is more than one row in twenty."""
    dropped = sum(counts["dropped"].values())
    parts = []
    if dropped:
        listed = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
        share = dropped / max(1, counts["rows"])
        parts.append(
            f"{'warning: ' if share > _DROPS_TOLERATED else ''}dropped {share:.1%} ({listed})"
        )
    parts += [f"{counts[key]} {key}" for key in ("inputs_cut", "targets_cut") if counts[key]]
    return "".join(f"; {part}" for part in parts)
