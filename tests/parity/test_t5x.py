"""Against T5X itself: logits, loss, Adafactor over ten steps, and its own checkpoint readers and writers.

T5X is on no registry; where it is not installed these tests are skipped. To run them, install it from its source
repository (docs/t5x.md) and `pytest tests/parity/test_t5x.py`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flipped_core.errors import UserError
from flipped_t5x import requirement
from t5_engine import config as sizes
from t5_engine import exchange, losses, optimizer, t5x_format
from t5_engine.config import T5Config
from t5_engine.model import T5, init_params, unstack
from t5_engine.stored_arrays import HeldArray
from t5_engine.t5x_format import T5XWeights
from t5_engine.weights import OwnWeights, to_params

try:
    requirement.prepare()
except requirement.T5XMissing as _error:
    pytest.skip(str(_error), allow_module_level=True)
# isort: split
import seqio
from t5x import adafactor, checkpoints, models, partitioning, utils
from t5x.examples.scalable_t5 import network as scanned_network
from t5x.examples.t5 import network

# Wide enough that second moments are factored (from 128 on); the heads together are as wide as the model.
CONFIG = T5Config(
    vocab_size=160,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=192,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.0,
)
RATE, STEPS, Z_LOSS = 1e-3, 10, 1e-4


@functools.lru_cache(maxsize=4)
def t5x_model(config: T5Config, scanned: bool = False) -> Any:
    """T5X's own model of that size, with its Adafactor as its T5 configurations set it."""
    fields = {
        "vocab_size": config.vocab_size,
        "emb_dim": config.emb_dim,
        "num_heads": config.num_heads,
        "head_dim": config.head_dim,
        "mlp_dim": config.mlp_dim,
        "num_encoder_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "mlp_activations": ("gelu", "linear"),
        "dropout_rate": 0.0,
        "logits_via_embedding": False,
        "dtype": "float32",
    }
    if scanned:
        module: Any = scanned_network.Transformer(scanned_network.T5Config(**fields))
    else:
        module = network.Transformer(network.T5Config(**fields))
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size)
    return models.EncoderDecoderModel(
        module,
        vocabulary,
        vocabulary,
        optimizer_def=adafactor.Adafactor(
            decay_rate=0.8,
            step_offset=0,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        ),
        z_loss=Z_LOSS,
        loss_normalizing_factor=models.losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS,
    )


@functools.lru_cache(maxsize=4)
def t5x_states(config: T5Config, scanned: bool = False) -> tuple[Any, Any]:
    """(what makes T5X's train states, its partitioner)."""
    model = t5x_model(config, scanned)
    shapes = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), (2, 8))
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    maker = utils.TrainStateInitializer(
        model.optimizer_def, model.get_initial_variables, shapes, partitioner
    )
    return maker, partitioner


def batch(seed: int, rows: int = 4, inputs: int = 11, targets: int = 7) -> dict[str, np.ndarray]:
    """Random words of random lengths, padded with zeros."""
    rng = np.random.default_rng(seed)

    def words(length: int) -> np.ndarray:
        ids = rng.integers(2, CONFIG.vocab_size, (rows, length)).astype(np.int32)
        ends = rng.integers(1, length + 1, rows)
        return np.where(np.arange(length)[None] < ends[:, None], ids, 0).astype(np.int32)

    target = words(targets)
    return {
        "encoder_input_tokens": words(inputs),
        "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": target,
        "decoder_loss_weights": (target > 0).astype(np.float32),
    }


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(3))


def t5x_logits(params: Any, example: dict[str, np.ndarray], scanned: bool = False) -> np.ndarray:
    module = t5x_model(CONFIG, scanned).module
    words = [example[f"{name}_tokens"] for name in ("encoder_input", "decoder_input")]
    run = jax.jit(
        lambda p: module.apply(
            {"params": p}, *words, example["decoder_target_tokens"], enable_dropout=False
        )
    )
    return np.asarray(run(params))


def our_logits(params: Any, example: dict[str, np.ndarray]) -> np.ndarray:
    words = (example["encoder_input_tokens"], example["decoder_input_tokens"])
    return np.asarray(jax.jit(lambda p: T5(CONFIG).apply({"params": p}, *words))(params))


