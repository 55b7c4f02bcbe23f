"""The size and the numeric settings of a T5.1.1 model, and the named sizes.

The letters are those of the docs: B batch, T query length, S key length, D model width, N heads, H head size,
F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flipped_core.errors import UserError, unknown
from flipped_core.settings import Resume, check_fields, setting

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "full")
ATTENTIONS = ("plain", "cudnn")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """What defines a T5.1.1 model: sizes, numeric type of the activations, initialization, execution.

    Parameters, softmax, logits and loss are float32 whatever `dtype` is. N * H need not be D.

    Raises:
      UserError: a value is not of its type or out of its bounds.
    """

    vocab_size: int = setting(
        "V, rows of the embedding (32128 for the public vocabulary).", 32128, minimum=1
    )
    emb_dim: int = setting("D, the model width.", 512, minimum=1)
    num_heads: int = setting("N, attention heads.", 6, minimum=1)
    head_dim: int = setting("H, size of a head.", 64, minimum=1)
    mlp_dim: int = setting(
        "F, width of the feed-forward block: a gated GELU with two input kernels [D, F].",
        1024,
        minimum=1,
    )
    num_encoder_layers: int = setting("L of the encoder.", 8, minimum=1)
    num_decoder_layers: int = setting("L of the decoder.", 8, minimum=1)
    dropout_rate: float = setting(
        "Probability of dropping, in training only.", 0.1, macro="DROPOUT_RATE", minimum=0, below=1
    )
    dtype: str = setting("Type of the activations.", "float32", macro="DTYPE", choices=DTYPES)
    relative_attention_num_buckets: int = setting(
        "Columns of the relative-position table, of which each stack has one.", 32, minimum=4
    )
    relative_attention_max_distance: int = setting(
        "Distances beyond it share the last bucket.", 128, unit="tokens", minimum=1
    )
    layer_norm_epsilon: float = setting("Added to the mean square in the RMS norm.", 1e-6, above=0)
    remat: str = setting(
        'What the backward pass recomputes to save memory: "minimal" keeps the matrix products of weights, '
        '"full" only each layer\'s input.',
        "none",
        macro="REMAT",
        choices=REMAT_POLICIES,
        resume=Resume.FREE,
    )
    attention: str = setting(
        '"plain" runs everywhere; "cudnn" is cuDNN\'s fused kernel, for NVIDIA GPUs and bfloat16.',
        "plain",
        choices=ATTENTIONS,
        resume=Resume.FREE,
    )
    unroll_layers: bool = setting(
        "Compile the layers one after the other instead of as a loop; the parameters are the same. Faster to run for "
        "a few small layers, slower to compile for many.",
        False,
        resume=Resume.FREE,
    )
    # Query and key kernels of self- and cross-attention start proportional to each other, so that a token attends to
    # its own repetitions; the first heads of each relative-position table prefer the previous token (and, in the
    # encoder, the next).
    matching_init: bool = setting(
        "Initialization for tiny models trained from scratch, not part of T5: attention prefers repetitions.",
        False,
    )

    def __post_init__(self) -> None:
        if self.dtype == "float16":
            raise UserError(
                "dtype 'float16' is refused: T5's activations exceed float16's largest number (65504) and "
                "overflow to infinity; use 'bfloat16', which has the range of float32, or 'float32'"
            )
        check_fields(self)
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError(f"attention 'cudnn': expected dtype 'bfloat16', got {self.dtype!r}")
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise UserError(  # the logarithmic buckets would have no distance left
                "relative_attention_max_distance: expected more than half of relative_attention_num_buckets, got "
                f"{self.relative_attention_max_distance} and {self.relative_attention_num_buckets}"
            )

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


def size_name(config: T5Config) -> str | None:
    """The name in `SIZES` of the model's size; None where it is of none of them."""
    for name, known in SIZES.items():
        if all(getattr(known, field) == getattr(config, field) for field in STRUCTURE_FIELDS):
            return name
    return None
