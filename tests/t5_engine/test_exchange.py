"""What opens a path whatever its layout, folders that appear whole, and checks of everything in a checkpoint."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flipped_core.errors import UserError
from t5_engine import (
    checkpoints,
    exchange,
    huggingface_folder,
    manifest,
    partitioning,
    t5x_format,
    verification,
)
from t5_engine.checkpoint_metadata import read_metadata
from t5_engine.config import T5Config
from t5_engine.weights import OwnWeights, lazy_params, to_params
from tests.t5_engine.stored import InMemory, assert_same


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, config: T5Config, params: Any
) -> dict[str, pathlib.Path]:
    """The same parameters in every layout: format -> folder."""
    root = tmp_path_factory.mktemp("stored")
    found = {name: root / name for name in exchange.FORMATS}
    for folder in found.values():
        folder.mkdir()
    exchange.save(found["flipped"], params, config, step=3)
    huggingface_folder.write(InMemory(config, params), found["hf"])
    t5x_format.write(InMemory(config, params, 3), found["t5x"])
    return found


@pytest.mark.parametrize("name", exchange.FORMATS)
def test_every_layout_is_found_and_loaded(
    name: str, stored: dict[str, pathlib.Path], config: T5Config, params: Any
):
    path = stored[name]
    assert exchange.detect(path) == name
    loaded, found, step = exchange.load(path)
    assert_same(loaded, params)
    assert step == (0 if name == "hf" else 3)
    mesh = partitioning.make_mesh()
    shardings = partitioning.param_shardings(config, mesh)
    placed = exchange.load_for(str(path), config.replace(dtype="bfloat16"), shardings)
    assert_same(placed, params)
    jax.tree.map(
        lambda leaf, sharding: leaf.sharding == sharding or pytest.fail(), placed, shardings
    )
    with pytest.raises(UserError, match="of another model: mlp_dim is 24 there and 25 here"):
        exchange.load_for(path, config.replace(mlp_dim=25))


def test_our_checkpoint_is_one_that_training_reads(
    stored: dict[str, pathlib.Path], config: T5Config, params: Any
):
    """By its step's folder too, with the checksums and the commit marker that restoring asks for."""
    step = stored["flipped"] / "checkpoints" / "3"
    assert exchange.detect(step) == "flipped"
    assert checkpoints.broken(checkpoints.find(step)) is None
    assert_same(checkpoints.load(step)[0], params)
    assert_same(to_params(OwnWeights(step)), params)
    assert read_metadata(step).optimizer == exchange.NO_OPTIMIZER


def test_leaves_are_read_only_when_they_are_used(config: T5Config, params: Any):
    weights = InMemory(config, params)
    read: list[Any] = []
    leaf = weights.leaf
    weights.leaf = lambda path: read.append(path) or leaf(path)  # type: ignore[method-assign]
    tree = lazy_params(weights)
    assert not read
    assert_same(jax.tree.map(np.asarray, tree), params)
    assert set(read) == set(flatten_dict(params))


def test_what_is_no_checkpoint_is_told(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="there is nothing"):
        exchange.detect(tmp_path / "none")
    with pytest.raises(UserError, match=r"expected checkpoints/<step> \(ours\), config.json"):
        exchange.detect(tmp_path)
    with pytest.raises(UserError, match="unknown format 't5'; nearest: 't5x'"):
        exchange.open_as("t5", tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: pathlib.Path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), manifest.new_folder(out) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    with manifest.new_folder(out) as folder:
        assert not out.exists()
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text("whole")
        (folder / "d").write_text("")
    assert sorted(child.name for child in out.parent.iterdir()) == ["out"]
    content = json.loads((out / manifest.FILE).read_text())["files"]
    # The digests of "whole" and of nothing, by sha256sum.
    assert content["b/c"]["sha256"].startswith("5d5766cf")
    assert content["d"]["sha256"].startswith("e3b0c442")
    assert content["b/c"]["bytes"] == 5
    with pytest.raises(UserError, match="out exists already"), manifest.new_folder(out):
        pytest.fail("not reached")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        manifest.new_folder(tmp_path / "file" / "x"),
    ):
        pytest.fail("not reached")


def test_a_manifest_tells_every_difference(tmp_path: pathlib.Path):
    out = tmp_path / "out"
    with manifest.new_folder(out) as folder:
        for name in "abcd":
            (folder / name).write_text(name)
    assert manifest.problems(out) == []
    (out / "a").unlink()
    (out / "b").write_text("x")
    (out / "c").write_text("longer")
    (out / "e").write_text("new")
    assert manifest.problems(out) == [
        "a: missing",
        "b: other bytes than were written",
        "c: 6 bytes, expected 1",
        "e: not in the manifest",
    ]
    (out / manifest.FILE).write_text('{"format": 2, "files": {}}')
    with pytest.raises(UserError, match="not a manifest: format 2, expected 1"):
        manifest.problems(out)


@pytest.mark.parametrize("layout", ["hf", "native", "orbax"])
def test_what_is_read_is_compared_with_the_manifest(
    tmp_path: pathlib.Path, config: T5Config, params: Any, layout: str
):
    """Only what is read: a card may be edited."""
    out = tmp_path / "out"
    with manifest.new_folder(out) as folder:
        (folder / "README.md").write_text("card")
        if layout == "hf":
            huggingface_folder.write(InMemory(config, params), folder)
        else:
            t5x_format.write(InMemory(config, params, 3), folder, layout=layout)
    (out / "README.md").write_text("edited")
    assert_same(exchange.load(out)[0], params)
    files = [path for path in out.rglob("*") if path.is_file() and path.name != manifest.FILE]
    largest = max(files, key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    for place in range(len(whole) // 2, len(whole), len(whole) // 16):
        changed = bytearray(whole)
        changed[place] ^= 1
        largest.write_bytes(changed)
        with contextlib.suppress(UserError):  # it hit what OCDBT reads to find the arrays
            exchange.open_checkpoint(out, verify=False)
            break
    with pytest.raises(UserError, match=f"is not as it was written: .*{largest.name}"):
        exchange.load(out)
    exchange.open_checkpoint(out, verify=False)
    largest.write_bytes(whole)
    (out / manifest.FILE).write_text("[]")
    with pytest.raises(UserError, match="manifest.json: expected a JSON object, got list"):
        exchange.load(out)


def test_a_number_that_is_not_finite_is_found(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    flat = {path: np.array(leaf) for path, leaf in flatten_dict(params).items()}
    flat["encoder", "layers", "mlp", "wo", "kernel"][1, 2, 3] = np.nan
    broken = InMemory(config, unflatten_dict(flat))
    with pytest.raises(UserError, match="encoder/layers/mlp/wo/kernel: 1 of 768 numbers are not"):
        verification.read_all(broken)
    assert verification.read_all(InMemory(config, params)) == len(flat)