@pytest.mark.parametrize(("rows", "inputs", "targets"), [(1, 1, 1), (3, 150, 20), (5, 16, 140)])
def test_logits(params: Any, rows: int, inputs: int, targets: int) -> None:
    """Up to distances beyond the last bucket of relative positions (128), with padding."""
    example = batch(rows, rows, inputs, targets)
    ours = our_logits(params, example)
    theirs = t5x_logits(unstack(params), example)
    real = example["decoder_loss_weights"] > 0
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5)
    assert np.abs(theirs[real]).max() > 1


def t5x_trainer(config: T5Config) -> Any:
    """(state, batch) -> (state, loss): T5X's loss and Adafactor."""
    model = t5x_model(config)

    def step(state: Any, example: Any) -> Any:
        gradient = jax.value_and_grad(model.loss_fn, has_aux=True)
        (loss, _), grads = gradient(state.params, example, None)
        return state.apply_gradient(grads, learning_rate=RATE), loss

    return jax.jit(step)


def our_trainer(config: T5Config) -> Any:
    """(params, state of the optimizer, batch) -> (params, state, loss): ours."""
    transform = optimizer.make("adafactor", RATE)

    def step(params: Any, state: Any, example: Any) -> Any:
        def loss(p: Any) -> Any:
            return losses.objective(config, p, example, z_loss=Z_LOSS)

        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state, value

    return transform.init, jax.jit(step)


def assert_close(ours: Any, theirs: Any, atol: float = 1e-5) -> None:
    mine, other = (flatten_dict(tree, sep="/") for tree in (unstack(ours), theirs))
    assert set(mine) == set(other)
    for name, value in mine.items():
        np.testing.assert_allclose(value, other[name], atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def trained(params: Any) -> tuple[Any, Any, Any]:
    """Ten steps of both on the same batches, compared at each; (T5X's state, our parameters, our state)."""
    maker, _ = t5x_states(CONFIG)
    state = maker.from_scratch(jax.random.PRNGKey(0)).replace_params(unstack(params))
    start = jax.tree.map(np.asarray, params)
    t5x_step = t5x_trainer(CONFIG)
    init, step = our_trainer(CONFIG)
    ours, ours_state = params, init(params)
    for i in range(STEPS):
        example = batch(100 + i)
        state, their_loss = t5x_step(state, example)
        ours, ours_state, our_loss = step(ours, ours_state, example)
        assert abs(float(our_loss) - float(their_loss)) <= 1e-5, i
        assert_close(ours, state.params)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, ours)
    assert min(jax.tree.leaves(moved)) > 1e-5, (
        "every parameter must have moved farther than the tolerance"
    )
    return state, ours, ours_state


def test_loss_and_adafactor_over_ten_steps(trained: Any) -> None:
    """The comparison at each step is in the fixture; here the state of the optimizers after the last one."""
    state, _, ours_state = trained
    theirs = flatten_dict(state.state_dict()["state"]["param_states"])
    found = {path: functools.partial(_held, path, np.asarray(a)) for path, a in theirs.items()}
    from t5_engine import t5x_adafactor

    shapes = t5x_format.parameter_shapes(CONFIG)
    moments = t5x_adafactor.moments_in_t5x(found, shapes.__getitem__)
    converted = t5x_adafactor.to_ours(CONFIG, int(state.step), moments)

    def compare(path: Any, ours: Any, theirs: Any) -> None:
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-9, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, ours_state, converted)


def _held(path: Any, value: np.ndarray, *, fill_missing: bool = False) -> HeldArray:
    return HeldArray("/".join(path), value)


@contextlib.contextmanager
def t5x_store(folder: pathlib.Path, layout: str, scanned: bool = False) -> Any:
    """T5X's reader and writer of checkpoints in that layout."""
    maker, partitioner = t5x_states(CONFIG, scanned)
    folder.mkdir(exist_ok=True)
    if layout == "native":
        yield checkpoints.Checkpointer(
            maker.global_train_state_shape, partitioner, str(folder), save_dtype=None
        )
        return
    store = checkpoints.OrbaxCheckpointManagerInterface(
        str(folder), maker.global_train_state_shape, partitioner
    )
    yield store
    store.wait_until_finished()
    store.close()


