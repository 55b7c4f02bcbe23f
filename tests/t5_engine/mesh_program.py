"""Trains a small model on one layout after the other of this process group's devices; the tests compare the results.

    python -m tests.t5_engine.mesh_program FOLDER '{"layouts": [[devices, model, fsdp, microbatches], …], …}'

Writes FOLDER/<devices>_<model>_<fsdp>_<microbatches>.npz with the losses and the final parameters, and prints what else
is to be known as JSON; likewise FOLDER/packed_….npz for the layouts in "packed". With "processes" in the request it is
one of several processes.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from t5_engine import axes, checkpoints, ladder, launch, optimizer, partitioning, processes
from t5_engine.config import T5Config
from t5_engine.scorer import Scorer
from t5_engine.step import TrainState, compiled_step, make_state, make_step, state_shardings
from tests.t5_engine.conftest import VOCAB, random_batch

# Wide enough that Adafactor factors its moments; 15 rows, which no mesh here divides.
CONFIG = T5Config(
    vocab_size=VOCAB,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=136,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
TRANSFORM = optimizer.make("adafactor", 1e-2)
ROWS, STEPS = 15, 3
# Of packed batches: any mesh and number of microbatches here divides the rows.
LENGTHS, PACKED_ROWS = {"inputs": 16, "targets": 12}, 48
PAIRS = [([3, 4, 5 + i % 2], [6 + i, 1]) for i in range(6)]


def fresh() -> TrainState:
    return make_state(CONFIG, TRANSFORM, 0)


def layout_of(devices: int, model: int, fsdp: bool) -> axes.Layout:
    mesh = partitioning.make_mesh(model, jax.devices()[:devices])
    return axes.Layout(mesh, axes.rules(fsdp))


def shardings_of(layout: axes.Layout) -> TrainState:
    return state_shardings(jax.eval_shape(fresh), CONFIG, layout)


def put(batch: Any, layout: axes.Layout, microbatches: int, packed: bool) -> dict[str, jax.Array]:
    """The batch on the devices, as the trainer puts it there."""
    if packed:
        multiple = layout.mesh.shape[axes.DATA] * microbatches
        found = ladder.fit([batch], multiple, lambda *_: 1.0, LENGTHS, (PACKED_ROWS,))
        return partitioning.put_whole_batch(found.pack(batch), layout.mesh)
    share = partitioning.host_share(layout.mesh, ROWS)
    count = ROWS // share.count
    first = share.index * count
    mine = share.rows({name: array[first : first + count] for name, array in batch.items()})
    return partitioning.put_batch(mine, layout.mesh, microbatches)


def train(
    layout: axes.Layout, microbatches: int, packed: bool = False
) -> tuple[list[float], float, TrainState]:
    """(losses, examples of the last step, final state)."""
    shardings = shardings_of(layout)
    state = jax.jit(fresh, out_shardings=shardings)()
    step = make_step(CONFIG, TRANSFORM, layout, lambda_unlikelihood=2.0, microbatches=microbatches)
    compiled = compiled_step(step, shardings)
    losses = []
    for number in range(STEPS):
        batch = random_batch(number, rows=ROWS, wrong=True)
        state, metrics = compiled(state, put(batch, layout, microbatches, packed))
        losses.append(float(metrics["loss"]))
    return losses, float(metrics["examples"]), state


def gather(state: TrainState, layout: axes.Layout) -> list[np.ndarray]:
    whole = jax.jit(lambda x: x, out_shardings=partitioning.whole(layout.mesh))(state.params)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(whole)]


def restored_elsewhere(folder: pathlib.Path, state: TrainState, layouts: Any) -> list[bool]:
    """Saves the state and, for each layout, whether restoring it there gives the same numbers."""
    store = checkpoints.Checkpoints(folder / "saved")
    store.save(3, state.params, state.opt_state, CONFIG, "adafactor")
    store.wait()
    same = []
    for devices, model, fsdp in layouts:
        shardings = shardings_of(layout_of(devices, model, fsdp))
        target = checkpoints.with_shardings(jax.eval_shape(fresh), shardings)
        found = store.restore(3, target.params, target.opt_state, CONFIG, "adafactor")
        same.append(
            all(
                np.array_equal(a, b) and b.sharding == sharding
                for a, b, sharding in zip(
                    jax.tree.leaves((state.params, state.opt_state)),
                    jax.tree.leaves(found),
                    jax.tree.leaves((shardings.params, shardings.opt_state)),
                    strict=True,
                )
            )
        )
    store.close()
    return same


def resumable_after_damage(folder: pathlib.Path, state: TrainState) -> dict[str, Any]:
    """Saves three steps, damages a file of the newest that only the last process reads, and asks where to resume.

    Returns what this process found by itself ("damage") and, asking the others, takes ("resumable", "loaded").
    """
    store = checkpoints.Checkpoints(folder / "damaged")
    for step in (1, 2, 3):
        store.save(step, state.params, state.opt_state, CONFIG, "adafactor")
    store.wait()
    if jax.process_index() == 0:
        names = sorted(json.loads((store.folder / "3" / "checksums.json").read_text()))
        mine = names[jax.process_count() - 1 :: jax.process_count()]
        # Parameters, which evaluation reads too; the names are random, and so is who reads the other files.
        params = [store.folder / "3" / name for name in mine if name.startswith("params/")]
        largest = max(params, key=lambda path: path.stat().length)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 4
        largest.write_bytes(content)
    processes.agree()
    share = (processes.index(), processes.count())
    damage = checkpoints.damage(store.folder / "3", share=share)
    resumable = store.resumable()
    store.close()
    loaded = checkpoints.find(folder / "damaged").name
    return {"damage": damage, "resumable": resumable, "loaded": loaded}


def main(folder: pathlib.Path, request: dict[str, Any]) -> None:
    if "processes" in request:
        port, count, index = request["processes"]
        launch.start(f"127.0.0.1:{port}", count, index, timeout=120)
    told: dict[str, Any] = {"devices": jax.device_count(), "examples": []}
    runs = [(True, *one) for one in request.get("packed", ())]
    for packed, devices, model, fsdp, microbatches in runs + [
        (False, *one) for one in request["layouts"]
    ]:
        layout = layout_of(devices, model, fsdp)
        losses, examples, state = train(layout, microbatches, packed)
        told["examples"].append(examples)
        name = f"{'packed_' * packed}{devices}_{model}_{int(fsdp)}_{microbatches}.npz"
        leaves = gather(state, layout)
        if jax.process_index() == 0:
            np.savez(folder / name, losses, *leaves)
        kernel = state.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
        told["shard"] = kernel.sharding.shard_shape(kernel.shape)
    if "restore_on" in request:
        told["restored"] = restored_elsewhere(folder, state, request["restore_on"])
    if request.get("damage"):
        told |= resumable_after_damage(folder, state)
    if request.get("score"):
        scorer = Scorer(CONFIG, state.params, mesh=layout.mesh)
        told["scores"] = scorer.score(PAIRS).tolist()
        told["scores_of_one"] = Scorer(CONFIG, jax.device_get(state.params)).score(PAIRS).tolist()
    print(json.dumps(told))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
