"""`flipped pretrain`: rebuild the pre-trained miniature of the made-up world, with its vocabulary and model card.

Three runs of train.py on the world's text: without lists of options; with them and one encoder layer more, at a
constant learning rate; and the same while the rate falls to 0. The result is a Hugging Face folder (safetensors)
that training starts from.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import click

from flipped_cli.demo import CHECKOUT
from flipped_cli.path_options import LOCAL
from flipped_cli.side_by_side import Command, run_commands
from flipped_core import interrupts, locks
from flipped_core.errors import UserError
from flipped_core.files import read_json, to_json, write_atomically

VOCABULARY, WEIGHTS, CARD, README = "spiece.model", "model.safetensors", "card.json", "README.md"
# The runs, each from the one before.
RUNS = ("pretrain", "pretrain_lists", "pretrain_decay")
# The run before which the encoder gets one more layer, and the folder of that model.
DEEPENED_FOR, DEEPENED = "pretrain_lists", "deepened"
DEEPENED_SEED = 7
# The texts on which the card's loss is measured: another seed than those of training.
SAMPLE_SEED, SAMPLE_TEXTS = 9001, 512
COMMAND = "make pretrain"


@click.command()
@click.option(
    "--output",
    type=LOCAL,
    default="runs/pretrain",
    show_default=True,
    help="Folder of all that is made.",
)
@click.option("--seed", default=0, show_default=True, help="Of weights, texts and their order.")
@click.option(
    "--export",
    type=LOCAL,
    default=None,
    help="Folder for the finished files [default: OUTPUT/pretrained].",
)
def pretrain(output: str, seed: int, export: str | None) -> None:
    """Pre-train the miniature that `flipped demo` starts from: hours on one core.

    A run that was stopped resumes from its newest checkpoint.

    \b
    flipped pretrain --output runs/pretrain
    """
    folder = pathlib.Path(output)
    kept = f"what was trained is kept in {folder}, and the same command resumes there"
    with interrupts.at_once(lambda: kept), locks.hold(folder, "--output"):
        _pretrain(folder, seed, pathlib.Path(export) if export else folder / "pretrained")


def _pretrain(folder: pathlib.Path, seed: int, target: pathlib.Path) -> None:
    """`pretrain`, in a folder that is held."""
    os.environ.setdefault(
        "JAX_PLATFORMS", "cpu"
    )  # as its runs of train.py, which are processes of their own
    if not (folder / VOCABULARY).exists():
        click.echo("making the world's vocabulary …")
        from mixtures.world_vocabulary import make_vocabulary

        make_vocabulary(folder / VOCABULARY)
    start = None
    for number, name in enumerate(RUNS):
        if name == DEEPENED_FOR and start is not None:
            start = deepen(start, folder / DEEPENED, DEEPENED_SEED)
        run_commands([_training(folder, name, seed + number, start)])
        start = folder / name
    card = export_pretrained(folder, target)
    click.echo(
        f"{target}: loss {card['loss_on_sample']:.4f} on {SAMPLE_TEXTS} texts never trained on"
    )


def _training(folder: pathlib.Path, name: str, seed: int, start: pathlib.Path | None) -> Command:
    arguments = [
        str(CHECKOUT / "train.py"),
        f"--gin_file={CHECKOUT}/gin/runs/demo_{name}.gin",
        f"--gin.MODEL_DIR={str(folder / name)!r}",
        f"--gin.VOCAB_PATH={str(folder / VOCABULARY)!r}",
        f"--gin.SEED={seed}",
    ]
    if start is not None:
        arguments.append(f"--gin.INITIAL_CHECKPOINT_PATH={str(start)!r}")
    return Command(name, folder / "compiled", tuple(arguments))


def deepen(source: pathlib.Path, target: pathlib.Path, seed: int) -> pathlib.Path:
    """Writes the model at `source` with one more encoder layer, the last, that passes its input on at first.

    Its output kernels are 0 and the others are initialised, so that the model computes what it did before.
    """
    import jax
    import numpy as np
    from flax import traverse_util

    from t5_engine import exchange
    from t5_engine.model import init_params

    if target.exists():
        return target
    params, config, _ = exchange.load(source)
    deeper = config.replace(num_encoder_layers=config.num_encoder_layers + 1)
    fresh = traverse_util.flatten_dict(init_params(deeper, jax.random.key(seed)))
    grown = {}
    for path, old in traverse_util.flatten_dict(params).items():
        new = np.array(fresh[path])
        if new.shape != old.shape:  # a leaf of the encoder, its layers along the first axis
            if path[-2] in ("out", "wo"):
                new[:] = 0
            new[: len(old)] = old
        else:
            new = np.asarray(old)
        grown[path] = new
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True)
    tree = jax.tree.map(jax.numpy.asarray, traverse_util.unflatten_dict(grown))
    exchange.save(partial, tree, deeper, step=0)
    return partial.rename(target)


def export_pretrained(folder: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    """Writes the last run's weights, the vocabulary and the model card into `target`; returns the card.

    Raises:
      UserError: a run has no checkpoint or no log.
    """
    from t5_engine import exchange, huggingface_folder

    target.mkdir(parents=True, exist_ok=True)
    weights = exchange.open_checkpoint(folder / RUNS[-1])
    huggingface_folder.write(weights, target)
    (target / VOCABULARY).write_bytes((folder / VOCABULARY).read_bytes())
    runs = [_run(folder / name) for name in RUNS]
    card = {
        "command": COMMAND,
        "data": "texts of the made-up world (flipped_tasks/embedded/warmup.py): no prompt, no template, no row of an "
        "evaluation task",
        "runs": runs,
        "steps": sum(run["steps"] for run in runs),
        "final_loss": runs[-1]["final_loss"],
        "loss_on_sample": round(sample_loss(target), 6),
        "sample": {"seed": SAMPLE_SEED, "texts": SAMPLE_TEXTS},
        "sha256": {name: sha256(target / name) for name in (WEIGHTS, VOCABULARY)},
    }
    write_atomically(target / CARD, to_json(card))
    write_atomically(target / README, _readme(card, weights.config.to_dict()))
    return card


def _run(folder: pathlib.Path) -> dict[str, Any]:
    from t5_engine import exchange

    recipe = read_json(folder / "run.json")["recipe"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    if not lines:
        raise UserError(f"{folder}: no metrics, so no final loss")
    last = json.loads(lines[-1])
    names = ("batch_size", "optimizer", "learning_rate", "decay", "warmup_steps", "seed")
    return {
        "gin": f"gin/runs/demo_{folder.name}.gin",
        "steps": exchange.open_checkpoint(folder).step,
        "final_loss": round(last["loss"], 4),
        **{name: recipe[name] for name in names},
        **(
            {}
            if recipe["decay"] == "constant"
            else {"decay_steps": recipe.get("decay_steps") or recipe["steps"]}
        ),
    }


def sample_loss(folder: pathlib.Path) -> float:
    """Mean loss per target token on a fixed sample of texts, each read both as prefix LM and with holes."""
    from flipped_tasks import embedded
    from flipped_tasks.tokens import Vocabulary
    from flipped_tasks.warmup import sample_pairs
    from t5_engine import exchange
    from t5_engine.scorer import Scorer

    params, config, _ = exchange.load(folder)
    vocab = Vocabulary.from_file(folder / VOCABULARY)
    pairs = sample_pairs(
        embedded.warmup_texts(SAMPLE_SEED, SAMPLE_TEXTS, lists=True), vocab, SAMPLE_SEED
    )
    scores = Scorer(config, params).score(pairs)
    return -float(scores.sum(dtype="float64")) / sum(len(targets) for _, targets in pairs)


def _decay(run: dict[str, Any]) -> str:
    return (
        "constant"
        if run["decay"] == "constant"
        else f"{run['decay']} to 0 at {run['decay_steps']:,}"
    )


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _readme(card: dict[str, Any], model: dict[str, Any]) -> str:
    runs = "\n".join(
        f"| `{run['gin']}` | {run['steps']:,} | {run['batch_size']} | {run['optimizer']}, {run['learning_rate']:g}, "
        f"{_decay(run)} | {run['seed']} | {run['final_loss']} |"
        for run in card["runs"]
    )
    sums = "\n".join(f"- `{name}`: `{value}`" for name, value in card["sha256"].items())
    return f"""# The pre-trained miniature

A T5.1.1 encoder-decoder that has read about this project's made-up world. `make demo` starts DIRECT, CHANNEL and
FLIPPED from it, as the real recipe starts from the LM-adapted T5. It knows nothing of the real world.

- Rebuild: `{card["command"]}`
- Data: {card["data"]}.
- Model: {model["num_encoder_layers"]} + {model["num_decoder_layers"]} layers, width {model["emb_dim"]}, \
{model["num_heads"]} heads of {model["head_dim"]}, feed-forward {model["mlp_dim"]}, \
{model["vocab_size"]} embedding rows.
- Steps: {card["steps"]:,}, one core. Final training loss: {card["final_loss"]}.
- Loss per target token on {card["sample"]["texts"]} texts of seed {card["sample"]["seed"]}, never trained on: \
{card["loss_on_sample"]}.

| run | steps | batch | optimizer, rate, decay | seed | final loss |
|---|---|---|---|---|---|
{runs}

SHA-256:

{sums}

`card.json` holds the same facts; `tests/flipped_world/test_pretrained.py` checks the files against it.
"""