@pytest.mark.parametrize("layout", ["native", "orbax"])
def test_what_t5x_writes_is_read_and_goes_on_the_same(
    tmp_path: pathlib.Path, trained: Any, layout: str
) -> None:
    state, _, _ = trained
    with t5x_store(tmp_path / "t5x", layout) as store:
        store.save(state)
    weights = exchange.open_checkpoint(tmp_path / "t5x")
    assert isinstance(weights, T5XWeights)
    assert (weights.layout, weights.step) == (f"t5x {layout}", STEPS)
    assert weights.config.replace(dropout_rate=0.0) == CONFIG
    ours = to_params(weights)
    assert_close(ours, state.params, atol=0)

    folder = tmp_path / "ours"
    folder.mkdir()
    exchange.save(folder, ours, CONFIG, weights.step, exchange.moments_of(weights))
    about = json.loads((folder / f"checkpoints/{STEPS}/about/metadata").read_text())
    assert about["optimizer"] == "adafactor"
    from t5_engine import t5x_adafactor

    moments = exchange.moments_of(OwnWeights(folder))
    ours_state = t5x_adafactor.to_ours(CONFIG, STEPS, moments)
    t5x_step, (_, step) = t5x_trainer(CONFIG), our_trainer(CONFIG)
    for i in range(3):
        example = batch(200 + i)
        state, their_loss = t5x_step(state, example)
        ours, ours_state, our_loss = step(ours, ours_state, example)
        assert abs(float(our_loss) - float(their_loss)) <= 1e-5
        assert_close(ours, state.params)


@pytest.mark.parametrize("layout", ["native", "orbax"])
def test_t5x_restores_what_we_write(tmp_path: pathlib.Path, trained: Any, layout: str) -> None:
    """Parameters, step and Adafactor's state, through T5X's own readers, bit for bit."""
    state, _, _ = trained
    with t5x_store(tmp_path / "t5x", layout) as store:
        store.save(state)
    weights = exchange.open_checkpoint(tmp_path / "t5x")
    out = tmp_path / "ours"
    out.mkdir()
    moments = exchange.moments_of(weights)
    t5x_format.write(weights, out, layout=layout, moments=moments)
    with t5x_store(out, layout) as store:
        restored = store.restore(STEPS)
    jax.tree.map(np.testing.assert_array_equal, restored.state_dict(), state.state_dict())
    if layout == "native":
        loaded = checkpoints.load_t5x_checkpoint(str(out), STEPS)
        jax.tree.map(np.testing.assert_array_equal, loaded["target"], state.state_dict()["target"])


@pytest.mark.parametrize("layout", ["native", "orbax"])
def test_scanned_checkpoints_both_ways(tmp_path: pathlib.Path, params: Any, layout: str) -> None:
    """T5X's scanned model computes the same logits from what we write, and we read back what T5X wrote of it."""
    ours = tmp_path / "ours"
    ours.mkdir()
    exchange.save(ours, params, CONFIG, step=7)
    out = tmp_path / "scanned"
    out.mkdir()
    t5x_format.write(OwnWeights(ours), out, layout=layout, scanned=True)

    maker, _ = t5x_states(CONFIG, scanned=True)
    fresh = maker.from_scratch(jax.random.PRNGKey(0))
    with t5x_store(out, layout, scanned=True) as store:
        # Without an optimizer's state T5X must be told to begin with its own.
        fallback = {"state": {"param_states": fresh.state_dict()["state"]["param_states"]}}
        restored = store.restore(7, fallback_state=fallback)
    example = batch(5, 3, 40, 12)
    real = example["decoder_loss_weights"] > 0
    theirs = t5x_logits(restored.params, example, scanned=True)
    np.testing.assert_allclose(our_logits(params, example)[real], theirs[real], atol=1e-5)

    with t5x_store(tmp_path / "again", layout, scanned=True) as store:
        store.save(restored)
    weights = exchange.open_checkpoint(tmp_path / "again")
    assert weights.layout == f"t5x {layout}, scanned"
    jax.tree.map(np.testing.assert_array_equal, to_params(weights), params)

    with t5x_store(tmp_path / "other", layout, scanned=True) as store:
        store.save(fresh)  # drawn at random: each layer has another table of relative positions
    with pytest.raises(UserError, match="a table of relative positions of its own"):
        to_params(exchange.open_checkpoint(tmp_path / "other"))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_names_and_shapes_of_every_size(size: str, scanned: bool) -> None:
    """Without allocating: T5X's own model of that size has the parameters that we write."""
    config = sizes.size(size)
    model = t5x_model(config, scanned)
    shapes = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), (1, 1))
    variables = jax.eval_shape(
        lambda key: model.get_initial_variables(key, shapes), jax.random.PRNGKey(0)
    )
    theirs = {path: leaf.shape for path, leaf in flatten_dict(variables["params"]).items()}
    assert theirs == t5x_format.parameter_shapes(config, scanned)
