"""The recipe in T5X's own code against our engine: 20 steps of FLIPPED, scores, SeqIO's evaluator, runs carried over.

T5X is on no registry; where it is not installed these tests are skipped. docs/t5x.md says how to run them.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import seqio

from flipped_t5x import requirement

try:
    requirement.prepare()
except requirement.T5XMissing as _error:
    pytest.skip(str(_error), allow_module_level=True)
# isort: split
from flax.core import freeze
from flax.traverse_util import flatten_dict
from t5x import checkpoints, partitioning, utils
from t5x import eval as t5x_eval
from t5x.examples.t5 import network

from flipped_eval.planning import Request
from flipped_t5x import data, score_eval
from flipped_t5x.model import FlippedModel, optimizer, vocabulary
from flipped_t5x.scoring import T5XScorer
from flipped_tasks.batches import batches
from mixtures.suites import EvalTask
from t5_engine import checkpoints as our_checkpoints
from t5_engine import exchange, losses, t5x_format
from t5_engine import optimizer as our_optimizers
from t5_engine.config import T5Config
from t5_engine.model import init_params, unstack
from t5_engine.scorer import Scorer
from t5_engine.weights import OwnWeights, to_params

RATE, LAMBDA, STEPS = 1e-3, 3.0, 20
LENGTHS = {"inputs": 64, "targets": 48}


@pytest.fixture(scope="module")
def config(small_vocab_path: str) -> T5Config:
    rows = vocabulary(small_vocab_path).vocab_size
    return T5Config(
        vocab_size=-(-rows // 128) * 128,
        emb_dim=128,
        num_heads=4,
        head_dim=32,
        mlp_dim=192,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.0,
    )


@pytest.fixture(scope="module")
def model(config: T5Config, small_vocab_path: str) -> FlippedModel:
    """T5X's model of that size, as gin/t5x/ makes it."""
    network_config = network.T5Config(
        vocab_size=config.vocab_size,
        emb_dim=config.emb_dim,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        mlp_dim=config.mlp_dim,
        num_encoder_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        logits_via_embedding=False,
        dtype="float32",
    )
    words = vocabulary(small_vocab_path)
    return FlippedModel(
        network.Transformer(network_config),
        words,
        words,
        optimizer("adafactor"),
        unlikelihood_weight=LAMBDA,
        loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
    )


@pytest.fixture(scope="module")
def params(config: T5Config) -> Any:
    return jax.jit(lambda key: init_params(config, key))(jax.random.key(3))


@pytest.fixture(scope="module")
def maker(model: FlippedModel) -> tuple[Any, Any]:
    """(what makes T5X's train states, its partitioner)."""
    shapes = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), (2, 8))
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    init = model.get_initial_variables
    return utils.TrainStateInitializer(model.optimizer_def, init, shapes, partitioner), partitioner


@pytest.fixture(scope="module")
def t5x_step(model: FlippedModel) -> Any:
    def step(state: Any, batch: Any) -> Any:
        gradient = jax.value_and_grad(model.loss_fn, has_aux=True)
        (loss, found), grads = gradient(state.params, batch, None)
        terms = [loss, *(found[name].total for name in ("loss_lm", "loss_ul"))]
        return state.apply_gradient(grads, learning_rate=RATE), terms

    return jax.jit(step)


@pytest.fixture(scope="module")
def our_step(config: T5Config) -> Any:
    transform = our_optimizers.make("adafactor", RATE)

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        def loss(p: Any) -> Any:
            return losses.objective(config, p, batch, lambda_unlikelihood=LAMBDA)

        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = transform.update(grads, opt_state, params)
        terms = [found[name] for name in ("loss", "loss_lm", "loss_ul")]
        return jax.tree.map(lambda p, u: p + u, params, updates), opt_state, terms

    return transform.init, jax.jit(step)


@pytest.fixture(scope="module")
def stream(small_vocab_path: str) -> list[dict[str, np.ndarray]]:
    """Real batches of the mixture `flipped_train`."""
    name = data.mixture("flipped_train", None, small_vocab_path)
    found = batches(name, LENGTHS, 8, seed=5)
    return [
        {key: value for key, value in next(found).items() if key != "example_ids"}
        for _ in range(STEPS + 4)
    ]


@pytest.fixture(scope="module")
def trained(params: Any, maker: Any, t5x_step: Any, our_step: Any, stream: Any) -> dict[str, Any]:
    """20 steps of both; the terms of each step."""
    state = maker[0].from_scratch(jax.random.PRNGKey(0)).replace_params(unstack(params))
    init, step = our_step
    ours, ours_state = params, init(params)
    terms = []
    for batch in stream[:STEPS]:
        state, theirs = t5x_step(state, batch)
        ours, ours_state, mine = step(ours, ours_state, batch)
        terms.append((np.array(mine, np.float64), np.array(theirs, np.float64)))
    return {"state": state, "params": ours, "opt_state": ours_state, "terms": terms}


def test_twenty_steps_of_flipped_give_the_same_losses(trained: dict[str, Any]) -> None:
    """loss, loss_lm and loss_ul, relative 1e-4 at every step; and they moved."""
    ours, theirs = (np.array(terms) for terms in zip(*trained["terms"], strict=True))
    print("largest relative difference", np.max(np.abs(ours / theirs - 1), axis=0))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert (theirs > 0).all() and theirs[-1, 1] < 0.9 * theirs[0, 1]


