"""What a training run tells: a bar on a terminal (lines elsewhere), metrics.jsonl, TensorBoard scalars."""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import tensorboardX
import tqdm

METRICS_FILE = "metrics.jsonl"


class Reporter:
    """Collects the metrics of each step and reports their means every `period` steps."""

    def __init__(
        self, model_dir: pathlib.Path, *, first_step: int, steps: int, period: int, label: str
    ) -> None:
        """Opens the files; what an earlier run wrote about steps after `first_step` is dropped.

        Args:
          model_dir: where metrics.jsonl and TensorBoard's event files are.
          first_step: the number of steps that are already done.
          steps: the number of steps in all.
          period: steps from one report to the next.
          label: the name that the bar and the lines begin with.
        """
        self._file = model_dir / METRICS_FILE
        _drop_after(self._file, first_step)
        self._writer = tensorboardX.SummaryWriter(str(model_dir), purge_step=first_step + 1)
        self._steps, self._period, self._label = steps, period, label
        self._bar = (
            tqdm.tqdm(total=steps, initial=first_step, unit="step", desc=label, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.perf_counter()

    def step(self, step: int, metrics: Mapping[str, float], learning_rate: float) -> None:
        """Takes in the metrics of a step that is done (counted from 1)."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if self._bar is not None:
            self._bar.update(1)
        if step % self._period == 0 or step == self._steps:
            self._report(step, learning_rate)

    def _report(self, step: int, learning_rate: float) -> None:
        seconds = time.perf_counter() - self._since
        row: dict[str, Any] = {"step": step}
        row.update({name: total / self._count for name, total in self._sums.items()})
        row["learning_rate"] = learning_rate
        row["examples_per_second"] = self._sums["examples"] / seconds
        row["steps_per_second"] = self._count / seconds
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, step)
        self._show(row)
        self._sums, self._count, self._since = {}, 0, time.perf_counter()

    def _show(self, row: Mapping[str, Any]) -> None:
        shown = {"loss": f"{row['loss']:.3f}"}
        if row["loss_ul"]:
            shown |= {"lm": f"{row['loss_lm']:.3f}", "ul": f"{row['loss_ul']:.3f}"}
        shown |= {"accuracy": f"{row['accuracy']:.3f}"}
        shown |= {"examples/s": f"{row['examples_per_second']:.0f}"}
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
        self._writer.close()


def _drop_after(file: pathlib.Path, step: int) -> None:
    """Keeps the rows up to `step`: those after it will come again, and an interrupted last line goes too."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    partial = file.with_suffix(".partial")
    partial.write_text("".join(kept))
    partial.replace(file)
