"""Checkpoints in a bucket: a save or deletion that is cut anywhere leaves none that passes for whole."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import checkpoints, checksums
from t5_engine.config import T5Config
from t5_engine.model import abstract_params
from tests.gcs_emulator import BUCKET, Emulator

RUN = "gs://bucket/run"
CONFIG = T5Config(
    vocab_size=8,
    emb_dim=4,
    num_heads=1,
    head_dim=4,
    mlp_dim=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


def save(store: checkpoints.Checkpoints, step: int) -> None:
    """A checkpoint whose parameters are all equal to the step."""
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, step, np.float32), abstract_params(CONFIG)
    )
    store.save(step, params, {"count": np.int32(step)}, CONFIG, "none", {"batches": step})
    store.wait()


def value(path: str) -> tuple[int, float]:
    """(step, the one number that all parameters are equal to) of the checkpoint that is found there."""
    params, _, step = checkpoints.load(path)
    [number] = {float(x) for leaf in jax.tree.leaves(params) for x in np.unique(leaf)}
    return step, number


def objects(gcs: Emulator) -> dict[str, bytes]:
    return {name: gcs.read(name) for name in gcs.names()}


def put_back(gcs: Emulator, found: dict[str, bytes]) -> None:
    """Makes these objects, which were there once, all that the bucket holds."""
    for name in gcs.names():
        if name not in found:
            gcs.storage.delete_file(BUCKET, name)
    for name, content in found.items():
        gcs.write(name, content)


def steps_in(gcs: Emulator) -> set[str]:
    return {name.split("/")[2] for name in gcs.names() if name.startswith("run/checkpoints/")}


def test_checkpoints_are_saved_restored_and_deleted(gcs: Emulator) -> None:
    store = checkpoints.Checkpoints(RUN, keep=2)
    for step in (1, 2, 3):
        save(store, step)
    assert store.resumable() == 3 and store.progress(3) == {"batches": 3}
    store.close()
    assert steps_in(gcs) == {"2", "3"}
    assert value(RUN) == (3, 3.0) and value(f"{RUN}/checkpoints/2") == (2, 2.0)
    assert checksums.differences(f"{RUN}/checkpoints/3") == []


def test_a_flipped_bit_is_found_and_the_damaged_checkpoint_is_kept_aside(
    gcs: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    store = checkpoints.Checkpoints(RUN)
    save(store, 1)
    save(store, 2)
    name = next(name for name in gcs.names() if name.startswith("run/checkpoints/2/params/d/"))
    content = bytearray(gcs.read(name))
    content[-1] ^= 1
    put_back(gcs, objects(gcs) | {name: bytes(content)})
    assert store.resumable() == 1 and "expected CRC-32" in capsys.readouterr().err
    save(store, 2)
    store.close()
    assert value(RUN) == (2, 2.0) and steps_in(gcs) == {"1", "2", "2.incomplete"}


def test_a_save_or_deletion_cut_at_any_request_never_passes_for_whole(gcs: Emulator) -> None:
    """The objects before each request of a save and the deletion that follows it, as a kill there would leave them."""
    store = checkpoints.Checkpoints(RUN, keep=1)
    save(store, 1)
    seen: list[dict[str, bytes]] = []

    def record(method: str, path: str, number: int) -> None:
        if method != "GET" and (not seen or seen[-1].keys() != set(gcs.names())):
            seen.append(objects(gcs))

    gcs.faults.append(record)
    save(store, 2)
    gcs.faults.clear()
    store.close()
    seen.append(objects(gcs))
    marker = f"run/checkpoints/{{}}/{checkpoints.COMMIT_MARKER}"
    whole = {step: next(s for s in reversed(seen) if marker.format(step) in s) for step in (1, 2)}
    states = {(marker.format(1) in state, marker.format(2) in state) for state in seen}
    assert len(seen) > 20 and states == {(True, False), (True, True), (False, True)}
    for state in seen:
        for step in (1, 2):
            if marker.format(step) in state:  # with its marker, all of it
                folder = f"run/checkpoints/{step}/"
                assert all(
                    state.get(name) == content
                    for name, content in whole[step].items()
                    if name.startswith(folder)
                ), (step, sorted(state))
    for number, state in enumerate(seen[:: len(seen) // 2]):
        # Under another name: a bucket never goes back to earlier objects, which TensorStore relies on.
        put_back(gcs, {f"{number}/{name}": content for name, content in state.items()})
        run = RUN.replace("/run", f"/{number}/run")
        step = 2 if marker.format(2) in state else 1
        assert value(run) == (step, float(step))
        other = 3 - step
        if marker.format(other) not in state:
            with pytest.raises(UserError):
                checkpoints.find(f"{run}/checkpoints/{other}")


def test_a_run_resumes_where_a_save_was_cut(
    gcs: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    store = checkpoints.Checkpoints(RUN, keep=2)
    save(store, 1)
    save(store, 2)
    store.close()
    gcs.storage.delete_file(BUCKET, f"run/checkpoints/2/{checkpoints.COMMIT_MARKER}")
    store = checkpoints.Checkpoints(RUN, keep=2)
    assert store.resumable() == 1
    assert "checkpoints/2 is not whole (it has no commit marker" in capsys.readouterr().err
    save(store, 2)
    assert "left by a save or deletion that did not end, is replaced" in capsys.readouterr().err
    save(store, 3)
    store.close()
    assert value(f"{RUN}/checkpoints/2") == (2, 2.0) and steps_in(gcs) == {"2", "3"}
