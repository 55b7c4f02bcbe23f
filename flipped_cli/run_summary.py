"""What a training run says of itself: a header before the first step, and where things are at its end."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from flipped_cli import tables
from flipped_cli.checks import WORLD_TEXTS
from flipped_cli.mixtures import below_one_epoch, expected_number
from flipped_cli.runs import TrainRun
from flipped_core.paths import to_path

if TYPE_CHECKING:
    from jax.sharding import Mesh


def show_header(run: TrainRun, mesh: Mesh) -> None:
    """Prints devices, mesh, model, mixture and the expected number of examples of each dataset in this run."""
    for line in header(run, mesh):
        _say(line)
    _show_mixture(run)


def header(run: TrainRun, mesh: Mesh) -> list[str]:
    """The lines of the header."""
    import jax

    from t5_engine.config import size_name
    from t5_engine.weights import count_parameters

    devices = jax.devices()
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    count = f"{len(devices)} device{'s' if len(devices) > 1 else ''}"
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    size = size_name(run.model)
    name = f" ({size})" if size else ""
    return [
        f"{run.mixture}: {count} ({devices[0].device_kind}){processes}, mesh {axes}",
        f"model: {count_parameters(run.model):,} parameters{name}, activations {run.model.dtype}",
        f"{run.batch_size:,} examples per step, {run.steps:,} steps: {run.batch_size * run.steps:,} examples",
    ]


def starting_from(run: TrainRun, done: int) -> str:
    """Where the parameters of the first step come from."""
    if done:
        return f"resuming from step {done:,} of {run.steps:,} in {run.model_dir}"
    if run.initial_checkpoint_path:
        return f"starting from {run.initial_checkpoint_path}"
    return f"starting from random parameters (seed {run.seed})"


def ending(run: TrainRun, trained: bool) -> list[str]:
    """Where the checkpoints and metrics are, and the next command.

    Args:
      run: all settings.
      trained: whether this start made a step.
    """
    from flipped_eval.recipes import CHECKPOINTS
    from t5_engine.reporting import METRICS_FILE

    folder = to_path(run.model_dir)
    state = "complete" if trained else "already complete, nothing was trained"
    command = ["flipped", "eval", "--checkpoint", run.model_dir, "--suite", "seen"]
    command += ["--output", str(folder / "eval")]
    if run.data_dir:
        command += ["--data_dir", run.data_dir]
    for module in run.task_modules:
        command += ["--module", module]
    lines = [
        f"{run.mixture}: {state}: step {run.steps:,} of {run.steps:,}",
        f"checkpoint: {folder / CHECKPOINTS / str(run.steps)}",
        f"metrics: {folder / METRICS_FILE}; curves: tensorboard --logdir {shlex.quote(run.model_dir)}",
    ]
    return lines if run.mixture in WORLD_TEXTS else [*lines, f"next: {shlex.join(command)}"]


def _show_mixture(run: TrainRun) -> None:
    """A table of the expected number of examples of each task, and a warning below one epoch."""
    rows = _expected(run.mixture, run.batch_size * run.steps)
    if not rows:
        return
    from rich.table import Table

    from flipped_tasks.datasets import slug
    from mixtures import own

    table = Table("dataset", box=None, pad_edge=False)
    for head in ("rows", "share", "expected examples", "epochs"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row["task"], f"{row['rows']:,}", f"{row['share']:.2%}", expected_number(row["examples"]),
            f"{row['epochs']:.3g}",
        )  # fmt: skip
    tables.show(table)
    custom = [slug(name) for name in own.own_datasets()]
    if warning := below_one_epoch({row["task"]: row["epochs"] for row in rows}, custom):
        _say(warning)


def _expected(mixture: str, examples: int) -> list[dict[str, Any]]:
    """For each task: rows available, share of the examples, and what is expected of them in this run."""
    import seqio

    from flipped_tasks.seqio_tasks import row_tasks

    provider = seqio.get_mixture_or_task(mixture)
    found = row_tasks(mixture)
    mixed = isinstance(provider, seqio.Mixture)
    rates = {task.name: provider.get_rate(task) if mixed else 1.0 for task in found}
    total = sum(rates.values())
    rows = []
    for task in found:
        number, share = task.rows.num_input_examples("train"), rates[task.name] / total
        rows.append(
            {
                "task": task.name.partition(".")[2] or task.name,
                "rows": number,
                "share": share,
                "examples": share * examples,
                "epochs": share * examples / max(1, number),
            }
        )
    return rows


def show_counts(mixture: str) -> None:
    """Prints what was dropped and truncated, as one table; nothing where nothing was."""
    from rich.markup import escape
    from rich.table import Table

    from flipped_tasks.counts import TOLERATED, listed
    from flipped_tasks.seqio_tasks import mixture_counts

    found = mixture_counts(mixture)
    if not found:
        return
    table = Table(title="Rows and examples that were left out or truncated", title_justify="left")
    table.add_column("task", no_wrap=True)
    for head in ("rows", "unlabelled", "used", "dropped"):
        table.add_column(head, justify="right")
    table.add_column("why dropped", overflow="fold")
    table.add_column("used, but", overflow="fold")
    for counts in found:
        unlabelled, dropped = sum(counts.unlabelled.values()), sum(counts.dropped.values())
        mark = " !" if counts.is_warned else ""
        table.add_row(
            escape(counts.task) + mark, f"{counts.rows:,}", f"{unlabelled:,}", f"{counts.given:,}", f"{dropped:,}",
            listed({**counts.unlabelled, **counts.dropped}), listed(counts.cut),
        )  # fmt: skip
    tables.show(table)
    if any(counts.is_warned for counts in found):
        _say(f"! more than {TOLERATED:.0%} of the rows or examples are lost")


def _say(line: str) -> None:
    print(line, flush=True)
