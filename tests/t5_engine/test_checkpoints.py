"""Checkpoints: which are kept, which are whole, and what becomes of those that are not."""

from __future__ import annotations

import os
import pathlib

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import checkpoints, checksums
from t5_engine.config import T5Config
from t5_engine.model import abstract_params


@pytest.fixture(scope="module")
def tiny():
    return T5Config(
        vocab_size=8,
        emb_dim=4,
        num_heads=1,
        head_dim=4,
        mlp_dim=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )


@pytest.fixture
def save(tiny, tmp_path):
    """Saves steps, whose parameters are all equal to the step."""

    def run(*steps, **policy):
        store = checkpoints.Checkpoints(tmp_path, **policy)
        for step in steps:
            params = jax.tree.map(
                lambda leaf, step=step: np.full(leaf.shape, step, np.float32), abstract_params(tiny)
            )
            store.save(step, params, {"count": np.int32(step)}, tiny, "none", {"batches": step})
        store.close()

    return run


def steps_in(folder):
    names = os.listdir(folder / "checkpoints")
    return sorted(int(name) for name in names if name.isdigit())


def break_marker(folder):
    (folder / checkpoints.COMMIT_MARKER).unlink()


def break_missing_file(folder):
    next(path for path in folder.glob("params/*") if path.is_file()).unlink()


def break_short_file(folder):
    largest = max(
        folder.rglob("params/**/*"), key=lambda path: path.stat().st_size * path.is_file()
    )
    os.truncate(largest, largest.stat().st_size // 2)


def test_newest_are_kept_and_those_of_every_so_many_steps(save, tmp_path):
    save(2, 4, 6, 8, 9, 10, keep=2, keep_every=4)
    assert steps_in(tmp_path) == [4, 8, 9, 10]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "4", "8", "9"]


def test_without_a_policy_all_are_kept(save, tmp_path):
    save(1, 2, 3)
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("damage", [break_marker, break_missing_file, break_short_file])
def test_the_newest_whole_one_is_used_and_the_broken_one_named(save, tmp_path, capfd, damage):
    save(1, 2, 3)
    broken = tmp_path / "checkpoints" / "3"
    damage(broken)
    before = sorted(path for path in broken.rglob("*"))
    params, _, step = checkpoints.load(tmp_path)
    assert step == 2 and {float(leaf.max()) for leaf in jax.tree.leaves(params)} == {2.0}
    told = capfd.readouterr().err
    assert str(broken) in told and "not whole" in told and "checkpoints/2 is used" in told
    assert told.count("\n") == 1
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    assert store.newest == 2 and store.progress(2) == {"batches": 2}
    store.close()
    assert sorted(path for path in broken.rglob("*")) == before
    with pytest.raises(UserError, match=f"{broken} is not whole"):
        checkpoints.load(broken)


def test_a_broken_one_in_the_way_is_kept_under_another_name(save, tmp_path, capfd):
    save(1, 2)
    break_marker(tmp_path / "checkpoints" / "2")
    save(2, keep=1)
    assert "it is kept as" in capfd.readouterr().err
    assert checkpoints.load(tmp_path)[2] == 2
    assert (tmp_path / "checkpoints" / "2.incomplete" / "params").is_dir()


def test_a_save_that_did_not_end_is_named_and_replaced_with_a_word(save, tmp_path, capfd):
    save(1)
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (unfinished / "params").mkdir(parents=True)
    assert checkpoints.load(tmp_path)[2] == 1
    assert f"{unfinished} was left by a save that did not end" in capfd.readouterr().err
    save(2)
    assert f"{unfinished}, left by a save that did not end, is replaced" in capfd.readouterr().err
    assert checkpoints.load(tmp_path)[2] == 2 and not unfinished.exists()


def test_whole_checkpoints_are_not_overwritten(save):
    save(1)
    with pytest.raises(UserError, match="not overwritten"):
        save(1)


def test_checksums_name_the_file_that_was_changed(save, tmp_path):
    save(1)
    folder = tmp_path / "checkpoints" / "1"
    assert checksums.differences(folder) == []
    largest = max(
        folder.rglob("params/**/*"), key=lambda path: path.stat().st_size * path.is_file()
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    [line] = checksums.differences(folder)
    assert line.startswith(str(largest.relative_to(folder))) and "CRC-32" in line
    assert checksums.differences(folder, read=()) == []


def test_where_none_is_whole_one_line_says_why(save, tmp_path, capfd):
    save(1)
    break_marker(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="no checkpoint at .*checkpoints/1 is not whole .*marker"):
        checkpoints.load(tmp_path)
    assert capfd.readouterr().err == ""


def test_nothing_at_all_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        checkpoints.load(pathlib.Path(tmp_path) / "nowhere")
    with pytest.raises(UserError, match="keep_checkpoints: expected at least 1"):
        checkpoints.Checkpoints(tmp_path, keep=0)
