"""`train`, what train.py calls: from a mixture's name and a recipe to checkpoints in a folder.

Gin imports this module to bind `train`; what is slow to import waits until `train` is called, so that
a mistake in a gin file or on the command line is told at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from flipped_cli import provenance, quiet
from flipped_cli.checks import WORLD_TEXT, check_data_dir, check_lengths, method_of
from flipped_errors import UserError

if TYPE_CHECKING:
    from t5_engine.config import T5Config


# Arguments of `train` that a run may change when it goes on.
NOT_RECIPE = ("model_dir", "checkpoint_period", "log_period")


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
    model_parallelism: int = 1,
    checkpoint_period: int = 1000,
    log_period: int = 100,
    seed: int = 0,
    task_modules: Sequence[str] = (),
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
      model_parallelism: devices that share one copy of the model.
      checkpoint_period: steps between checkpoints.
      log_period: steps between lines of metrics.
      seed: of the weights, the data's order and dropout.
      task_modules: modules or files that register datasets of one's own; see `mixtures.modules`.

    Returns:
      The final state, as `t5_engine.trainer.train` gives it.

    Raises:
      UserError: an argument that does not fit the data, the model or what `model_dir` holds.
    """
    recipe = {name: value for name, value in locals().items() if name not in NOT_RECIPE}
    check_lengths(lengths)
    recipe |= {"model": model.to_dict(), "lengths": dict(lengths), "task_modules": [*task_modules]}
    from flipped_tasks.tokens import Vocabulary

    check_data_dir(data_dir)
    method = None if mixture == WORLD_TEXT else method_of(mixture)
    rows_needed = Vocabulary.from_file(vocab_path).size
    if rows_needed > model.vocab_size:
        raise UserError(
            f"model.vocab_size: expected at least {rows_needed}, the rows of {vocab_path} with its "
            f"sentinels, got {model.vocab_size}"
        )
    quiet.import_tensorflow()
    import jax

    from mixtures import modules, registration
    from t5_engine import trainer

    modules.load(task_modules)
    config = trainer.TrainConfig(
        model_dir=model_dir,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        lambda_unlikelihood=unlikelihood_weight,
        z_loss=z_loss,
        optimizer=optimizer,
        warmup_steps=warmup_steps,
        decay=decay,
        initial_checkpoint_path=initial_checkpoint_path,
        checkpoint_period=checkpoint_period,
        log_period=log_period,
        model_parallelism=model_parallelism,
        label=mixture,
    )
    if method is None:
        registration.register_world_text(vocab_path, seed, input_eos)
    else:
        registration.register_named(mixture, data_dir, vocab_path, mixture_rates, input_eos)
    stream = functools.partial(
        _arrays,
        mixture,
        lengths,
        batch_size,
        seed,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        length_buckets=length_buckets,
        length_window=length_window,
    )
    # The first batch is drawn before anything is written: bad rows must not leave a folder behind.
    from_start = stream(start_step=0)
    first = next(from_start)
    provenance.open_run(model_dir, recipe, gin.operative_config_str())

    def source(done: int) -> Iterator[dict[str, Any]]:
        return stream(start_step=done) if done else itertools.chain([first], from_start)

    state = trainer.train(config, model, source)
    _show_counts(mixture)
    return state


def _arrays(*args: Any, **settings: Any) -> Iterator[dict[str, Any]]:
    """The batches without the examples' names, which are no numbers for a device."""
    from flipped_tasks import batches

    for batch in batches.batches(*args, **settings):
        yield {name: array for name, array in batch.items() if name != "example_ids"}


def _show_counts(mixture: str) -> None:
    """Prints, for each task, what was dropped and what was cut."""
    from flipped_tasks.counts import lines

    for line in lines(mixture):
        print(line, flush=True)
