"""T5X's layouts, written and read without T5X; `tests/parity/test_t5x.py` compares with T5X itself."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest
import tensorstore
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from flipped_core.errors import UserError
from t5_engine import exchange, optimizer, t5x_adafactor, t5x_files, t5x_format
from t5_engine.config import T5Config
from t5_engine.model import unstack
from t5_engine.t5x_format import T5XWeights
from t5_engine.weights import OwnWeights, to_params
from tests.gcs_emulator import Emulator
from tests.t5_engine.stored import InMemory, assert_same

STEP = 5


def written(folder: pathlib.Path, config: T5Config, params: Any, **settings: Any) -> pathlib.Path:
    folder.mkdir()
    t5x_format.write(InMemory(config, params, STEP), folder, **settings)
    return folder


def native(folder: pathlib.Path, tree: Any) -> pathlib.Path:
    """A checkpoint whose arrays all stand in the msgpack file."""
    step = folder / f"checkpoint_{STEP}"
    step.mkdir(parents=True)
    (step / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    return folder


def tree_of(params: Any, **optimizer_state: Any) -> dict[str, Any]:
    target = jax.tree.map(np.asarray, unstack(params))
    state = {"step": np.int32(STEP), **optimizer_state}
    return {"version": 3, "optimizer": {"target": target, "state": state}}


@pytest.mark.parametrize("layout", ["native", "orbax"])
@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path: pathlib.Path, config: T5Config, params: Any, layout: str, scanned: bool
):
    out = written(tmp_path / "out", config, params, layout=layout, scanned=scanned)
    for path in (out, out / f"checkpoint_{STEP}"):
        weights = T5XWeights(path)
        assert weights.layout == f"t5x {layout}{', scanned' if scanned else ''}"
        assert weights.step == STEP
        assert weights.config.replace(dropout_rate=0.0) == config
        assert_same(to_params(weights), params)


def test_the_native_layout_is_zarr_under_t5x_s_names(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    """Read by nothing of ours: TensorStore's zarr driver, and the msgpack file's specifications."""
    out = written(tmp_path / "out", config, params) / f"checkpoint_{STEP}"
    content = flax.serialization.msgpack_restore((out / "checkpoint").read_bytes())
    assert content["version"] == 3
    assert content["optimizer"]["state"] == {"step": STEP}
    theirs = flatten_dict(unstack(params))
    assert {file.name for file in out.iterdir() if file.is_dir()} == {
        ".".join(("target", *path)) for path in theirs
    }
    for path, array in theirs.items():
        name = ".".join(("target", *path))
        place = {"driver": "file", "path": str(out / name)}
        store = tensorstore.open({"driver": "zarr", "kvstore": place}, open=True).result()
        np.testing.assert_array_equal(store.read().result(), array)
        spec = content["optimizer"]["target"]
        for part in path:
            spec = spec[part]
        assert spec["kvstore"] == {"driver": "file", "path": f"{name}/"}
        assert tuple(spec["metadata"]["shape"]) == array.shape


def test_large_arrays_are_cut_into_chunks(
    tmp_path: pathlib.Path, config: T5Config, params: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(t5x_files, "CHUNK_BYTES", 500)
    out = written(tmp_path / "out", config, params)
    chunks = list((out / f"checkpoint_{STEP}" / "target.token_embedder.embedding").iterdir())
    assert len(chunks) == 1 + 7  # .zarray, and 48 rows of 64 bytes in sevens
    assert_same(to_params(T5XWeights(out)), params)


def test_arrays_in_the_msgpack_file(tmp_path: pathlib.Path, params: Any):
    """Also of the first version, which had no "optimizer" around it, and with the heads of a kernel apart."""
    tree = tree_of(params)
    assert_same(to_params(T5XWeights(native(tmp_path / "a", tree))), params)
    assert_same(to_params(T5XWeights(native(tmp_path / "b", tree["optimizer"]))), params)
    query = tree["optimizer"]["target"]["encoder"]["layers_1"]["attention"]["query"]
    query["kernel"] = query["kernel"].reshape(16, 2, 8)
    assert_same(to_params(T5XWeights(native(tmp_path / "c", tree))), params)


def test_scanned_layers_may_share_a_table(tmp_path: pathlib.Path, config: T5Config, params: Any):
    """Layers in one array, joined heads, the layer on axis 0 or 1, one table a stack: other T5X models' layout."""
    for axis in (0, 1):
        target = {}
        for path, leaf in flatten_dict(params).items():
            scanned = "layers" in path
            name = (path[0], path[0], *path[2:]) if scanned else path
            target[name] = np.moveaxis(np.asarray(leaf), 0, axis) if scanned else np.asarray(leaf)
        tree = {"version": 3, "optimizer": {"target": unflatten_dict(target), "state": {}}}
        weights = T5XWeights(native(tmp_path / str(axis), tree))
        assert (weights.layout, weights.step) == ("t5x native, scanned", STEP)
        assert_same(to_params(weights), params)


