"""Names of hardware: Google Cloud's slices, tori, nodes of GPUs, several of each."""

from __future__ import annotations

import pytest

from flipped_core.errors import UserError
from t5_engine import topologies


@pytest.mark.parametrize(
    "text, name, chips",
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v6e:16x16", "v6e:16x16", 256),
        # Names of v4 and v5p count cores, two a chip; those of v5e and v6e chips.
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-32", "v4:2x2x4", 16),
        ("v4-64", "v4:2x4x4", 32),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5litepod-32", "v5e:4x8", 32),
        ("v5e-256", "v5e:16x16", 256),
        ("v6e-8", "v6e:2x4", 8),
        ("V5P-64", "v5p:2x4x4", 32),
        ("v5e:4x4*2", "v5e:4x4*2", 32),
        ("v5p-64*4", "v5p:2x4x4*4", 128),
        ("h100:8", "h100:8", 8),
        ("h100:8*4", "h100:8*4", 32),
    ],
)
def test_names(text: str, name: str, chips: int) -> None:
    found = topologies.parse(text)
    assert (str(found), found.chips) == (name, chips)
    assert found.per_slice * found.slices == chips
    assert topologies.parse(str(found)) == found


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5x:2x2", "unknown topology 'v5x:2x2'; nearest: .*'v5e:…'"),
        ("v5e", "topology: expected such as v5e:4x4, v5p-64, .* got 'v5e'"),
        ("v5e:2", "topology: expected such as"),
        ("v5e:0x4", "topology: expected at least one chip, got 'v5e:0x4'"),
        ("v5e:4x4*0", "topology: expected at least one chip"),
        ("v5p:axb", "topology: expected such as"),
        ("v5p-63", "unknown accelerator type 'v5p-63'; nearest: 'v5p-64'"),
        ("v5litepod-12", "nearest: .*'v5litepod-16'"),
        ("h100:16", "expected at most 8 GPUs in a node, such as h100:8\\*2 for 16, got 'h100:16'"),
        ("h100:2x4", "expected at most 8 GPUs in a node"),
        ("h10:8", "nearest: 'h100:…'"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        topologies.parse(text)