def test_the_weight_of_the_term_counts(model: FlippedModel, stream: Any, params: Any) -> None:
    """loss = loss_lm + λ loss_ul, and the term is 0 where no example has a wrong choice."""
    with_term, found = model.loss_fn(unstack(params), stream[0], None)
    loss_lm, loss_ul = (float(found[name].total) for name in ("loss_lm", "loss_ul"))
    assert float(with_term) == pytest.approx(loss_lm + LAMBDA * loss_ul) and loss_ul > 0
    without = {**stream[0], "wrong_weights": np.zeros_like(stream[0]["wrong_weights"])}
    _, found = model.loss_fn(unstack(params), without, None)
    assert float(found["loss_ul"].total) == 0


def _store(folder: pathlib.Path, maker: Any) -> Any:
    folder.mkdir(exist_ok=True)
    return checkpoints.OrbaxCheckpointManagerInterface(
        str(folder), maker[0].global_train_state_shape, maker[1]
    )


def _save(folder: pathlib.Path, maker: Any, state: Any) -> None:
    store = _store(folder, maker)
    store.save(state)
    store.wait_until_finished()
    store.close()


def test_t5x_to_ours_to_t5x_is_bitwise(
    trained: dict[str, Any], maker: Any, tmp_path: pathlib.Path
) -> None:
    """Parameters, step and Adafactor's state, through an own checkpoint in between."""
    _save(tmp_path / "t5x", maker, trained["state"])
    weights = exchange.open_checkpoint(tmp_path / "t5x")
    (tmp_path / "ours").mkdir()
    exchange.save(
        tmp_path / "ours", to_params(weights), weights.config, weights.step,
        exchange.moments_of(weights),
    )  # fmt: skip
    ours = OwnWeights(tmp_path / "ours")
    (tmp_path / "back").mkdir()
    t5x_format.write(ours, tmp_path / "back", layout="orbax", moments=exchange.moments_of(ours))
    store = _store(tmp_path / "back", maker)
    restored = store.restore(STEPS)
    store.close()
    jax.tree.map(
        np.testing.assert_array_equal, restored.state_dict(), trained["state"].state_dict()
    )


def test_our_run_goes_on_in_t5x(
    trained: dict[str, Any], config: T5Config, maker: Any, t5x_step: Any, our_step: Any,
    stream: Any, tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    """Trained by us, written as T5X's, restored by T5X: the next steps have the losses that ours have."""
    weights = _own(trained, config, tmp_path)
    (tmp_path / "out").mkdir()
    moments = exchange.moments_of(weights)
    t5x_format.write(weights, tmp_path / "out", layout="native", moments=moments)
    store = _store(tmp_path / "out", maker)
    state = store.restore(STEPS)
    store.close()
    assert int(state.step) == STEPS
    ours, ours_state = trained["params"], trained["opt_state"]
    for batch in stream[STEPS:]:
        state, theirs = t5x_step(state, batch)
        ours, ours_state, mine = our_step[1](ours, ours_state, batch)
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-4)
    mine, other = (flatten_dict(tree, sep="/") for tree in (unstack(ours), state.params))
    for name, value in mine.items():
        np.testing.assert_allclose(value, other[name], atol=2e-5, err_msg=name)


def _own(trained: dict[str, Any], config: T5Config, folder: pathlib.Path) -> OwnWeights:
    """Our run's parameters and our Adafactor's state, written as training writes them."""
    store = our_checkpoints.Checkpoints(folder / "own")
    store.save(STEPS, trained["params"], trained["opt_state"], config, "adafactor")
    store.wait()
    return OwnWeights(folder / "own")


@pytest.mark.parametrize("method", ["direct", "channel", "flipped"])
def test_scores_and_predictions_on_real_rows(
    method: str, config: T5Config, model: FlippedModel, maker: Any, trained: dict[str, Any],
    small_vocab_path: str, real_rows_dir: str,
) -> None:  # fmt: skip
    """T5X's evaluator and `T5XScorer` against our scorer, on the rows of CB."""
    task = EvalTask("nlp14", "cb", "super_glue/cb", "validation", "MNLI crowdsource")
    settings = score_eval.Settings(
        real_rows_dir, small_vocab_path, tuple(LENGTHS.items()), True, Request(()).seed
    )
    cases = score_eval.cases(task, method, settings)
    pairs = [pair for case in cases for pair in case.pairs]
    ours = Scorer(config, trained["params"]).score(pairs)
    weights = unstack(trained["params"])
    np.testing.assert_allclose(T5XScorer(model, weights, 16).score(pairs), ours, atol=2e-3)

    name = score_eval.register(
        f"{method}.super_glue_cb.MNLI_crowdsource_score_eval", real_rows_dir, small_vocab_path,
        LENGTHS,
    )  # fmt: skip
    plain = _plain(model)
    evaluator = t5x_eval.InferenceEvaluator(
        utils.DatasetConfig(name, LENGTHS, "validation", 16, shuffle=False, seed=0),
        seqio.Evaluator, plain, maker[1],
    )  # fmt: skip
    state = maker[0].from_scratch(jax.random.PRNGKey(0)).replace_params(freeze(weights))
    found = evaluator.evaluate(state, maker[0].train_state_axes).result()[name]
    places = np.cumsum([0, *(len(case.pairs) for case in cases)])
    hits = [
        case.is_right(int(np.argmax(ours[begin:end])))
        for case, begin, end in zip(cases, places[:-1], places[1:], strict=True)
    ]
    assert len(cases) > 40
    assert found["examples"] == len(cases)
    assert found["accuracy"] == pytest.approx(100 * np.mean(hits))


def _plain(model: FlippedModel) -> FlippedModel:
    """The model as gin/t5x/eval.gin makes it."""
    return FlippedModel(
        model.module, model.input_vocabulary, model.output_vocabulary, None,
        loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
    )  # fmt: skip
