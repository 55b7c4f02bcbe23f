"""`train`, what train.py calls: from a mixture's name and a recipe to checkpoints in a folder.

Gin imports this module to bind `train`; what is slow to import waits until `train` is called, so that
a mistake in a gin file or on the command line is told at once.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from flipped_cli import provenance, quiet
from flipped_cli.checks import (
    WORLD_TEXTS,
    check_data_dir,
    check_lengths,
    check_model_dir,
    method_of,
)
from flipped_core.errors import UserError

if TYPE_CHECKING:
    from t5_engine.config import T5Config
    from t5_engine.partitioning import HostShare
    from t5_engine.trainer import TrainConfig

# Arguments of `train` that are no part of what it computes.
NOT_RECIPE = ("model_dir", "execution")
_EXAMPLE_ID = re.compile(r"(.+?)/[^/]+/\d+/")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out: what of it may change when it goes on.

    Attributes:
      model_parallelism: devices that share one copy of the model.
      fsdp: whether weights and optimizer's state are split over the data axis too.
      microbatches: parts of a batch that are computed one after the other; with dropout they draw other masks.
      checkpoint_period: steps between checkpoints.
      keep_checkpoints: how many of the newest stay; None keeps all.
      keep_every: checkpoints of each so many steps stay whatever their age.
      log_period: steps between lines of metrics.
      profile: (steps to let pass, steps to trace) after each start; None writes no trace.
      nominal_rate: FLOP/s of one device, for the MFU; None takes the maker's where it is known.
      coordinator_address: "host:port" of process 0; None looks for SLURM or a TPU pod.
      process_count: of the run; with an address only.
      process_id: this process's number, from 0; with an address only.
      coordinator_timeout: seconds to wait for the other processes.
    """

    model_parallelism: int = 1
    fsdp: bool = False
    microbatches: int = 1
    checkpoint_period: int = 1000
    keep_checkpoints: int | None = None
    keep_every: int | None = None
    log_period: int = 100
    profile: tuple[int, int] | None = None
    nominal_rate: float | None = None
    coordinator_address: str | None = None
    process_count: int | None = None
    process_id: int | None = None
    coordinator_timeout: float = 300.0


def train(
    *,
    mixture: str,
    model: T5Config,
    model_dir: str,
    lengths: Mapping[str, int],
    steps: int,
    batch_size: int,
    learning_rate: float,
    vocab_path: str,
    optimizer: str = "adafactor",
    warmup_steps: int = 0,
    decay: str = "constant",
    unlikelihood_weight: float = 0.0,
    z_loss: float = 0.0,
    input_eos: bool = True,
    initial_checkpoint_path: str | None = None,
    data_dir: str | None = None,
    mixture_rates: str = "recipe",
    length_buckets: Sequence[tuple[int, int]] | None = None,
    length_window: int = 1,
    seed: int = 0,
    task_modules: Sequence[str] = (),
    exclude_templates: Mapping[str, Sequence[str]] | None = None,
    execution: Execution = Execution(),  # noqa: B008 - it is immutable
) -> Any:
    """Trains a model on a mixture, or goes on from the newest checkpoint in `model_dir`.

    Args:
      mixture: such as "flipped_train", or a task such as "direct.super_glue_rte".
      model: the size and numeric settings; its dropout rate is the recipe's.
      model_dir: gets checkpoints, metrics, `run.json` and the operative gin config.
      lengths: most tokens of "inputs" and "targets".
      steps: of the optimizer, in all.
      batch_size: examples of a step over all devices.
      learning_rate: the highest.
      vocab_path: a SentencePiece model, such as T5's.
      optimizer: "adafactor" (the recipe's) or "adam".
      warmup_steps: steps in which the rate rises from 0.
      decay: "constant", "linear" or "cosine", down to 0 at the last step.
      unlikelihood_weight: the factor of L_UL (FLIPPED; Ye et al. 2022, equation 3).
      z_loss: the factor of the squared log normaliser; 0 leaves it out.
      input_eos: whether encoder inputs end with the end-of-sequence id.
      initial_checkpoint_path: where the weights start; None draws them.
      data_dir: a folder `<dataset, / as __>/<split>.jsonl[.gz]` or `.parquet`; None, the made-up world.
      mixture_rates: "recipe" (the published sizes), "rows" (the rows at hand) or "equal".
      length_buckets: (inputs, targets) lengths that a batch is padded to; None, the full lengths.
      length_window: so many batches are sorted by length together; see `flipped_tasks.batches.batches`.
      seed: of the weights, the data's order and dropout.
      task_modules: modules or files that register datasets of one's own; see `mixtures.modules`.
      exclude_templates: dataset → templates that are not trained on; see `mixtures.own.exclude_templates`.
      execution: how it is carried out.

    Returns:
      The final state, as `t5_engine.trainer.train` gives it.

    Raises:
      UserError: an argument that does not fit the data, the model or what `model_dir` holds.
    """
    recipe = {name: value for name, value in locals().items() if name not in NOT_RECIPE}
    _check(recipe, model_dir)
    from t5_engine import launch

    launch.start(
        execution.coordinator_address,
        execution.process_count,
        execution.process_id,
        execution.coordinator_timeout,
    )
    return _run(recipe, model_dir, execution)


