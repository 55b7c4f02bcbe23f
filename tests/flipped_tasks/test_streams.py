"""Streams compared by example id: hosts, restarts, windows of length; the mixture's shares over 200,000 draws."""

import collections
import itertools
import json

import numpy as np
import pytest
import seqio

from flipped_core.errors import UserError
from flipped_tasks import order
from flipped_tasks.batches import batches
from flipped_tasks.mixing import RowMixture
from flipped_tasks.seqio_tasks import register_task
from flipped_tasks.sources import load_rows
from mixtures import catalog
from mixtures.rates import dataset_rates
from mixtures.registration import register

LENGTHS = {"inputs": 128, "targets": 64}
BUCKETS = [(32, 24), (48, 32), (64, 48)]
NAMES = ("glue/mrpc", "imdb", "super_glue/copa")


@pytest.fixture(scope="module")
def mixture(small_vocab_path, tmp_path_factory):
    """A few rows of the embedded world; copa drops half of its rows under some templates."""
    folder = tmp_path_factory.mktemp("rows")
    for name in NAMES:
        place = folder / name.replace("/", "__")
        place.mkdir()
        rows = [json.dumps(row) for row in load_rows(name, "train")[:61]]
        (place / "train.jsonl").write_text("\n".join(rows))
    tasks = [
        register_task(name, "flipped", None, str(folder), small_vocab_path).name for name in NAMES
    ]
    name = "test_streams_mixture"
    seqio.MixtureRegistry.remove(name)
    mixed = RowMixture(name, list(zip(tasks, (3.0, 2.0, 1.0), strict=True)))
    seqio.MixtureRegistry.add_provider(name, mixed)
    return name


def take(name, count, **how):
    settings = {"lengths": LENGTHS, "batch_size": 16, "seed": 5} | how
    found = batches(name, **settings)
    taken = list(itertools.islice(found, count))
    found.close()
    return taken


def ids(taken):
    return [i.decode() for batch in taken for i in batch["example_ids"]]


@pytest.mark.parametrize("hosts, start", [(1, 0), (2, 0), (2, 7), (4, 7), (8, 3)])
def test_hosts_together_see_what_one_would(mixture, hosts, start):
    """None twice, none lost: batch for batch the hosts' ids, put together, are those of one host."""
    whole = [batch["example_ids"].tolist() for batch in take(mixture, 4, start_step=start)]
    parts = [
        take(mixture, 4, start_step=start, host_index=host, host_count=hosts)
        for host in range(hosts)
    ]
    for step, expected in enumerate(whole):
        assert sum((part[step]["example_ids"].tolist() for part in parts), []) == expected


@pytest.mark.parametrize("step", [3, 11])
def test_a_restart_continues_with_the_same_examples(mixture, step):
    whole = take(mixture, 14)
    assert ids(whole)[step * 16 :] == ids(take(mixture, 14 - step, start_step=step))


def test_each_pass_meets_every_row_once(mixture):
    """Two passes of 'imdb', by id: a row comes again only when all have come."""
    size = seqio.TaskRegistry.get("flipped.imdb").rows.num_input_examples("train")
    steps = 2 * size * 6 // 2 // 16 + 60
    found = [i.split("/")[2] for i in ids(take(mixture, steps)) if i.startswith("imdb/")]
    assert len(found) >= 2 * size
    for begin in (0, size):
        assert len(set(found[begin : begin + size])) == size


def test_a_window_of_length_holds_the_same_examples(mixture):
    plain = take(mixture, 12, length_buckets=BUCKETS)
    sorted_ = take(mixture, 12, length_buckets=BUCKETS, length_window=4)
    for begin in (0, 4, 8):
        window = slice(begin, begin + 4)
        assert collections.Counter(ids(sorted_[window])) == collections.Counter(ids(plain[window]))
    assert ids(plain) != ids(sorted_)
    padded = [
        sum(batch["encoder_input_tokens"].size for batch in taken) for taken in (plain, sorted_)
    ]
    assert padded[1] < padded[0]


