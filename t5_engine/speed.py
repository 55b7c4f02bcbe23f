"""How much arithmetic a training step is, and what share of the devices' nominal rate it reaches (MFU)."""

from __future__ import annotations

from collections.abc import Mapping

from t5_engine.config import T5Config

# FLOP/s of one device in bfloat16, dense, as its maker states it, by the beginning of JAX's `device_kind`, in lower
# case. Longer beginnings stand first.
NOMINAL_RATES = (
    ("tpu v6 lite", 918e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),
    ("tpu v4", 275e12),
    ("nvidia h200", 989e12),
    ("nvidia h100 pcie", 756e12),
    ("nvidia h100", 989e12),
    ("nvidia a100", 312e12),
)


def nominal_rate(device_kind: str) -> float | None:
    """The nominal FLOP/s of a device in bfloat16; None where it is not known, as for CPUs."""
    kind = device_kind.lower()
    return next((rate for name, rate in NOMINAL_RATES if kind.startswith(name)), None)


def forward_flops(config: T5Config, inputs: float, targets: float) -> float:
    """The arithmetic of one example's forward pass: matrix products with weights and attention's own.

    An addition and a multiplication count as two. Norms, softmax and loss are left out. An encoder-decoder runs about
    half of its weights on each token: 6 * parameters * tokens would count twice too much.

    Args:
      config: the model's.
      inputs: S, padding included.
      targets: T, likewise.
    """
    projection = config.emb_dim * config.joined_kv
    mlp = 3 * config.emb_dim * config.mlp_dim
    encoder = config.num_encoder_layers * (4 * projection + mlp + 2 * inputs * config.joined_kv)
    # Cross-attention's keys and values, in each layer of the decoder.
    cross = config.num_decoder_layers * 2 * projection
    attended = 2 * (inputs + targets) * config.joined_kv
    decoder = config.num_decoder_layers * (6 * projection + mlp + attended)
    logits = config.emb_dim * config.vocab_size
    return 2.0 * (inputs * (encoder + cross) + targets * (decoder + logits))


def step_flops(config: T5Config, inputs: float, targets: float, *, with_wrong: bool) -> float:
    """The arithmetic of one example in a training step: three forward passes, of two inputs with wrong choices.

    What remat computes once more is no useful work and does not count.
    """
    return 3 * (2 if with_wrong else 1) * forward_flops(config, inputs, targets)


def useful_flops(config: T5Config, metrics: Mapping[str, float], *, with_wrong: bool) -> float:
    """The arithmetic of a training step on its tokens, without padding: each example counts with the mean lengths.

    Attention grows with the square of the length, so that this is a little less than the sum over the examples.

    Args:
      config: the model's.
      metrics: of the step, as from `losses.objective`.
      with_wrong: whether each example has an input with a wrong choice.
    """
    examples = metrics["examples"]
    if not examples:
        return 0.0
    inputs = metrics["input_tokens"] / examples / (2 if with_wrong else 1)
    targets = metrics["tokens"] / examples
    return examples * step_flops(config, inputs, targets, with_wrong=with_wrong)
