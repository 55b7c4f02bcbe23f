"""Four devices give one device's losses and scores; each weight is laid out as its declaration says."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from flipped_errors import UserError
from t5_engine import partitioning
from tests.t5_engine.conftest import FAST_COMPILATION

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Prints what one layout of the devices computes: three losses of training on 6 rows (which 4 does not divide),
# six scores, and how a kernel is laid out.
PROGRAM = """
import json, sys, tempfile
import jax, numpy as np
from t5_engine import partitioning, trainer
from t5_engine.config import T5Config
from t5_engine.scorer import Scorer
from tests.t5_engine.conftest import VOCAB, random_batch
model_parallelism, folder = int(sys.argv[1]), sys.argv[2]
config = T5Config(vocab_size=VOCAB, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=2,
                  num_decoder_layers=2, dropout_rate=0.0)
run = trainer.TrainConfig(folder, 3, 1e-2, lambda_unlikelihood=2.0, log_period=1,
                          model_parallelism=model_parallelism)
state = trainer.train(run, config, lambda start: (random_batch(s, rows=6, wrong=True) for s in range(9)))
with open(folder + "/metrics.jsonl") as file:
    rows = [json.loads(line) for line in file]
mesh = partitioning.make_mesh(model_parallelism)
pairs = [([3, 4, 5 + i % 2], [6 + i, 1]) for i in range(6)]
scores = Scorer(config, state.params, mesh=mesh).score(pairs)
kernel = state.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
print(json.dumps({"devices": jax.device_count(), "losses": [row["loss"] for row in rows],
                  "examples": rows[0]["examples"], "scores": scores.tolist(),
                  "shard": kernel.sharding.shard_shape(kernel.shape)}))
"""


def compute(devices, model_parallelism, folder):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model_parallelism), str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_four_devices_equal_one(tmp_path):
    one = compute(1, 1, tmp_path / "one")
    assert one["devices"] == 1 and one["shard"] == [2, 16, 24]
    for model_parallelism, width in ((1, 24), (2, 12)):
        four = compute(4, model_parallelism, tmp_path / str(model_parallelism))
        assert four["devices"] == 4 and four["shard"] == [2, 16, width]
        assert four["examples"] == one["examples"] == 6
        np.testing.assert_allclose(four["losses"], one["losses"], atol=1e-5)
        np.testing.assert_allclose(four["scores"], one["scores"], atol=1e-4)


def test_rows_are_padded_with_weight_zero(make_batch):
    batch = make_batch(0, rows=6)
    padded = partitioning.pad_rows(batch, 4)
    assert {len(array) for array in padded.values()} == {8}
    assert padded["decoder_loss_weights"][6:].sum() == 0
    np.testing.assert_array_equal(padded["encoder_input_tokens"][:6], batch["encoder_input_tokens"])


def test_every_logical_axis_of_the_model_has_a_rule(config):
    import flax.linen as nn

    from t5_engine.model import init_boxed

    boxed = jax.eval_shape(lambda key: init_boxed(config, key), jax.random.key(0))
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)  # noqa: E731
    specs = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=is_spec)
    named = {axis for spec in specs for axis in spec}
    assert len(specs) == len(jax.tree.leaves(nn.unbox(boxed)))
    assert named <= {axis for axis, _ in partitioning.RULES}


def test_impossible_meshes_are_named():
    with pytest.raises(UserError, match="model_parallelism: expected a divisor"):
        partitioning.make_mesh(len(jax.devices()) + 1)
