"""The training stream, pinned: the ids and tokens of each method's mixture at several steps.

The golden file may change only with a new version of promptsource, of the vocabulary or of the rows under
`shared/`, never with the way in which the stream is read: a resumed run would meet other examples. To write it again:
`python -m tests.flipped_tasks.test_golden_stream`. Slow:
`python -m pytest -m slow tests/flipped_tasks/test_golden_stream.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flipped_tasks.stream import Stream

GOLDEN = pathlib.Path(__file__).with_name("golden_stream.json")
METHODS = ("direct", "channel", "flipped")
SEEDS = (0, 7)
STARTS = (0, 3, 5000)
BATCH_SIZE = 24
BATCHES = 2
LENGTHS = {"inputs": 512, "targets": 128}


def _batches(
    mixture: str, seed: int, start: int, host: int = 0, hosts: int = 1
) -> list[dict[str, Any]]:
    from flipped_tasks.batches import batches

    stream = batches(
        mixture, LENGTHS, BATCH_SIZE, seed, start_step=start, host_index=host, host_count=hosts
    )
    try:
        return list(itertools.islice(stream, BATCHES))
    finally:
        stream.close()  # type: ignore[attr-defined]


def _digest(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The ids of the first examples, and a hash of all ids and tokens."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            if name == "example_ids":
                digest.update(b"\n".join(batch[name]))
            elif name.endswith("tokens") and name != "decoder_input_tokens":
                digest.update(np.ascontiguousarray(batch[name], np.int32).tobytes())
    return {
        "ids": [one.decode() for one in batches[0]["example_ids"][:4]],
        "sha256": digest.hexdigest(),
    }


def _cases() -> Iterator[tuple[str, int, int]]:
    yield from itertools.product(METHODS, SEEDS, STARTS)


def _register(vocab_path: str, rows_dir: str) -> None:
    from mixtures import registration

    for method in METHODS:
        registration.register_named(f"{method}_train", rows_dir, vocab_path, "recipe", True)


@pytest.fixture(scope="module")
def registered(t5_vocab_path: str, real_rows_dir: str) -> None:
    _register(t5_vocab_path, real_rows_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "seed", "start"), _cases())
def test_stream_is_the_golden_one(method: str, seed: int, start: int, registered: None) -> None:
    golden = json.loads(GOLDEN.read_text())[f"{method}/{seed}/{start}"]
    assert _digest(_batches(f"{method}_train", seed, start)) == golden


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hosts", [2, 4])
def test_several_hosts_read_the_golden_stream(method: str, hosts: int, registered: None) -> None:
    seed, start = SEEDS[1], STARTS[1]
    golden = json.loads(GOLDEN.read_text())[f"{method}/{seed}/{start}"]
    parts = [_batches(f"{method}_train", seed, start, host, hosts) for host in range(hosts)]
    joined = [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert _digest(joined) == golden


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_seqio_reads_the_golden_stream(method: str, registered: None) -> None:
    """`get_dataset` of the mixture, from the beginning, example by example."""
    import seqio

    golden = json.loads(GOLDEN.read_text())[f"{method}/{SEEDS[0]}/0"]
    mixture = seqio.get_mixture_or_task(f"{method}_train")
    lengths = {name: LENGTHS[name.removeprefix("wrong_")] for name in mixture.output_features}
    found = mixture.get_dataset(
        lengths, seed=SEEDS[0], num_epochs=None, passthrough_features=["example_id"]
    )
    examples = list(found.take(BATCH_SIZE * BATCHES).as_numpy_iterator())
    for example, expected in zip(
        examples,
        Stream(mixture.name, LENGTHS, SEEDS[0]).examples(np.arange(len(examples))),
        strict=True,
    ):
        assert example["example_id"] == expected.id
        for name in lengths:
            assert example[name].tolist() == list(getattr(expected, name)), (name, expected.id)
    assert [one["example_id"].decode() for one in examples[:4]] == golden["ids"]


def main(shared: pathlib.Path) -> None:
    """Writes the golden file."""
    data = shared / "data"
    _register(str(data / "t5_vocab" / "sentencepiece.model"), str(data / "nlp"))
    golden = {
        f"{method}/{seed}/{start}": _digest(_batches(f"{method}_train", seed, start))
        for method, seed, start in _cases()
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(__file__).resolve().parents[3] / "shared")
