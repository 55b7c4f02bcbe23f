"""`evaluate`, what eval.py calls: from a folder of checkpoints to the results of suites.

As in `training`, what is slow to import waits until `evaluate` is called.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flipped_cli import provenance, quiet
from flipped_cli.checks import check_data_dir, method_of
from flipped_errors import UserError


def evaluate(
    *,
    checkpoint_path: str,
    output_dir: str,
    suites: Sequence[str] = ("nlp14", "labels"),
    method: str | None = None,
    vocab_path: str | None = None,
    data_dir: str | None = None,
    lengths: Mapping[str, int] | None = None,
    input_eos: bool | None = None,
    batch_size: int | None = None,
    max_examples: int | None = None,
    templates: str = "original",
    splits: Mapping[str, str] | None = None,
    exclude_datasets: Sequence[str] = (),
    length_normalize: bool = False,
    label: str | None = None,
    seed: int = 0,
    task_modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the suites by rank classification with the newest checkpoint of a folder.

    What is None is taken from the `run.json` that training left beside the checkpoints.

    Args:
      checkpoint_path: a `model_dir` of training.
      output_dir: gets predictions and `results.json`; a job that was killed goes on where it stopped.
      suites: names of suites.
      method: "direct", "channel" or "flipped".
      vocab_path: a SentencePiece model.
      data_dir: a folder `<dataset, / as __>/<split>.jsonl[.gz]` or `.parquet`; None, the made-up world.
      lengths: most tokens of "inputs" and "targets".
      input_eos: whether encoder inputs end with the end-of-sequence id.
      batch_size: pairs that the model scores at a time; None, the scorer's own.
      max_examples: examples of a split; a larger one is sampled down, with `seed`.
      templates: "original" for T0's, "all" for every usable one.
      splits: dataset -> split, where another than the suite's is wanted.
      exclude_datasets: datasets to leave out, such as "story_cloze/2016", whose rows are handed out against a
        form only; the report names what is missing.
      length_normalize: rank by log-probability per target token (DIRECT only).
      label: the run's name in reports; the method's where None.
      seed: of the sample of examples and the templates' random draws.
      task_modules: modules or files that register datasets of one's own; see `mixtures.modules`.

    Returns:
      What was written to `results.json`.

    Raises:
      UserError: an argument that does not fit the checkpoint or the data.
    """
    if not pathlib.Path(checkpoint_path).is_dir():
        raise UserError(f"checkpoint_path: expected a folder, there is none at {checkpoint_path}")
    if pathlib.Path(output_dir).resolve() == pathlib.Path(checkpoint_path).resolve():
        raise UserError(
            f"output_dir: expected another folder than checkpoint_path, got {output_dir}; both keep "
            f"a {provenance.RUN_FILE}"
        )
    check_data_dir(data_dir)
    recipe = provenance.read_recipe(checkpoint_path)
    if method is None and "mixture" in recipe:
        method = method_of(recipe["mixture"])
    vocab_path = vocab_path or recipe.get("vocab_path")
    if method is None or vocab_path is None:
        missing = "METHOD" if method is None else "VOCAB_PATH"
        raise UserError(
            f"{missing} is not given, and {checkpoint_path} has no {provenance.RUN_FILE} that says "
            f"it: --gin.{missing}=…"
        )
    quiet.import_tensorflow()
    from flipped_eval import jobs
    from mixtures import modules

    modules.load(task_modules)
    return jobs.evaluate(
        method=method,
        suites=suites,
        output_dir=output_dir,
        vocab_path=vocab_path,
        checkpoint=checkpoint_path,
        label=label,
        data_dir=data_dir,
        lengths=lengths or recipe.get("lengths"),
        input_eos=recipe.get("input_eos", True) if input_eos is None else input_eos,
        max_examples_per_task=max_examples,
        templates=templates,
        splits=splits,
        exclude_datasets=exclude_datasets,
        length_normalize=length_normalize,
        seed=seed,
        scorer_options={"batch_size": batch_size} if batch_size else None,
        announce=lambda line: print(line, flush=True),
    )