def test_a_window_keeps_each_examples_arrays(mixture):
    def rows(taken):
        return {
            name: tuple(x[x != 0].tolist() for x in arrays)
            for batch in taken
            for name, *arrays in zip(
                batch["example_ids"], batch["encoder_input_tokens"], batch["decoder_target_tokens"],
                batch["wrong_encoder_input_tokens"], strict=True,
            )
        }  # fmt: skip

    plain = rows(take(mixture, 4, length_buckets=BUCKETS))
    assert plain == rows(take(mixture, 4, length_buckets=BUCKETS, length_window=4))


@pytest.mark.parametrize("start", [1, 4, 6, 11])
def test_a_restart_inside_a_window_continues_there(mixture, start):
    how = {"length_buckets": BUCKETS, "length_window": 4}
    whole = take(mixture, 14, **how)
    found = take(mixture, 14 - start, start_step=start, **how)
    assert ids(whole[start:]) == ids(found)
    for one, other in zip(whole[start:], found, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_a_window_needs_buckets(mixture):
    with pytest.raises(UserError, match="length_window: expected 1, or more together with"):
        batches(mixture, LENGTHS, 16, 5, length_window=4)
    with pytest.raises(UserError, match="length_window: .*got 0"):
        batches(mixture, LENGTHS, 16, 5, length_window=0, length_buckets=BUCKETS)


def test_buckets_do_not_change_an_example(mixture):
    """Padding of a block of rows is taken away before a bucket is chosen."""
    taken = take(mixture, 30, batch_size=2, length_buckets=BUCKETS)
    shapes = {batch["encoder_input_tokens"].shape[1] for batch in taken}
    assert len(shapes) > 1 and ids(taken) == ids(take(mixture, 30, batch_size=2))


@pytest.mark.parametrize("seed", [0, 1])
def test_200_000_examples_have_the_catalogs_shares(small_vocab_path, seed):
    """Expected shares from the catalog's numbers; observed ones from the draws that the stream is made of."""
    (name,) = register(vocab_path=small_vocab_path, methods=["flipped"])
    mixed = seqio.get_mixture_or_task(name)
    rates = tuple(mixed.get_rate(task) for task in mixed.tasks)
    count = 200_000
    blocks = [order.choices(rates, seed, block) for block in range(-(-count // order.BLOCK))]
    drawn = np.bincount(np.concatenate(blocks)[:count], minlength=len(rates))
    expected = {
        f"flipped.{n.replace('/', '_')}": min(s, 500_000) for n, s in _train_sizes().items()
    }
    total = sum(expected.values())
    assert len(expected) == 20 and total == sum(dataset_rates(catalog.TRAINING).values())
    chi = 0.0
    for task, got in zip(mixed.tasks, drawn, strict=True):
        share = expected[task.name] / total
        assert abs(got / count - share) < 4.5 * (share * (1 - share) / count) ** 0.5, task.name
        chi += (got - share * count) ** 2 / (share * count)
    assert chi < 50  # 19 degrees of freedom: more than this once in 10,000 seeds


def _train_sizes():
    from flipped_tasks.datasets import get_dataset

    return {name: get_dataset(name).splits["train"] for name in catalog.TRAINING}


def test_the_draws_are_the_ones_that_batches_gives(mixture):
    """The cheap stream of draws above is what a reader of batches meets."""
    tasks = [f"flipped.{name.replace('/', '_')}" for name in NAMES]
    provider = seqio.get_mixture_or_task(mixture)
    rates = tuple(provider.get_rate(task) for task in provider.tasks)
    drawn = [provider.tasks[i].name for i in order.choices(rates, 5, 0)[: 20 * 16]]
    met = [
        tasks[[i.startswith(name + "/") for name in NAMES].index(True)]
        for i in ids(take(mixture, 20))
    ]
    assert met == drawn
