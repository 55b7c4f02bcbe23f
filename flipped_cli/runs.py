"""`TrainRun` and `EvalRun`: every setting of training and evaluation, declared once.

gin binds their fields under the macros named here, `flipped eval` makes its options of them, `run.json` records them,
and engine and evaluation take the classes that they extend. `TrainRun` is in `t5_engine.run_settings`, since
evaluation reads it from `run.json`. Importing this module loads nothing heavy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flipped_core.settings import check_fields, setting
from flipped_eval.request import Request
from t5_engine.run_settings import FEATURES, ProcessGroup, TrainRun

__all__ = ["METHODS", "EvalRun", "TrainRun"]

METHODS = ("direct", "channel", "flipped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(Request, ProcessGroup):
    """One evaluation job; what is None is as in the checkpoint's training."""

    checkpoint_path: tuple[str, ...] = setting(
        "Checkpoints: run folders, steps of them, Hugging Face folders or hf://OWNER/NAME, T5X checkpoints.",
        macro="CHECKPOINT_PATH",
        option="checkpoint",
        path=True,
    )
    output_dir: str = setting(
        "Folder of the results; an interrupted job resumes in it.",
        macro="EVAL_OUTPUT_DIR",
        option="output",
        path=True,
    )
    method: tuple[str, ...] | None = setting(
        "direct, channel, flipped: each for every checkpoint; None, that of the training.",
        None,
        macro="METHOD",
        option="method",
        choices=METHODS,
    )
    vocab_path: str | None = setting(
        "SentencePiece model; None, that of the checkpoint.",
        None,
        macro="VOCAB_PATH",
        option="vocab",
        path=True,
    )
    lengths: Mapping[str, int] | None = setting(
        "Longest inputs and targets; None, those of the training.",
        None,
        macro="TASK_FEATURE_LENGTHS",
        option="length",  # --inputs_length, --targets_length
        unit="tokens",
        minimum=2,
        keys=FEATURES,
    )
    input_eos: bool | None = setting(
        "Whether inputs end with </s>; None, as in the training.",
        None,
        macro="INPUT_EOS",
        option="eos",
    )
    batch_size: int | None = setting(
        "Targets that are scored at a time; None chooses by memory.",
        None,
        macro="BATCH_SIZE",
        option="batch_size",
        unit="targets",
        minimum=1,
    )
    model_parallelism: int = setting(
        "Devices that share one copy of the model.",
        1,
        macro="MODEL_PARALLELISM",
        option="model_parallelism",
        unit="devices",
        minimum=1,
    )
    length_normalize: bool = setting(
        "Rank by log-probability per target token (DIRECT only).",
        False,
        macro="LENGTH_NORMALIZE",
        option="length_normalize",
    )
    label: tuple[str, ...] | None = setting(
        "Names of the runs in reports, checkpoint by checkpoint; None makes them of folder and method.",
        None,
        macro="LABEL",
        option="label",
    )
    task_modules: tuple[str, ...] = setting(
        "Python modules or files that register custom datasets; they run with your rights.",
        (),
        macro="TASK_MODULES",
        option="module",
        path=True,
    )
    verify_checkpoints: bool = setting(
        "Whether every byte that is read of a checkpoint is compared with its checksum first.",
        True,
        macro="VERIFY_CHECKPOINTS",
        option="verify_checkpoints",
    )
    plan_only: bool = setting("Print the plan and exit.", False, macro="PLAN_ONLY", option="plan")

    def __post_init__(self) -> None:
        check_fields(self)
