"""From a task's ids to what the model reads: SeqIO's feature converters of the three methods."""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

_TOKENS = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


class Seq2SeqFeatureConverter(seqio.FeatureConverter):
    """DIRECT and CHANNEL: inputs [S], targets [T] → encoder and decoder tokens, loss weights 1 on the targets.

    Its output is that of T5X's own encoder-decoder converter without packing.
    """

    TASK_FEATURES = {"inputs": _TOKENS, "targets": _TOKENS}
    MODEL_FEATURES = {
        "encoder_input_tokens": _TOKENS,
        "decoder_input_tokens": _TOKENS,
        "decoder_target_tokens": _TOKENS,
        "decoder_loss_weights": _TOKENS,
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, pack: bool = False, **kwargs: object):
        """Args: pack: must be False; FLIPPED's two inputs share one target, so nothing is packed."""
        if pack:
            raise ValueError("pack: expected False, got True")
        super().__init__(pack=False, **kwargs)

    def _convert_example(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        targets = example["targets"]
        return {
            "encoder_input_tokens": example["inputs"],
            "decoder_input_tokens": seqio.utils.make_autoregressive_inputs(targets),
            "decoder_target_tokens": targets,
            "decoder_loss_weights": tf.cast(targets != 0, tf.int32),
        }

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        ds = self._pack_or_pad(ds, task_feature_lengths)
        kept = tuple(self._passthrough_features)
        return ds.map(
            lambda example: self._convert_example(example) | {key: example[key] for key in kept},
            num_parallel_calls=tf.data.experimental.AUTOTUNE,
        )

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Lengths of the model's features from those of the task's."""
        targets = task_feature_lengths["targets"]
        kept = {key: task_feature_lengths[key] for key in self._passthrough_features}
        return {
            "encoder_input_tokens": task_feature_lengths["inputs"],
            "decoder_input_tokens": targets,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": targets,
        } | kept


class FlippedFeatureConverter(Seq2SeqFeatureConverter):
    """FLIPPED: also the inputs with a wrong choice [S], and its weight: 0 where there is no wrong choice."""

    TASK_FEATURES = {**Seq2SeqFeatureConverter.TASK_FEATURES, "wrong_inputs": _TOKENS}
    MODEL_FEATURES = {
        **Seq2SeqFeatureConverter.MODEL_FEATURES,
        "wrong_encoder_input_tokens": _TOKENS,
        "wrong_weights": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
    }

    def _convert_example(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        wrong = example["wrong_inputs"]
        return super()._convert_example(example) | {
            "wrong_encoder_input_tokens": wrong,
            "wrong_weights": tf.cast(tf.reduce_any(wrong != 0), tf.int32),
        }

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Lengths of the model's features; the scalar weight counts as 1."""
        return super().get_model_feature_lengths(task_feature_lengths) | {
            "wrong_encoder_input_tokens": task_feature_lengths["wrong_inputs"],
            "wrong_weights": 1,
        }
