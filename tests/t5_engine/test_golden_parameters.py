"""The parameters of every model size: their names, shapes and types, held to a file, and their numbers to known ones.

Nothing is allocated. After a deliberate change: `python -m tests.t5_engine.test_golden_parameters` writes the file.
"""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from t5_engine import config as sizes
from t5_engine import t5x_format
from t5_engine.config import T5Config
from t5_engine.weights import leaves

GOLDEN = pathlib.Path(__file__).with_name("golden_parameters.json")
# T5 v1.1's numbers of parameters, as `transformers` counts them (`tests/parity/test_hf_folder.py`).
COUNTS = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}


def tree(config: T5Config) -> dict[str, dict[str, str]]:
    """Ours, T5X's and T5X's scanned tree; of layers that are alike only the first, as `layers_*`."""
    shapes = {"ours": {path: leaf.shape for path, leaf in leaves(config).items()}}
    shapes["t5x"] = t5x_format.parameter_shapes(config)
    shapes["t5x_scanned"] = t5x_format.parameter_shapes(config, scanned=True)
    found: dict[str, dict[str, str]] = {}
    for name, parameters in shapes.items():
        found[name] = {}
        for path, shape in sorted(parameters.items()):
            parts = ["layers_*" if part.startswith("layers_") else part for part in path]
            text = f"float32{list(shape)}"
            assert found[name].setdefault("/".join(parts), text) == text
    return found


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_of_every_size(size: str, golden: dict[str, dict[str, dict[str, str]]]):
    assert tree(sizes.size(size)) == golden[size]


@pytest.mark.parametrize("size", COUNTS)
def test_types_and_numbers(size: str):
    config = sizes.size(size)
    assert {leaf.dtype.name for leaf in leaves(config).values()} == {"float32"}
    assert sum(math.prod(leaf.shape) for leaf in leaves(config).values()) == COUNTS[size]
    each = t5x_format.parameter_shapes(config)
    assert sum(math.prod(shape) for shape in each.values()) == COUNTS[size]
    layers = config.num_encoder_layers + config.num_decoder_layers
    # A scanned T5X model has a table of relative positions in each layer, T5.1.1 two in all.
    table = config.num_heads * config.relative_attention_num_buckets
    scanned = t5x_format.parameter_shapes(config, scanned=True)
    assert sum(math.prod(shape) for shape in scanned.values()) == COUNTS[size] + table * (
        layers - 2
    )


if __name__ == "__main__":
    content = {size: tree(sizes.size(size)) for size in COUNTS}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")