def test_tables_that_differ_between_layers_are_refused(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    target = {
        name: np.array(array)
        for path, leaf in flatten_dict(params).items()
        for name, array in t5x_format._theirs(config, path, np.asarray(leaf), True)
    }
    target["decoder", "decoder", "relpos_bias", "rel_embedding"][0, 1, 0] += 1
    tree = {"version": 3, "optimizer": {"target": unflatten_dict(target), "state": {}}}
    weights = T5XWeights(native(tmp_path / "a", tree))
    with pytest.raises(UserError, match="each decoder layer has a table of relative positions"):
        to_params(weights)


Spec = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize(
    "spec",
    [
        lambda name: {"kvstore": {"driver": "gfile", "path": f"{name}/"}},
        lambda name: {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": name}},
        lambda name: {"kvstore": {"driver": "gfile"}, "path": name},  # TensorStore before 0.1.14
    ],
)
def test_specifications_of_other_places_and_times(
    tmp_path: pathlib.Path, config: T5Config, params: Any, spec: Spec
):
    out = written(tmp_path / "out", config, params)
    file = out / f"checkpoint_{STEP}" / "checkpoint"
    tree = flax.serialization.msgpack_restore(file.read_bytes())
    name = "target.token_embedder.embedding"
    old = tree["optimizer"]["target"]["token_embedder"]["embedding"]
    tree["optimizer"]["target"]["token_embedder"]["embedding"] = {**old, **spec(name)}
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    assert_same(to_params(T5XWeights(out)), params)


@pytest.mark.parametrize("name", ["/etc", "../other", "a/../../b", "", None])
def test_a_specification_may_only_name_what_stands_beside_it(
    tmp_path: pathlib.Path, params: Any, name: Any
):
    tree = tree_of(params)
    tree["optimizer"]["target"]["token_embedder"]["embedding"] = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": name},
        "metadata": {"shape": [48, 16]},
    }
    with pytest.raises(UserError, match="expected the name of an array beside it, got"):
        T5XWeights(native(tmp_path / "a", tree))


def test_early_orbax_names_arrays_beside_the_file(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    """Before Orbax wrote descriptions of trees: a msgpack file of names, and a zarr array beside it for each."""
    out = written(tmp_path / "out", config, params) / f"checkpoint_{STEP}"
    out = out.rename(out.with_name("checkpoint_9"))
    target = {
        path: f"PLACEHOLDER://target.{'.'.join(path)}" for path in flatten_dict(unstack(params))
    }
    tree = {"target": unflatten_dict(target), "state": {"step": np.int32(9)}}
    (out / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    (out / "state").mkdir()
    for file in [file for file in out.iterdir() if file.name != "state"]:
        file.rename(out / "state" / file.name)
    weights = T5XWeights(out.parent)
    assert (weights.layout, weights.step) == ("t5x orbax", 9)
    assert_same(to_params(weights), params)


def test_a_missing_chunk_does_not_become_zeros(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    out = written(tmp_path / "out", config, params) / f"checkpoint_{STEP}"
    (out / "target.encoder.layers_0.mlp.wo.kernel" / "0.0").unlink()
    with pytest.raises(UserError, match="encoder.layers_0.mlp.wo.kernel: cannot be read"):
        to_params(T5XWeights(out))


def test_a_step_that_is_not_that_of_the_folder_is_refused(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    out = written(tmp_path / "out", config, params) / f"checkpoint_{STEP}"
    with pytest.raises(UserError, match=f"checkpoint_77: it was saved at step {STEP}"):
        T5XWeights(out.rename(out.with_name("checkpoint_77")))


def test_an_array_that_no_memory_holds_is_refused_before_it_is_read(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    out = written(tmp_path / "out", config, params) / f"checkpoint_{STEP}"
    file = out / "target.token_embedder.embedding" / ".zarray"
    for name in ("shape", "chunks"):
        content = file.read_text()
        file.write_text(json.dumps({**json.loads(content), name: [2**40, 16]}))
        with pytest.raises(UserError, match="bytes, which is more than this machine's memory"):
            T5XWeights(out)
        file.write_text(content)


@pytest.mark.parametrize(
    "where, message",
    [
        (("state", "step"), "state/step: expected a number of steps, got shape"),
        (("target", "decoder", "layers_1", "mlp", "wo", "kernel"), "wo/kernel': expected shape"),
        (("state", "param_states", "token_embedder", "embedding", "m"), "momentum is in use"),
        (("state", "param_states", "token_embedder", "embedding", "v_row"), "expected at most the"),
    ],
)
def test_an_array_of_another_size_is_refused_before_it_is_read(
    tmp_path: pathlib.Path, config: T5Config, params: Any, where: Any, message: str
):
    """4 GB in chunks of one number, of which missing ones may stand for zeros: hours, if it were read."""
    zero = np.zeros(1, np.float32)
    states = {"token_embedder": {"embedding": dict.fromkeys(("v_row", "v_col", "v", "m"), zero)}}
    tree = tree_of(params, param_states=states)
    tree["optimizer"]["state"]["step"] = np.int32(0)
    parent = functools.reduce(lambda node, name: node[name], where[:-1], tree["optimizer"])
    kvstore = {"driver": "file", "path": "long/"}
    parent[where[-1]] = {"driver": "zarr", "kvstore": kvstore, "metadata": {}}
    step = native(tmp_path / "out", tree) / f"checkpoint_{STEP}"
    step = step.rename(step.with_name("checkpoint_0"))
    metadata = {"zarr_format": 2, "shape": [2**30], "chunks": [1], "dtype": "<f4", "order": "C"}
    (step / "long").mkdir()
    (step / "long" / ".zarray").write_text(
        json.dumps({**metadata, "compressor": None, "filters": None, "fill_value": 0})
    )
    began = time.process_time()
    with pytest.raises(UserError, match=message):
        weights = T5XWeights(step)
        to_params(weights)
        weights.moments()
    assert time.process_time() - began < 5


def test_the_newest_step_is_taken(tmp_path: pathlib.Path, config: T5Config, params: Any):
    written(tmp_path / "out", config, params)
    t5x_format.write(InMemory(config, params, 12), tmp_path / "out")
    assert T5XWeights(tmp_path / "out").step == 12


def test_missing_extra_and_other_parameters_are_named(tmp_path: pathlib.Path, params: Any):
    def changed(change: Callable[[Any], Any]) -> T5XWeights:
        tree = tree_of(params)
        change(tree["optimizer"]["target"])
        return T5XWeights(native(tmp_path / str(len(list(tmp_path.iterdir()))), tree))

    cases: list[tuple[Callable[[Any], Any], str]] = [
        (
            lambda t: t["decoder"]["layers_2"]["mlp"]["wo"].pop("kernel"),
            "'decoder/layers_2/mlp/wo/kernel' is missing$",
        ),
        (lambda t: t["decoder"].pop("logits_dense"), "'decoder/logits_dense/kernel' is missing$"),
        (
            lambda t: t["encoder"].update(extra={"bias": np.ones(3, np.float32)}),
            "'encoder/extra/bias' is none of T5.1.1's",
        ),
        (lambda t: t.pop("token_embedder"), "'token_embedder/embedding' is missing, which every"),
        (
            lambda t: [t[side].clear() for side in ("encoder", "decoder")],
            "expected parameters encoder/layers_0/",
        ),
        (
            lambda t: t["encoder"]["layers_1"]["mlp"]["wo"].update(
                kernel=np.ones((3, 3), np.float32)
            ),
            r"'encoder/layers_1/mlp/wo/kernel': expected shape \[24, 16\], got \[3, 3\]",
        ),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            to_params(changed(change))


def test_what_is_no_t5x_checkpoint_is_told(tmp_path: pathlib.Path):
    step = tmp_path / "checkpoint_1"
    with pytest.raises(UserError, match="there is no such folder"):
        T5XWeights(step)
    step.mkdir()
    with pytest.raises(UserError, match="expected a file 'checkpoint' or state/_METADATA there"):
        T5XWeights(step)
    file = step / "checkpoint"
    file.write_bytes(b'model_checkpoint_path: "model.ckpt-1000000"')
    with pytest.raises(UserError, match="belongs to a TensorFlow checkpoint"):
        T5XWeights(step)
    file.write_bytes(b"\x82\xa7version")
    with pytest.raises(UserError, match="not a whole msgpack file"):
        T5XWeights(step)
    file.write_bytes(flax.serialization.msgpack_serialize({"params": {}}))
    with pytest.raises(UserError, match="expected a tree with 'target'"):
        T5XWeights(step)
    (step / "state").mkdir()
    (step / "state" / "_METADATA").write_text('{"tree": 1}')
    with pytest.raises(UserError, match="not a description of a tree"):
        T5XWeights(step)


def test_a_missing_array_is_named(tmp_path: pathlib.Path, config: T5Config, params: Any):
    out = written(tmp_path / "out", config, params)
    name = "target.decoder.decoder_norm.scale"
    (out / f"checkpoint_{STEP}" / name / ".zarray").unlink()
    with pytest.raises(UserError, match=f"array '{name}' cannot be read"):
        to_params(T5XWeights(out))


def adafactor_state(config: T5Config, params: Any) -> Any:
    """A state of our Adafactor in which every number is another."""
    state = optimizer.make("adafactor", 1e-3).init(params)
    counter = iter(range(10**9))
    return jax.tree.map(
        lambda leaf: (
            np.full(leaf.shape, STEP, leaf.dtype)
            if leaf.dtype == np.int32
            else np.reshape([next(counter) for _ in range(leaf.size)], leaf.shape).astype(
                np.float32
            )
        ),
        state,
    )


@pytest.fixture(scope="module")
def wide() -> tuple[T5Config, Any]:
    """A model of which Adafactor factors some second moments (dimensions of at least 128), and not others."""
    config = T5Config(130, 128, 2, 64, 16, 1, 2)
    shapes = t5x_format.leaves(config)
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return config, unflatten_dict(flat)


@pytest.mark.parametrize("layout", ["native", "orbax"])
def test_adafactor_s_state_goes_there_and_back(
    tmp_path: pathlib.Path, wide: tuple[T5Config, Any], layout: str
):
    config, params = wide
    state = adafactor_state(config, params)
    flat = {
        tuple(t5x_adafactor._name(key) for key in keys): (lambda leaf=leaf: _Held(leaf))
        for keys, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    moments = t5x_adafactor.moments_in_ours(flat)
    kernel = ("decoder", "layers_1", "self_attention", "out", "kernel")
    assert {kind: moments[*kernel, kind].shape for kind in t5x_adafactor.KINDS} == {
        "v_row": (128,),
        "v_col": (128,),
        "v": (1,),
    }
    assert moments["encoder", "layers_0", "mlp", "wo", "kernel", "v"].shape == (16, 128)

    out = tmp_path / "t5x"
    out.mkdir()
    t5x_format.write(InMemory(config, params, STEP), out, layout=layout, moments=moments)
    own = tmp_path / "own"
    own.mkdir()
    weights = exchange.open_checkpoint(out)
    exchange.save(own, to_params(weights), config, weights.step, exchange.moments_of(weights))
    again = exchange.moments_of(OwnWeights(own))
    assert again is not None
    found = t5x_adafactor.to_ours(config, STEP, again)
    jax.tree.map(np.testing.assert_array_equal, found, state)


class _Held:
    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def read(self) -> np.ndarray:
        return self._value


def test_states_without_a_counterpart(tmp_path: pathlib.Path, config: T5Config, params: Any):
    names = flatten_dict(unstack(params))

    def states(**arrays: Any) -> dict[str, Any]:
        flat = {(*path, kind): np.asarray(a) for path in names for kind, a in arrays.items()}
        return tree_of(params, param_states=unflatten_dict(flat))

    zero = np.zeros(1, np.float32)
    other = T5XWeights(native(tmp_path / "adam", states(mu=zero, nu=zero)))
    assert other.moments() is None
    momentum = states(v=zero, v_row=zero, v_col=zero, m=np.ones(4, np.float32))
    with pytest.raises(UserError, match="momentum is in use"):
        T5XWeights(native(tmp_path / "momentum", momentum)).moments()
    moments = T5XWeights(
        native(tmp_path / "short", states(v=zero, v_row=zero, v_col=zero, m=zero))
    ).moments()
    assert moments is not None
    with pytest.raises(UserError, match=r"/kernel/v': expected shape \[16, 16\], got \[1\]"):
        t5x_adafactor.to_ours(config, STEP, moments)
    moments.pop(("decoder", "layers_0", "mlp", "wo", "kernel", "v_row"))
    with pytest.raises(UserError, match="'decoder/layers_0/mlp/wo/kernel/v_row' is missing"):
        t5x_adafactor.to_ours(config, STEP, moments)
    assert T5XWeights(written(tmp_path / "s", config, params, scanned=True)).moments() is None


READ_BUCKET = """
import sys
from t5_engine import exchange
from t5_engine.t5x_format import T5XWeights
from t5_engine.weights import leaves
for layout in ("native", "orbax"):
    path = f"gs://bucket/{layout}/checkpoint_5"
    assert exchange.detect(path) == "t5x"
    weights = exchange.open_checkpoint(path)
    print(layout, weights.step, sum(float(abs(weights.leaf(p)).sum()) for p in leaves(weights.config)))
try:
    T5XWeights("gs://bucket/nothing")
except ValueError as error:
    print(error)
"""


def test_checkpoints_in_a_bucket_are_read(
    gcs: Emulator, tmp_path: pathlib.Path, config: T5Config, params: Any
):
    """Both layouts, in a process of its own: TensorStore looks up the server's address when it is loaded."""
    for layout in t5x_files.WRITERS:
        written(tmp_path / layout, config, params, layout=layout)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            target = epath.Path("gs://bucket") / file.relative_to(tmp_path).as_posix()
            target.write_bytes(file.read_bytes())
    result = subprocess.run(
        [sys.executable, "-c", READ_BUCKET],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    native, orbax, error = result.stdout.splitlines()
    total = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(params))
    for line, layout in ((native, "native"), (orbax, "orbax")):
        name, step, found = line.split()
        assert (name, step) == (layout, str(STEP))
        assert abs(float(found) - total) < 1e-5 * total
    assert "no T5X checkpoint at gs://bucket/nothing: expected a file 'checkpoint'" in error
