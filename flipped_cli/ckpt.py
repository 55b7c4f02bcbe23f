"""`flipped ckpt`: make, convert, describe, check and copy checkpoints."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from etils import epath

from flipped_cli import offline, provenance
from flipped_cli.path_options import READ, WRITTEN
from flipped_core import files, hub
from flipped_core.errors import UserError
from flipped_core.paths import to_path
from flipped_core.sealed import read_json_file
from flipped_eval import recipes
from flipped_eval.recipes import VOCABULARY

if TYPE_CHECKING:
    from t5_engine.config import T5Config
    from t5_engine.weights import Weights

ORIGIN = "origin.json"
CARD = "README.md"
# Small files that go with a checkpoint when it is copied.
BESIDE = (
    provenance.RUN_FILE,
    provenance.OPERATIVE_GIN_FILE,
    ORIGIN,
    VOCABULARY,
    recipes.RECIPE_FILE,
)


@click.group()
def ckpt() -> None:
    """Make, import, export, describe, verify and copy checkpoints.

    A checkpoint is a run's folder (its newest is taken), one of its steps, a Hugging Face folder,
    hf://OWNER/NAME[@REVISION] on its hub, or a T5X checkpoint in a folder or a bucket (gs://…). What is
    written gets a manifest with a SHA-256 of each file.
    """


@ckpt.command()
@click.argument("out", type=WRITTEN)
@click.option("--model", required=True, help="small, base, large, xl, xxl, or tiny.")
@click.option("--vocab", type=READ, required=True, help="The SentencePiece model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@offline.option
def init(out: str, model: str, vocab: str, seed: int) -> None:
    """Draw the parameters of a model at random, as T5X initialises them, and write them to OUT.

    \b
    flipped ckpt init runs/tiny --model tiny --vocab sentencepiece.model
    """
    from flipped_tasks.tokens import Vocabulary
    from t5_engine import config, exchange, manifest

    vocab = hub.vocabulary(vocab)
    rows = Vocabulary.from_file(vocab).size
    settings = config.size(model, vocab_size=rows)
    with manifest.new_folder(out) as folder:
        import jax

        from t5_engine.model import init_params

        params = jax.jit(lambda key: init_params(settings, key))(jax.random.key(seed))
        exchange.save(folder, params, settings, step=0)
        _write_origin(folder, "init", model=model, seed=seed)
        manifest.copy(vocab, folder / VOCABULARY)
    click.echo(f"{out}: {model}, {_count(settings):,} parameters, drawn with seed {seed}")


@ckpt.command("import")
@click.argument("source", type=READ)
@click.argument("out", type=WRITTEN)
@click.option("--from", "kind", required=True, help="hf or t5x.")
@click.option("--model", help="The size that it must be of [default: any].")
@click.option("--vocab", type=READ, help="The SentencePiece model [default: the folder's own].")
@offline.option
def import_(source: str, out: str, kind: str, model: str | None, vocab: str | None) -> None:
    """Read a Hugging Face folder or a T5X checkpoint and write a checkpoint of ours to OUT.

    \b
    flipped ckpt import hf://google/t5-v1_1-small runs/small --from hf
    flipped ckpt import t5x/checkpoint_1000 runs/xl --from t5x --model xl
    """
    _refuse_other_kind(kind)
    source = hub.pin(source)
    from t5_engine import checkpoints, config, exchange, huggingface_folder, manifest
    from t5_engine.weights import refuse_other_size, to_params

    if model is not None and hub.is_reference(source):  # before its tensors are downloaded
        found = huggingface_folder.read_config(source)
        checkpoints.refuse_other_model(source, found, config.size(model))
    weights = exchange.open_as(kind, source)
    if model is not None:
        refuse_other_size(weights, model)
    recipe = _recipe(source, weights, vocab)
    with manifest.new_folder(out) as folder:
        moments = exchange.moments_of(weights)
        exchange.save(folder, to_params(weights), weights.config, weights.step, moments)
        _write_origin(folder, "import", source=source, layout=weights.layout)
        _write_recipe(folder, recipe)
    click.echo(
        f"{out}: {weights.layout}, step {weights.step}, {_count(weights.config):,} parameters"
        f"{', with the state of Adafactor' if moments is not None else ''}"
    )


@ckpt.command("export")
@click.argument("checkpoint", type=READ)
@click.argument("out", type=WRITTEN)
@click.option("--to", "kind", required=True, help="hf or t5x.")
@click.option("--vocab", type=READ, help="The SentencePiece model [default: the checkpoint's].")
@click.option("--dtype", help="hf: float32 or bfloat16 [default: float32].")
@click.option(
    "--results", type=READ, help="hf: an evaluation of this checkpoint, for the model card."
)
@click.option("--name", help="hf: the title of the model card [default: OUT's name].")
@click.option("--layout", help="t5x: native or orbax [default: native].")
@click.option("--scanned", is_flag=True, help="t5x: the layers in one array; parameters only.")
@offline.option
def export(checkpoint: str, out: str, kind: str, **settings: Any) -> None:
    """Write CHECKPOINT to OUT as a Hugging Face folder with a model card, or as a T5X checkpoint.

    \b
    flipped ckpt export runs/flipped flipped_hf --to hf
    flipped ckpt export runs/flipped flipped_t5x --to t5x --layout orbax
    """
    allowed = {
        "hf": ("vocab", "dtype", "results", "name"),
        "t5x": ("layout", "scanned"),
    }
    _refuse_other_kind(kind)
    for option, value in settings.items():
        if value and option not in allowed[kind]:
            raise UserError(f"--{option} does not go with --to {kind}")
    from t5_engine import exchange, manifest

    checkpoint = hub.pin(checkpoint)
    weights = exchange.open_checkpoint(checkpoint)
    recipe = _recipe(checkpoint, weights, settings["vocab"])
    with manifest.new_folder(out) as folder:
        if kind == "hf":
            _export_hf(weights, recipe, checkpoint, folder, pathlib.Path(out).name, settings)
        else:
            from t5_engine import t5x_format

            moments = None if settings["scanned"] else exchange.moments_of(weights)
            layout = settings["layout"] or "native"
            t5x_format.write(
                weights, folder, layout=layout, scanned=settings["scanned"], moments=moments
            )
        _write_recipe(folder, recipe)
        # Of the source only its name: an exported folder is made to be given away.
        source = checkpoint
        if not hub.is_reference(checkpoint):
            source = hub.name_of(checkpoint)
        _write_origin(folder, "export", source=source, layout=weights.layout, step=weights.step)
    click.echo(f"{out}: step {weights.step}, {_count(weights.config):,} parameters")


@ckpt.command()
@click.argument("checkpoint", type=READ)
@offline.option
def info(checkpoint: str) -> None:
    """Print a checkpoint's layout, step, size, configuration and where it comes from.

    \b
    flipped ckpt info runs/flipped
    """
    from t5_engine import exchange

    checkpoint = hub.pin(checkpoint)
    weights = exchange.open_checkpoint(checkpoint, verify=False)
    count = _count(weights.config)
    lines: dict[str, Any] = {
        "path": weights.path,
        "layout": weights.layout,
        "step": weights.step,
        "size": _size_name(weights.config),
        "parameters": f"{count:,} ({4 * count / 2**30:.2f} GiB in float32)",
        **weights.config.to_dict(),
    }
    for name, value in lines.items():
        click.echo(f"{name}: {value}")
    for line in recipes.find(checkpoint, weights.path, weights.config).lines():
        click.echo(f"recipe: {line}")
    for name in BESIDE:
        file = _beside(checkpoint, name)
        if file is not None and name.endswith(".json"):
            click.echo(
                f"{name}: {json.dumps(read_json_file(file), ensure_ascii=False, sort_keys=True)}"
            )
        elif file is not None:
            click.echo(f"{name}: {file.stat().length:,} bytes")


@ckpt.command()
@click.argument("checkpoint", type=READ)
@offline.option
def verify(checkpoint: str) -> None:
    """Check a checkpoint: the checksums that stand beside it, and that all arrays are whole and finite.

    Every parameter is read (and, of ours, the optimizer's state); it must be finite and of the shape that the
    model's configuration gives.

    \b
    flipped ckpt verify runs/flipped
    """
    from t5_engine import checksums, exchange, manifest, verification
    from t5_engine.weights import OwnWeights

    checkpoint = hub.pin(checkpoint)
    read: list[str] = []
    differences: list[str] = []
    if (folder := _with_manifest(checkpoint)) is not None:
        differences += manifest.problems(folder)
        read.append(manifest.FILE)
    weights = exchange.open_checkpoint(checkpoint, verify=False)
    if isinstance(weights, OwnWeights):
        differences += checksums.differences(weights.path)
        read.append(checksums.FILE)
    if hub.is_reference(checkpoint):
        differences += hub.differences(weights.files)  # type: ignore[attr-defined]
        read.append("the hub's SHA-256")
    for line in differences:
        click.echo(line)
    if differences:
        raise UserError(f"{weights.path}: {len(differences)} files are not as they were written")
    arrays = verification.read_all(weights)
    listed = f"files as in {' and '.join(read)}" if read else "no checksums beside it"
    click.echo(f"{weights.path}: {weights.layout}, {arrays} arrays whole and finite; {listed}")


@ckpt.command()
@click.argument("checkpoint", type=READ)
@click.argument("out", type=WRITTEN)
@offline.option
def cp(checkpoint: str, out: str) -> None:
    """Copy a checkpoint with what tells where it comes from to OUT: of a run its newest, or one of Hugging Face's.

    \b
    flipped ckpt cp runs/flipped/checkpoints/5000 best
    """
    from t5_engine import checkpoints, exchange, manifest
    from t5_engine.checkpoint_metadata import read_metadata

    checkpoint = hub.pin(checkpoint)
    if exchange.detect(checkpoint) == "hf":
        _copy_hf(checkpoint, out)
        return
    source = checkpoints.find(checkpoint, items=None)
    metadata = read_metadata(source)
    step = metadata.step
    with manifest.new_folder(out) as folder:
        (folder / checkpoints.FOLDER).mkdir()
        copied = folder / checkpoints.FOLDER / str(step)
        manifest.copy(source, copied)
        checkpoints.find(copied, items=None)  # refuses a copy that differs
        for name in BESIDE:
            if (file := _beside(checkpoint, name)) is not None:
                manifest.copy(file, folder / name)
        if not (folder / VOCABULARY).exists():
            vocab_path = recipes.find(checkpoint, str(source), metadata.config).vocab_path
            if vocab_path is not None:  # of a run that names it by its path
                manifest.copy(vocab_path, folder / VOCABULARY)
    click.echo(f"{out}: step {step}")


def _copy_hf(checkpoint: str, out: str) -> None:
    """Copies what is read of a Hugging Face folder or repository, once it has been found to be a T5 v1.1."""
    from t5_engine import manifest, tensor_files
    from t5_engine.huggingface_folder import HuggingFaceWeights

    weights = HuggingFaceWeights(checkpoint)
    source = hub.local(checkpoint)
    indexes = [source / f"{whole}{tensor_files.INDEX_SUFFIX}" for whole in tensor_files.WHOLE]
    wanted = weights.files[0].suffix
    with manifest.new_folder(out) as folder:
        for file in (*weights.files, *(source / name for name in (*BESIDE, *hub.BESIDE)), *indexes):
            is_other_index = file in indexes and wanted not in file.name
            if file.is_file() and not is_other_index and not (folder / file.name).exists():
                manifest.copy(file, folder / file.name)
        if not (folder / ORIGIN).exists():
            _write_origin(folder, "cp", source=checkpoint, layout=weights.layout)
    click.echo(f"{out}: {checkpoint}")


def _export_hf(
    weights: Weights,
    recipe: recipes.Recipe,
    checkpoint: str,
    folder: pathlib.Path,
    name: str,
    settings: Mapping[str, Any],
) -> None:
    """Writes the files that transformers reads, and the card."""
    from flipped_cli import model_card, quiet, tokenizer_files
    from t5_engine import huggingface_folder, manifest

    quiet.import_tensorflow()
    if recipe.vocab_path is None:
        raise UserError(
            "--vocab: expected the SentencePiece model, which does not stand beside the checkpoint"
        )
    results = model_card.read_results(settings["results"], weights) if settings["results"] else None
    origin = _beside(checkpoint, ORIGIN)
    card = model_card.write_card(
        settings["name"] or name,
        weights,
        recipe,
        {} if origin is None else read_json_file(origin),
        results,
        _size_name(weights.config),
    )
    with files.temporary_folder() as place:
        manifest.copy(recipe.vocab_path, place / VOCABULARY)
        tokenizer_files.write(folder, place / VOCABULARY)
    huggingface_folder.write(weights, folder, dtype=settings["dtype"] or "float32")
    (folder / CARD).write_text(card, encoding="utf-8")


def _refuse_other_kind(kind: str) -> None:
    from flipped_core.errors import unknown

    if kind not in ("hf", "t5x"):
        raise unknown("layout", kind, ("hf", "t5x"))


def _recipe(source: str, weights: Weights, vocab: str | None) -> recipes.Recipe:
    """How the source was trained, with the vocabulary that was given, which must fit the model."""
    recipe = recipes.find(source, weights.path, weights.config).given(vocab_path=vocab)
    if recipe.vocab_path is None:
        return recipe
    if vocab is None:
        from t5_engine import manifest

        path = to_path(recipe.vocab_path)
        manifest.refuse_damaged(path.parent, (path.name,))
    from flipped_tasks.tokens import Vocabulary

    needed = Vocabulary.from_file(recipe.vocab_path).num_ids
    if needed > weights.config.vocab_size:
        raise UserError(
            f"vocabulary {recipe.vocab_path} needs {needed} rows of the embedding, the model has "
            f"{weights.config.vocab_size}"
        )
    return recipe


def _write_recipe(folder: pathlib.Path, recipe: recipes.Recipe) -> None:
    """Writes `recipe.json`, and the vocabulary where it is known and not there yet."""
    from t5_engine import manifest

    (folder / recipes.RECIPE_FILE).write_text(recipes.recipe_text(recipe), encoding="utf-8")
    if recipe.vocab_path is not None and not (folder / VOCABULARY).exists():
        manifest.copy(recipe.vocab_path, folder / VOCABULARY)


def _beside(checkpoint: str, name: str) -> epath.Path | None:
    """A file in the checkpoint's folder, or in that of the run it is a step of."""
    path = hub.local(checkpoint)
    run = recipes.run_folder_of(path)
    folders = [path, *([run] if run is not None else [])]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _with_manifest(checkpoint: str) -> epath.Path | None:
    from t5_engine import manifest

    file = _beside(checkpoint, manifest.FILE)
    return None if file is None else file.parent


def _write_origin(folder: pathlib.Path, command: str, **facts: Any) -> None:
    """Writes where a folder comes from: the command, its source, the versions that made it."""
    content = {
        "command": f"flipped ckpt {command}",
        **facts,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / ORIGIN).write_text(text + "\n", encoding="utf-8")


def _count(config: T5Config) -> int:
    from t5_engine.weights import count_parameters

    return count_parameters(config)


def _size_name(config: T5Config) -> str:
    """The name of the public size that the model is of, or "none of the public sizes"."""
    from t5_engine.config import size_name

    return size_name(config) or "none of the public sizes"
