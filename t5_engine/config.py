"""The size and the numeric settings of a T5.1.1 model, and the named sizes.

The letters are those of the docs: B batch, T query length, S key length, D model width, N heads, H head size,
F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flipped_core.errors import UserError, unknown

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "full")
ATTENTIONS = ("plain", "cudnn")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """What defines a T5.1.1 model: sizes, numeric type of the activations, initialisation, execution.

    Parameters, softmax, logits and loss are float32 whatever `dtype` is.

    Attributes:
      vocab_size: V, the embedding's rows (32128 for the public vocabulary).
      emb_dim: D.
      num_heads: N.
      head_dim: H. N * H need not be D.
      mlp_dim: F; the feed-forward block is a gated GELU with two input kernels [D, F].
      num_encoder_layers: L of the encoder.
      num_decoder_layers: L of the decoder.
      dropout_rate: the probability of dropping; used only in training.
      dtype: the activations' type, "float32" or "bfloat16".
      relative_attention_num_buckets: columns of the relative-position table, one table a stack.
      relative_attention_max_distance: distances beyond it share the last bucket.
      layer_norm_epsilon: added to the mean square in the RMS norm.
      remat: what the backward pass computes anew to save memory: "none"; "minimal" keeps the matrix products
        of weights; "full" keeps only each layer's input.
      attention: "plain" runs everywhere; "cudnn" is cuDNN's fused kernel, for NVIDIA GPUs and bfloat16.
      unroll_layers: True writes the layers out one after the other in the compiled program instead of looping
        over them; the parameters are the same. Faster to run for a few small layers, slower to compile for many.
      matching_init: a start for tiny models that are trained from scratch, not part of T5. Query and key kernels
        of self- and cross-attention start proportional to each other, so that a word attends to its own
        repetitions, and the first heads of each relative-position table prefer the previous word (and, in
        the encoder, the next).
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    dropout_rate: float = 0.1
    dtype: str = "float32"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    remat: str = "none"
    attention: str = "plain"
    unroll_layers: bool = False
    matching_init: bool = False

    def __post_init__(self) -> None:
        for name in _SIZE_FIELDS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.dtype == "float16":
            raise UserError(
                "dtype 'float16' is refused: T5's activations exceed float16's largest number (65504) and "
                "overflow to infinity; use 'bfloat16', which has the range of float32, or 'float32'"
            )
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.remat not in REMAT_POLICIES:
            raise unknown("remat", self.remat, REMAT_POLICIES)
        if self.attention not in ATTENTIONS:
            raise unknown("attention", self.attention, ATTENTIONS)
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError(f"attention 'cudnn': expected dtype 'bfloat16', got {self.dtype!r}")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"dropout_rate: expected 0 <= rate < 1, got {self.dropout_rate!r}")

    @property
    def joined_kv(self) -> int:
        """N * H, the width of all heads side by side."""
        return self.num_heads * self.head_dim

    def replace(self, **changes: Any) -> T5Config:
        """A copy with some fields changed; an unknown field is a `UserError`."""
        _refuse_unknown_fields(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> T5Config:
        """The inverse of `to_dict`; a field that is unknown, missing or of another type is a `UserError`.

        Fields that have no effect on the parameters may be missing: older files do not have all of them.
        """
        _refuse_unknown_fields(fields)
        for name in STRUCTURE_FIELDS:
            if name not in fields:
                raise UserError(f"{name} is missing")
        for field in dataclasses.fields(T5Config):
            value = fields.get(field.name, field.default)
            kinds = (int, float) if isinstance(field.default, float) else (type(field.default),)
            if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(
                    f"{field.name}: expected {kinds[-1].__name__}, got {str(value)[:80]!r}"
                )
        return T5Config(**fields)


_SIZE_FIELDS = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)

# Fields that change the parameters' shapes or the function that they compute: two models that differ in one of
# them cannot exchange parameters.
STRUCTURE_FIELDS = (*_SIZE_FIELDS, "layer_norm_epsilon")


def _refuse_unknown_fields(fields: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(T5Config)]
    for name in fields:
        if name not in known:
            raise unknown("field of T5Config", name, known)


def _size(layers: int, emb_dim: int, num_heads: int, head_dim: int, mlp_dim: int) -> T5Config:
    return T5Config(
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )


SIZES: dict[str, T5Config] = {
    # Not a public size: for the demo and the tests, trained from scratch on a CPU.
    "tiny": dataclasses.replace(_size(2, 64, 4, 16, 128), vocab_size=1024, unroll_layers=True),
    "small": _size(8, 512, 6, 64, 1024),
    "base": _size(12, 768, 12, 64, 2048),
    "large": _size(24, 1024, 16, 64, 2816),
    "xl": _size(24, 2048, 32, 64, 5120),
    "xxl": _size(24, 4096, 64, 64, 10240),
}


def size(name: str, **changes: Any) -> T5Config:
    """The named size of T5 v1.1 ("small" … "xxl", or "tiny"), with some fields changed."""
    if name not in SIZES:
        raise unknown("model size", name, SIZES)
    return SIZES[name].replace(**changes)
