"""Checkpoints: which are kept, which are whole, and what becomes of those that are not."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

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


def save_in(folder, config, steps, **policy):
    store = checkpoints.Checkpoints(folder, **policy)
    for step in steps:
        params = jax.tree.map(
            lambda leaf, step=step: np.full(leaf.shape, step, np.float32), abstract_params(config)
        )
        store.save(step, params, {"count": np.int32(step)}, config, "none", {"batches": step})
    store.close()


@pytest.fixture
def save(tiny, tmp_path):
    """Saves steps, whose parameters are all equal to the step."""
    return lambda *steps, **policy: save_in(tmp_path, tiny, steps, **policy)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_in(folder, tiny, (1, 2, 3))
    return folder


@pytest.fixture
def steps(saved, tmp_path):
    """The folder of steps 1, 2 and 3."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True) / "checkpoints"


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


def flip(file, at=0.5):
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 1
    file.write_bytes(content)


def arrays_of(folder):
    """The files of the parameters' numbers, longest first."""
    files = [path for path in folder.glob("params/**/d/*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def break_a_bit(folder):
    flip(arrays_of(folder)[0])


def break_by_swapping(folder):
    """Two files for each other, of one length."""
    one, other = arrays_of(folder)[0], arrays_of(folder.parent / "2")[0]
    assert one.stat().st_size == other.stat().st_size
    one.write_bytes(other.read_bytes())


def edit(folder, name, **fields):
    """Other metadata, with checksums that fit them."""
    file = folder / name / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    checksums.write(folder)


def write_checksums(folder, text):
    (folder / checksums.FILE).write_bytes(text)


DAMAGE = {
    "a bit": (break_a_bit, "expected CRC-32"),
    "swapped files": (break_by_swapping, "expected CRC-32"),
    "no checksums": (lambda f: (f / checksums.FILE).unlink(), "has no checksums.json"),
    "checksums cut": (lambda f: os.truncate(f / checksums.FILE, 99), "checksums.json cannot be"),
    "checksums empty": (lambda f: write_checksums(f, b"{}"), "is not in checksums.json"),
    "checksums a list": (lambda f: write_checksums(f, b"[]"), "expected a JSON object"),
    "checksums mistyped": (lambda f: write_checksums(f, b'{"a": 1}'), "expected bytes and crc32"),
    "checksums deep": (lambda f: write_checksums(f, b"[" * 10**5), "checksums.json cannot be read"),
    "checksums no text": (lambda f: write_checksums(f, b"\xff\x00"), "checksums.json cannot be"),
    "another step": (lambda f: edit(f, "about", step=2), "it was saved at step 2"),
    "a step of text": (lambda f: edit(f, "about", step="3"), "step: expected a JSON integer"),
    "a model of text": (lambda f: edit(f, "about", model="t5"), "model: expected a JSON object"),
    "a size of text": (lambda f: edit(f, "about", model={"emb_dim": "4"}), "model: vocab_size is"),
    "progress mistyped": (
        lambda f: edit(f, "progress", batches=[3]),
        "expected a number of batches",
    ),
    "a random key of text": (lambda f: edit(f, "progress", dropout_key="k"), "integers of 32 bits"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_it_used(steps, tmp_path, capfd, kind):
    damaged = steps / "3"
    damage, reason = DAMAGE[kind]
    damage(damaged)
    capfd.readouterr()
    store = checkpoints.Checkpoints(tmp_path)
    assert store.resumable() == 2
    store.close()
    [line] = capfd.readouterr().err.splitlines()
    assert f"{damaged} is not whole" in line and reason in line and "2 is used" in line
    assert checkpoints.load(tmp_path)[2] == 2
    with pytest.raises(UserError, match=f"{damaged} is not whole: .*{reason}"):
        checkpoints.load(damaged)


def test_the_check_of_every_byte_can_be_turned_off(steps, tmp_path):
    """Lengths and metadata are still checked then; a checkpoint without checksums opens."""
    newest = steps / "3"
    opt_state = max(newest.glob("opt_state/**/d/*"), key=lambda path: path.stat().st_size)
    flip(opt_state)
    assert checkpoints.find(tmp_path).name == "3"  # which is not read for the parameters
    assert checkpoints.find(tmp_path, items=None).name == "2"
    assert checkpoints.Checkpoints(tmp_path, verify=False).resumable() == 3
    os.truncate(opt_state, 1)
    assert checkpoints.find(tmp_path, verify=False).name == "2"
    (newest / checksums.FILE).unlink()
    assert checkpoints.find(tmp_path, verify=False).name == "3"
    assert checkpoints.find(tmp_path).name == "2"


def test_damage_is_out_of_the_way_of_later_saves(steps, tmp_path, tiny, capfd):
    """It does not count as one of those to keep, and is kept under another name when its step is saved again."""
    for step in "23":
        break_a_bit(steps / step)
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    assert store.resumable() == store.newest == 1
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(tiny))
    for step in (2, 3):
        store.save(step, params, {"count": np.int32(step)}, tiny, "none")
    store.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2.incomplete", "3", "3.incomplete"]
    assert checkpoints.load(tmp_path)[2] == 3
    assert capfd.readouterr().err.count("it is kept as") == 2


def test_a_run_of_which_nothing_is_whole_is_not_started_again_by_itself(steps, tmp_path, capfd):
    shutil.rmtree(steps / "3")
    for step in "12":
        break_a_bit(steps / step)
    store = checkpoints.Checkpoints(tmp_path)
    with pytest.raises(
        UserError, match="2 is not whole .*/1 is not whole .*move them away"
    ) as told:
        store.resumable()
    assert "\n" not in str(told.value)
    for step in "12":  # a first save that did not end is no such run
        break_marker(steps / step)
    assert store.resumable() is None
    store.close()
    assert capfd.readouterr().err.count("no older one is there") == 2


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
