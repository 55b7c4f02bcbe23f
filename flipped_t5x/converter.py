"""What T5X's model reads of FLIPPED's examples: pairs of inputs with one target."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from flipped_core.errors import UserError
from flipped_tasks.features import FlippedFeatureConverter


class PairedFeatureConverter(FlippedFeatureConverter):
    """`FlippedFeatureConverter` as T5X makes and calls it: the wrong input is as long as the right one."""

    def __init__(self, pack: bool = False, **kwargs: object):
        """Args: pack: must be False.

        Raises:
          UserError: packing was asked for.
        """
        if pack:
            raise UserError(
                "pack: expected False for FLIPPED with its unlikelihood term, got True: packing lays examples end to "
                "end by the lengths of one input and one target, and the input with the wrong choice has another "
                "length, so that its segments would not lie where those of the targets do; PACK = False, or "
                "UNLIKELIHOOD_WEIGHT = 0"
            )
        super().__init__(pack=False, **kwargs)

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """As seqio.FeatureConverter's, for lengths of 'inputs' and 'targets'.

        Raises:
          UserError: the examples have no wrong choice.
        """
        if "wrong_inputs" not in ds.element_spec:
            raise UserError(
                "unlikelihood_weight: expected 0 for a mixture without wrong choices (only FLIPPED's have them), "
                f"got examples with {', '.join(sorted(ds.element_spec))}"
            )
        return super().__call__(ds, with_wrong_length(task_feature_lengths))

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Lengths of the model's features from those of 'inputs' and 'targets'."""
        return super().get_model_feature_lengths(with_wrong_length(task_feature_lengths))


def with_wrong_length(lengths: Mapping[str, int]) -> dict[str, int]:
    """The lengths with that of 'wrong_inputs', which is the inputs'."""
    return {**lengths, "wrong_inputs": lengths["inputs"]}
