"""A slow and obvious T5.1.1 in plain numpy (float64, one example at a time), written from the paper and not from
the engine: what the engine's model, losses and scorer are compared with. It shares no code with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def bucket(
    relative: int, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> int:
    """The relative-position bucket of one (key position - query position)."""
    result = 0
    if bidirectional:
        buckets //= 2
        if relative > 0:
            result = buckets
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return result + distance
    step = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    return result + min(exact + int(step + 1e-6), buckets - 1)


def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class NumpyT5:
    """The forward pass of one example without padding."""

    def __init__(self, params: Mapping[str, Any], num_heads: int) -> None:
        self.params = _to_float64(params)
        self.num_heads = num_heads

    def encode(self, input_ids: Sequence[int]) -> np.ndarray:
        """[S] ids -> [S, D]."""
        stack = self.params["encoder"]
        x = self.params["token_embedder"]["embedding"][list(input_ids)]
        bias = self._bias(stack, len(input_ids), bidirectional=True)
        for layer in _layers(stack):
            y = norm(x, layer["pre_attention_layer_norm"]["scale"])
            x = x + self._attention(layer["attention"], y, y, bias)
            x = x + self._mlp(layer["mlp"], norm(x, layer["pre_mlp_layer_norm"]["scale"]))
        return norm(x, stack["encoder_norm"]["scale"])

    def decode(self, encoded: np.ndarray, target_ids: Sequence[int]) -> np.ndarray:
        """[S, D] and [T] ids -> logits [T, V]; the decoder reads the target shifted right."""
        stack = self.params["decoder"]
        shifted = [0, *target_ids[:-1]]
        x = self.params["token_embedder"]["embedding"][shifted]
        bias = self._bias(stack, len(shifted), bidirectional=False)
        for q in range(len(shifted)):
            bias[:, q, q + 1 :] = -np.inf
        for layer in _layers(stack):
            y = norm(x, layer["pre_self_attention_layer_norm"]["scale"])
            x = x + self._attention(layer["self_attention"], y, y, bias)
            y = norm(x, layer["pre_cross_attention_layer_norm"]["scale"])
            x = x + self._attention(layer["encoder_decoder_attention"], y, encoded, 0.0)
            x = x + self._mlp(layer["mlp"], norm(x, layer["pre_mlp_layer_norm"]["scale"]))
        return norm(x, stack["decoder_norm"]["scale"]) @ stack["logits_dense"]["kernel"]

    def logits(self, input_ids: Sequence[int], target_ids: Sequence[int]) -> np.ndarray:
        return self.decode(self.encode(input_ids), target_ids)

    def score(self, input_ids: Sequence[int], target_ids: Sequence[int]) -> float:
        """log p(target given input), summed over the target."""
        if not len(target_ids):
            return 0.0
        log_probs = log_softmax(self.logits(input_ids, target_ids))
        return float(sum(log_probs[t, word] for t, word in enumerate(target_ids)))

    def _bias(self, stack: Mapping[str, Any], length: int, *, bidirectional: bool) -> np.ndarray:
        table = stack["relpos_bias"]["rel_embedding"]  # [N, buckets]
        bias = np.zeros((self.num_heads, length, length))
        for q in range(length):
            for k in range(length):
                bias[:, q, k] = table[:, bucket(k - q, bidirectional=bidirectional)]
        return bias

    def _attention(
        self, params: Mapping[str, Any], x: np.ndarray, memory: np.ndarray, bias: Any
    ) -> np.ndarray:
        def heads(name: str, inputs: np.ndarray) -> np.ndarray:
            flat = inputs @ params[name]["kernel"]
            return flat.reshape(len(inputs), self.num_heads, -1).transpose(1, 0, 2)

        weights = np.exp(
            log_softmax(heads("query", x) @ heads("key", memory).transpose(0, 2, 1) + bias)
        )
        mixed = (weights @ heads("value", memory)).transpose(1, 0, 2).reshape(len(x), -1)
        return mixed @ params["out"]["kernel"]

    @staticmethod
    def _mlp(params: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
        hidden = gelu(x @ params["wi_0"]["kernel"]) * (x @ params["wi_1"]["kernel"])
        return hidden @ params["wo"]["kernel"]


def _layers(stack: Mapping[str, Any]) -> list[Any]:
    count = len(stack["layers"]["mlp"]["wo"]["kernel"])
    return [_map(stack["layers"], lambda leaf, i=i: leaf[i]) for i in range(count)]


def _to_float64(tree: Any) -> Any:
    return _map(tree, lambda leaf: np.asarray(leaf, np.float64))


def _map(tree: Any, function: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _map(child, function) for name, child in tree.items()}
    return function(tree)