def _check(recipe: Mapping[str, Any], model_dir: str) -> None:
    """Refuses what can be refused before anything slow is imported."""
    check_lengths(recipe["lengths"])
    check_model_dir(model_dir)
    check_data_dir(recipe["data_dir"])
    if recipe["mixture"] not in WORLD_TEXTS:
        method_of(recipe["mixture"])
    from flipped_tasks.tokens import Vocabulary

    model, vocab_path = recipe["model"], recipe["vocab_path"]
    rows_needed = Vocabulary.from_file(vocab_path).size
    if rows_needed > model.vocab_size:
        raise UserError(
            f"model.vocab_size: expected at least {rows_needed}, the rows of {vocab_path} with its "
            f"sentinels, got {model.vocab_size}"
        )


def _run(recipe: Mapping[str, Any], model_dir: str, execution: Execution) -> Any:
    """What `train` does once the processes have found each other."""
    quiet.import_tensorflow()
    import jax

    from t5_engine import partitioning, trainer

    config = _train_config(recipe, model_dir, execution)
    _register(recipe)
    mesh = partitioning.make_mesh(execution.model_parallelism)
    share = partitioning.host_share(mesh, recipe["batch_size"])
    stream = functools.partial(_arrays, recipe, share)
    # The first batch is drawn before anything is written: bad rows must not leave a folder behind.
    from_start = stream(0)
    first = next(from_start)
    primary = jax.process_index() == 0
    plain = {
        **recipe,
        "model": recipe["model"].to_dict(),
        "lengths": dict(recipe["lengths"]),
        "task_modules": [*recipe["task_modules"]],
    }
    provenance.open_run(model_dir, plain, gin.operative_config_str(), write=primary)

    def source(done: int) -> Iterator[dict[str, Any]]:
        return stream(done) if done else itertools.chain([first], from_start)

    state = trainer.train(config, recipe["model"], source, task_of)
    if primary:
        _show_counts(recipe["mixture"])
    return state


def _train_config(recipe: Mapping[str, Any], model_dir: str, execution: Execution) -> TrainConfig:
    from t5_engine import trainer

    ours = {field.name for field in dataclasses.fields(trainer.TrainConfig)}
    settings = {**recipe, **dataclasses.asdict(execution)}
    return trainer.TrainConfig(
        **{name: value for name, value in settings.items() if name in ours},
        model_dir=model_dir,
        lambda_unlikelihood=recipe["unlikelihood_weight"],
        label=recipe["mixture"],
    )


def _register(recipe: Mapping[str, Any]) -> None:
    """Makes the mixture known to SeqIO."""
    from mixtures import modules, own, registration

    modules.load(recipe["task_modules"])
    own.exclude_templates(recipe["exclude_templates"] or {})
    if recipe["mixture"] in WORLD_TEXTS:
        registration.register_world_text(
            recipe["vocab_path"], recipe["seed"], recipe["input_eos"], recipe["mixture"]
        )
        return
    names = ("mixture", "data_dir", "vocab_path", "mixture_rates", "input_eos")
    registration.register_named(*(recipe[name] for name in names))


def _arrays(
    recipe: Mapping[str, Any], share: HostShare, start_step: int
) -> Iterator[dict[str, Any]]:
    """This process's rows of the batches from `start_step` on."""
    from flipped_tasks import batches

    found = batches.batches(
        recipe["mixture"],
        recipe["lengths"],
        recipe["batch_size"],
        recipe["seed"],
        start_step=start_step,
        host_index=share.index,
        host_count=share.count,
        length_buckets=recipe["length_buckets"],
        length_window=recipe["length_window"],
    )
    yield from map(share.rows, found)


def task_of(example_id: bytes) -> str:
    """The dataset of an example's id, which is dataset/split/row/template."""
    name = example_id.decode(errors="replace")
    found = _EXAMPLE_ID.match(name)
    return found[1] if found else name


def _show_counts(mixture: str) -> None:
    """Prints, for each task, what was dropped and what was cut."""
    from flipped_tasks.counts import lines

    for line in lines(mixture):
        print(line, flush=True)
