"""The settings of a training run, those of them that the engine reads, and those of a run's processes.

Importing this module loads no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flipped_core.errors import UserError
from flipped_core.settings import Resume, check_fields, setting
from t5_engine import compilation_cache, launch
from t5_engine.config import T5Config

if TYPE_CHECKING:
    import optax

    from t5_engine.axes import Layout
    from t5_engine.step import Step

OPTIMIZERS = ("adafactor", "adam")
FEATURES = ("inputs", "targets")
RATES = ("recipe", "rows", "equal")
DECAYS = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """How the processes of a run find each other; `join` connects this one to the others."""

    coordinator_address: str | None = setting(
        '"host:port" of process 0; None detects SLURM, Open MPI, TPU pods and a JobSet.',
        None,
        macro="COORDINATOR_ADDRESS",
        option="coordinator_address",
        resume=Resume.LOCAL,
    )
    process_count: int | None = setting(
        "Number of processes; with COORDINATOR_ADDRESS only.",
        None,
        macro="PROCESS_COUNT",
        option="process_count",
        minimum=1,
        resume=Resume.LOCAL,
    )
    process_id: int | None = setting(
        "Number of this process, from 0; with COORDINATOR_ADDRESS only.",
        None,
        macro="PROCESS_ID",
        option="process_id",
        minimum=0,
        resume=Resume.LOCAL,
    )
    coordinator_timeout: float = setting(
        "How long to wait for the other processes.",
        launch.TIMEOUT,
        macro="COORDINATOR_TIMEOUT",
        option="coordinator_timeout",
        unit="seconds",
        above=0,
        maximum=604_800,
        resume=Resume.LOCAL,
    )
    compilation_cache_dir: str | None = setting(
        "Folder or bucket for compiled programs, reused by later starts; None, JAX_COMPILATION_CACHE_DIR if set.",
        None,
        macro="COMPILATION_CACHE_DIR",
        option="compilation_cache_dir",
        path=True,
        resume=Resume.LOCAL,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def join(self, check: Callable[[], object] = lambda: None) -> bool:
        """Connects to the other processes, if any; see `launch.start`. Call it before any use of JAX.

        Args:
          check: refuses what can be refused before; an error of one process ends all.
        """

        def checked() -> None:
            check()
            compilation_cache.enable(self.compilation_cache_dir)

        return launch.start(
            self.coordinator_address,
            self.process_count,
            self.process_id,
            self.coordinator_timeout,
            checked,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ProcessGroup):
    """The settings of a training run that the engine reads.

    Raises:
      UserError: a value is not of its type or out of its bounds, or no step is left for the decay.
    """

    model_dir: str = setting(
        "Folder of the run: checkpoints, metrics, run.json; all processes see it.",
        macro="MODEL_DIR",
        path=True,
        resume=Resume.LOCAL,
    )
    mixture: str = setting("Name shown in front of the progress bar.", "train")
    steps: int = setting(
        "Optimizer steps in all, those before a restart included.",
        macro="TRAIN_STEPS",
        unit="steps",
        minimum=1,
        resume=Resume.FREE,
    )
    learning_rate: float = setting(
        "Highest learning rate; Adafactor scales it by each parameter's RMS.",
        macro="LEARNING_RATE",
        above=0,
    )
    optimizer: str = setting(
        "T5X's Adafactor, or Adam for small models from scratch.",
        "adafactor",
        macro="OPTIMIZER",
        choices=OPTIMIZERS,
    )
    warmup_steps: int = setting(
        "Steps in which the rate rises linearly from 0.",
        0,
        macro="WARMUP_STEPS",
        unit="steps",
        minimum=0,
    )
    decay: str = setting(
        "Schedule after the warm-up, down to 0 at DECAY_STEPS.",
        "constant",
        macro="DECAY",
        choices=DECAYS,
    )
    decay_steps: int | None = setting(
        "Step at which a decaying rate is 0; None is TRAIN_STEPS.",
        None,
        macro="DECAY_STEPS",
        unit="steps",
        minimum=1,
    )
    unlikelihood_weight: float = setting(
        "Factor of the unlikelihood term (FLIPPED; Ye et al. 2022, equation 3); 0 is the ablation.",
        0.0,
        macro="UNLIKELIHOOD_WEIGHT",
        minimum=0,
    )
    z_loss: float = setting(
        "Factor of the squared log normalizer; 0 leaves it out.", 0.0, macro="Z_LOSS", minimum=0
    )
    initial_checkpoint_path: str | None = setting(
        "Checkpoint whose parameters the run starts from; None initializes them from SEED.",
        None,
        macro="INITIAL_CHECKPOINT_PATH",
        path=True,
    )
    seed: int = setting(
        "Seed of the initialization, the data order and dropout.", 0, macro="SEED", minimum=0
    )
    model_parallelism: int = setting(
        "Devices that share one copy of the model.",
        1,
        macro="MODEL_PARALLELISM",
        unit="devices",
        minimum=1,
        resume=Resume.FREE,
    )
    fsdp: bool = setting(
        "Shard parameters and optimizer state over the data axis too.",
        False,
        macro="FSDP",
        resume=Resume.FREE,
    )
    microbatches: int = setting(
        "Parts of a batch that are computed in sequence; with dropout they draw other masks.",
        1,
        macro="MICROBATCHES",
        minimum=1,
        resume=Resume.FREE,
    )
    pack: bool = setting(
        "Rows hold several examples each; False pads every example to TASK_FEATURE_LENGTHS.",
        True,
        macro="PACK",
        resume=Resume.FREE,
    )
    pack_lengths: Mapping[str, int] | None = setting(
        "Lengths of packed rows; None chooses them from the lengths of the first batches.",
        None,
        macro="PACK_LENGTHS",
        unit="tokens",
        minimum=1,
        keys=FEATURES,
        resume=Resume.FREE,
    )
    pack_rows: tuple[int, ...] | None = setting(
        "Numbers of rows that packed batches are filled up to; None chooses at most four likewise.",
        None,
        macro="PACK_ROWS",
        unit="rows",
        minimum=1,
        resume=Resume.FREE,
    )
    checkpoint_period: int = setting(
        "Steps between checkpoints; one is always written at the end.",
        1000,
        macro="CHECKPOINT_PERIOD",
        unit="steps",
        minimum=1,
        resume=Resume.FREE,
    )
    keep_checkpoints: int | None = setting(
        "How many of the newest checkpoints to keep; None keeps all.",
        None,
        macro="KEEP_CHECKPOINTS",
        minimum=1,
        resume=Resume.FREE,
    )
    keep_every: int | None = setting(
        "Checkpoints at multiples of this step are kept whatever their age.",
        None,
        macro="KEEP_EVERY",
        unit="steps",
        minimum=1,
        resume=Resume.FREE,
    )
    verify_checkpoints: bool = setting(
        "Whether every byte that is read of a checkpoint is compared with its checksum first.",
        True,
        macro="VERIFY_CHECKPOINTS",
        resume=Resume.FREE,
    )
    log_period: int = setting(
        "Steps between lines of metrics.",
        100,
        macro="LOG_PERIOD",
        unit="steps",
        minimum=1,
        resume=Resume.FREE,
    )
    profile: tuple[int, int] | None = setting(
        "(steps to skip, steps to trace) after each start, traced to MODEL_DIR/profile.",
        None,
        macro="PROFILE",
        unit="steps",
        minimum=1,
        resume=Resume.LOCAL,
    )
    nominal_rate: float | None = setting(
        "Peak rate of one device, for the MFU; None takes the maker's where it is known.",
        None,
        macro="NOMINAL_RATE",
        unit="FLOP/s",
        above=0,
        resume=Resume.FREE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay != "constant" and self.steps <= self.warmup_steps:
            raise UserError(
                f"TRAIN_STEPS: expected more than WARMUP_STEPS ({self.warmup_steps:,}), since DECAY is "
                f"{self.decay!r}; got {self.steps:,}"
            )

    @property
    def transform(self) -> optax.GradientTransformation:
        """The optimizer."""
        from t5_engine import optimizer

        return optimizer.make(
            self.optimizer,
            self.learning_rate,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            steps=self.decay_steps or self.steps,
        )

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step, from 0."""
        from t5_engine import optimizer

        return optimizer.schedule(
            self.learning_rate,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            steps=self.decay_steps or self.steps,
        )

    def step(self, model_config: T5Config, layout: Layout) -> Step:
        """The function of one step, not yet compiled."""
        from t5_engine.step import make_step

        return make_step(
            model_config,
            self.transform,
            layout,
            lambda_unlikelihood=self.unlikelihood_weight,
            z_loss=self.z_loss,
            microbatches=self.microbatches,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRun(TrainConfig):
    """One training run: the settings of the engine, and those of tasks and data, which it only hands on."""

    mixture: str = setting(
        'Mixture or task, such as "flipped_train" or "direct.imdb".', macro="MIXTURE_OR_TASK_NAME"
    )
    model: T5Config = setting("Sizes and numeric settings of the model: a file of gin/models.")
    lengths: Mapping[str, int] = setting(
        "Longest inputs and targets; longer ones are truncated.",
        macro="TASK_FEATURE_LENGTHS",
        unit="tokens",
        minimum=2,
        keys=FEATURES,
    )
    batch_size: int = setting(
        "Examples of a step over all devices.", macro="BATCH_SIZE", unit="examples", minimum=1
    )
    vocab_path: str = setting(
        "SentencePiece model, such as T5's.", macro="VOCAB_PATH", path=True, resume=Resume.SAME
    )
    input_eos: bool = setting(
        "Whether encoder inputs end with the end-of-sequence id.", True, macro="INPUT_EOS"
    )
    data_dir: str | None = setting(
        "Folder of rows, DATASET/SPLIT.jsonl[.gz] or .parquet; None uses made-up rows.",
        None,
        macro="DATA_DIR",
        path=True,
        resume=Resume.FREE,
    )
    mixture_rates: str = setting(
        "Rates by published sizes (recipe), by the rows at hand (rows), or all alike (equal).",
        "recipe",
        macro="MIXTURE_RATES",
        choices=RATES,
    )
    length_buckets: tuple[tuple[int, int], ...] | None = setting(
        "(inputs, targets) lengths that batches are padded to; None pads to the full lengths. With PACK = False.",
        None,
        macro="LENGTH_BUCKETS",
        unit="tokens",
        minimum=1,
    )
    length_window: int = setting(
        "Batches whose examples are sorted by length together, which saves padding. With PACK = False.",
        1,
        macro="LENGTH_WINDOW",
        unit="batches",
        minimum=1,
    )
    task_modules: tuple[str, ...] = setting(
        "Python modules or files that register custom datasets; they run with your rights.",
        (),
        macro="TASK_MODULES",
        path=True,
    )
    exclude_templates: Mapping[str, tuple[str, ...]] | None = setting(
        "Templates that are not trained on: {'qasc': ['is_correct_2']}.",
        None,
        macro="EXCLUDE_TEMPLATES",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pack and (self.length_buckets is not None or self.length_window > 1):
            name = "LENGTH_WINDOW" if self.length_buckets is None else "LENGTH_BUCKETS"
            raise UserError(
                f"PACK: expected False with {name}, which pads batches to few lengths; packed rows need none"
            )
