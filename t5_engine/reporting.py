"""What a training run tells: a bar on a terminal (lines elsewhere), metrics.jsonl, TensorBoard scalars."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm
from etils import epath
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from flipped_core import uploads
from flipped_core.errors import UserError
from flipped_core.files import write_atomically
from flipped_core.paths import explain, is_bucket, to_path

METRICS_FILE = "metrics.jsonl"
BY_DATASET = "examples_by_dataset"  # of a row: dataset -> examples since the last row
_DATASET = "dataset: "  # before the names of datasets among the sums
_NO_SCALARS = ("step", BY_DATASET)

# What of a row depends on the machine and not only on the run.
TIMES = (
    "examples_per_second",
    "tokens_per_second",
    "steps_per_second",
    "input_seconds",
    "step_seconds",
    "checkpoint_seconds",
    "mfu",
)


class Reporter:
    """Collects the metrics of each step and reports their means every `period` steps."""

    def __init__(
        self,
        model_dir: epath.PathLike,
        *,
        first_step: int,
        steps: int,
        period: int,
        label: str,
        nominal_rate: float | None = None,
        unreported: Mapping[str, float] | None = None,
    ) -> None:
        """Opens the files; what an earlier run wrote about steps after `first_step` is dropped.

        Args:
          model_dir: where metrics.jsonl and TensorBoard's event files are.
          first_step: the number of steps that are already done.
          steps: the number of steps in all.
          period: steps from one report to the next.
          label: the name that the bar and the lines begin with.
          nominal_rate: FLOP/s of all devices together; None leaves the MFU out.
          unreported: `unreported` of the run that this one goes on from, so that the next row is the same as without
            the interruption.
        """
        folder = to_path(model_dir, "model_dir")
        self._file = folder / METRICS_FILE
        kept = _drop_after(self._file, first_step)
        self._rows = kept if is_bucket(folder) else None  # of a file that is rewritten
        self._events = uploads.Uploaded(folder)
        self._scalars = _Scalars(self._events.local, purge_step=first_step + 1)
        self._steps, self._period, self._label = steps, period, label
        self._nominal_rate = nominal_rate
        self._bar = (
            tqdm.tqdm(total=steps, initial=first_step, unit="step", desc=label, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._sums = dict(unreported or {})
        if self._sums:  # of a checkpoint before there were packed rows
            self._sums.setdefault(
                "useful_tokens", self._sums["tokens"] + self._sums["input_tokens"]
            )
        self._here: dict[str, float] = {}  # of the steps that this process itself has timed
        self._since = time.perf_counter()

    @property
    def unreported(self) -> dict[str, float]:
        """The sums over the steps since the last row."""
        return dict(self._sums)

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        learning_rate: float,
        positions: int,
        flops: float,
        input_seconds: float,
        examples_by_dataset: Mapping[str, int] | None = None,
    ) -> None:
        """Takes in a step that is done.

        Args:
          step: its number, from 1.
          metrics: as from the compiled step.
          learning_rate: in force in the step.
          positions: of inputs and targets that the model computes, padding included.
          flops: the step's arithmetic.
          input_seconds: how long the loop waited for the batch.
          examples_by_dataset: the batch's number of examples of each dataset, where its rows have names.
        """
        _add(self._sums, {**metrics, "positions": positions, "steps": 1})
        counts = examples_by_dataset or {}
        _add(self._sums, {f"{_DATASET}{name}": number for name, number in counts.items()})
        tokens = metrics["tokens"] + metrics["input_tokens"]
        _add(
            self._here,
            {
                "steps": 1,
                "examples": metrics["examples"],
                "tokens": tokens,
                "flops": flops,
                "input_seconds": input_seconds,
            },
        )
        if self._bar is not None:
            self._bar.update(1)
        if step % self._period == 0 or step == self._steps:
            self._report(step, learning_rate)

    def saved(self, seconds: float) -> None:
        """Takes in how long a checkpoint held up the loop; in a bucket, TensorBoard's files are as new as it."""
        self._events.upload()
        _add(self._here, {"checkpoint_seconds": seconds})

    def _report(self, step: int, learning_rate: float) -> None:
        means, speeds = self._means(), self._speeds()
        row: dict[str, Any] = {"step": step, **means, "learning_rate": learning_rate, **speeds}
        self._append(json.dumps(row) + "\n")
        scalars = {f"train/{name}": value for name, value in row.items() if name not in _NO_SCALARS}
        counts = row.get(BY_DATASET, {})
        scalars |= {f"examples/{name}": number for name, number in counts.items()}
        self._scalars.write(step, scalars)
        self._show(row)
        self._sums, self._here, self._since = {}, {}, time.perf_counter()

    def _append(self, line: str) -> None:
        if self._rows is not None:
            self._rows += line
            write_atomically(self._file, self._rows)
            return
        _append(pathlib.Path(self._file), line)

    def _means(self) -> dict[str, Any]:
        sums = {name: n for name, n in self._sums.items() if not name.startswith(_DATASET)}
        counts = {
            name.removeprefix(_DATASET): round(number)
            for name, number in sorted(self._sums.items())
            if name.startswith(_DATASET)
        }
        steps, positions = sums.pop("steps"), sums.pop("positions")
        useful = sums.pop("useful_tokens")
        means = {name: total / steps for name, total in sums.items()}
        by_dataset = {BY_DATASET: counts} if counts else {}
        return {**means, "padding_share": 1 - useful / positions, **by_dataset}

    def _speeds(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._since
        here = self._here
        steps, checkpoints = here["steps"], here.get("checkpoint_seconds", 0.0)
        speeds = {
            "examples_per_second": here["examples"] / seconds,
            "tokens_per_second": here["tokens"] / seconds,
            "steps_per_second": steps / seconds,
            "input_seconds": here["input_seconds"] / steps,
            "step_seconds": (seconds - here["input_seconds"] - checkpoints) / steps,
            "checkpoint_seconds": checkpoints,
        }
        if self._nominal_rate is not None:
            speeds["mfu"] = here["flops"] / seconds / self._nominal_rate
        return speeds

    def _show(self, row: Mapping[str, Any]) -> None:
        shown = {"loss": f"{row['loss']:.3f}"}
        if row["loss_ul"]:
            shown |= {"lm": f"{row['loss_lm']:.3f}", "ul": f"{row['loss_ul']:.3f}"}
        shown |= {"token accuracy": f"{row['accuracy']:.3f}"}
        shown |= {"examples/s": f"{row['examples_per_second']:.0f}"}
        if "mfu" in row:
            shown |= {"MFU": f"{row['mfu']:.1%}"}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            return
        left = datetime.timedelta(
            seconds=round((self._steps - row["step"]) / row["steps_per_second"])
        )
        words = "  ".join(f"{name} {value}" for name, value in shown.items())
        line = f"{self._label}: step {row['step']}/{self._steps}  {words}  ETA {left}"
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the bar and the files."""
        if self._bar is not None:
            self._bar.close()
        self._scalars.close()
        self._events.close()


class _Scalars:
    """TensorBoard's event file, written by the thread that calls.

    tensorboardX's `SummaryWriter` writes in a thread, which a full disk ends; its caller then waits forever.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int) -> None:
        """TensorBoard leaves out what earlier files say of steps from `purge_step` on."""
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(
            event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start)
        )
        self._writer.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        summary = summary_pb2.Summary(value=values)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _append(file: pathlib.Path, line: str) -> None:
    """Adds a line; where it cannot be written, as on a full disk, no part of it stays."""
    with file.open("ab", buffering=0) as out:
        before = out.seek(0, os.SEEK_END)
        try:
            data = line.encode()
            while data:
                data = data[out.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                out.truncate(before)
            raise


def _add(sums: dict[str, float], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value


def _drop_after(file: epath.Path, step: int) -> str:
    """Keeps the rows up to `step`, once each, and returns them: those after it will come again.

    A line that is no row, such as the last one of a run that was killed, is dropped with a warning.

    Raises:
      UserError: the file cannot be read or written.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"cannot read {file}: {explain(error)}") from None
    kept: dict[int, bytes] = {}
    damaged = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line:
            continue
        if (at := _step_of(line)) is None:
            damaged.append(number)
        elif at <= step:
            kept.setdefault(at, line)
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        print(
            f"warning: {file}: {which} damaged and dropped (expected a JSON object with its step)",
            file=sys.stderr,
            flush=True,
        )
    text = "".join(kept[at].decode() + "\n" for at in sorted(kept))
    write_atomically(file, text)
    return text


def _step_of(line: bytes) -> int | None:
    """The step of a row; None where the line is none."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int and step > 0 else None
