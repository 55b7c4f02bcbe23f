"""The stream of batches: a function of the seed, wherever it is entered and however many hosts read it."""

import itertools
import json
import time

import numpy as np
import pytest
import seqio
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_tasks import features, order, seqio_tasks
from flipped_tasks.batches import batches
from flipped_tasks.mixing import RowMixture
from flipped_tasks.seqio_tasks import register_task
from mixtures import catalog  # noqa: F401

LENGTHS = {"inputs": 96, "targets": 40}
MODEL_KEYS = {
    "encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights", "example_ids",
}  # fmt: skip
WRONG_KEYS = {"wrong_encoder_input_tokens", "wrong_weights"}


def write(folder, dataset, rows):
    place = folder / dataset.replace("/", "__")
    place.mkdir(parents=True)
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three small datasets, one of which has rows that some templates drop."""
    data = tmp_path_factory.mktemp("rows")
    write(data, "glue/mrpc", [
        {"sentence1": f"the {n} cats sat .", "sentence2": f"{n} dogs ran .", "label": n % 2, "idx": n}
        for n in range(37)
    ])  # fmt: skip
    write(
        data,
        "imdb",
        [{"text": f"a film with {n} cats ." * (1 + n % 4), "label": n % 2} for n in range(23)],
    )
    write(data, "super_glue/copa", [
        {"premise": f"{n} cats sat", "choice1": "wet", "choice2": "dry", "question": ("cause", "effect")[n % 2],
         "idx": n, "label": n // 2 % 2}
        for n in range(11)
    ])  # fmt: skip
    return str(data)


@pytest.fixture(scope="module")
def mixture(data, small_vocab_path):
    """The three datasets at unequal rates, read with FLIPPED."""
    parts = []
    for dataset, rate in (("glue/mrpc", 3.0), ("imdb", 2.0), ("super_glue/copa", 1.0)):
        parts.append((register_task(dataset, "flipped", None, data, small_vocab_path).name, rate))
    name = "test_batches_mixture"
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add_provider(name, RowMixture(name, parts))
    return name


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and windows so small that short streams cross many of them."""
    monkeypatch.setattr(order, "BLOCK", 16)
    monkeypatch.setattr(order, "WINDOW", 8)
    order.choices.cache_clear()
    yield
    order.choices.cache_clear()


def take(name, count, **how):
    settings = {"lengths": LENGTHS, "batch_size": 12, "seed": 5} | how
    found = batches(name, **settings)
    taken = list(itertools.islice(found, count))
    found.close()
    return taken


def differences(left, right):
    """What is not the same in two runs of batches, as (step, name of the array)."""
    steps = zip(left, right, strict=True)
    return [
        (step, key)
        for step, (one, other) in enumerate(steps)
        for key in sorted({*one, *other})
        if not (key in one and key in other and np.array_equal(one[key], other[key]))
    ]


def test_shapes_and_types(mixture):
    (batch,) = take(mixture, 1)
    assert set(batch) == MODEL_KEYS | WRONG_KEYS
    for key, value in batch.items():
        if key != "example_ids":
            assert value.dtype == np.int32, key
    assert (
        batch["encoder_input_tokens"].shape == batch["wrong_encoder_input_tokens"].shape == (12, 96)
    )
    assert batch["decoder_target_tokens"].shape == batch["decoder_loss_weights"].shape == (12, 40)
    assert batch["wrong_weights"].shape == batch["example_ids"].shape == (12,)
    assert batch["wrong_weights"].all()
    ends = batch["decoder_loss_weights"].sum(axis=1) - 1
    assert (batch["decoder_target_tokens"][np.arange(12), ends] == 1).all()
    np.testing.assert_array_equal(
        batch["decoder_input_tokens"][:, 1:], batch["decoder_target_tokens"][:, :-1]
    )


def test_the_stream_is_a_function_of_the_seed(mixture):
    assert not differences(take(mixture, 6), take(mixture, 6))
    ids = [
        np.concatenate([b["example_ids"] for b in take(mixture, 3, seed=seed)]).tolist()
        for seed in (5, 6)
    ]
    assert ids[0] != ids[1]
    tasks = [[i.split(b"/")[0] for i in found] for found in ids]
    assert tasks[0] != tasks[1]


@pytest.mark.parametrize("start", [1, 7, 13])
@pytest.mark.parametrize("blocks", ["large", "small"])
def test_a_restart_gives_what_an_uninterrupted_run_gives(mixture, request, start, blocks):
    if blocks == "small":
        request.getfixturevalue("small_blocks")
    assert not differences(take(mixture, 16)[start:], take(mixture, 16 - start, start_step=start))


@pytest.mark.parametrize("start", [0, 9])
@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_together_read_the_global_batch(mixture, small_blocks, hosts, start):
    whole = take(mixture, 5, start_step=start)
    parts = [
        take(mixture, 5, start_step=start, host_index=host, host_count=hosts)
        for host in range(hosts)
    ]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}
        for step in range(5)
    ]
    assert not differences(whole, joined)


def test_each_epoch_holds_every_example_once_in_another_order(mixture):
    ids = [i.decode() for batch in take(mixture, 40) for i in batch["example_ids"]]
    numbers = [int(i.split("/")[2]) for i in ids if i.startswith("imdb/")]
    first, second = numbers[:23], numbers[23:46]
    assert sorted(first) == sorted(second) == list(range(23)) and first != second


def test_tasks_are_drawn_at_their_rates(mixture):
    ids = [i.decode() for batch in take(mixture, 100) for i in batch["example_ids"]]
    share = {
        name: sum(i.startswith(name) for i in ids) / len(ids)
        for name in ("glue", "imdb", "super_glue")
    }
    for name, expected in (("glue", 3 / 6), ("imdb", 2 / 6), ("super_glue", 1 / 6)):
        assert abs(share[name] - expected) < 4 * (0.25 / 1200) ** 0.5, share


def test_a_far_restart_renders_nothing_of_what_came_before(mixture, monkeypatch):
    task = seqio.TaskRegistry.get("flipped.glue_mrpc")
    made = []
    encode = task.write
    monkeypatch.setattr(task, "write", lambda *a: made.append(a[2]) or encode(*a))
    began = time.monotonic()
    take(mixture, 1, start_step=100_000)
    assert time.monotonic() - began < 20
    assert len(made) < 2000 and min(made) > 10_000  # epochs


def test_a_single_task_is_read_like_a_mixture_of_one(mixture):
    whole = take("flipped.imdb", 5)
    assert not differences(whole[3:], take("flipped.imdb", 2, start_step=3))
    halves = [take("flipped.imdb", 5, host_index=host, host_count=2) for host in range(2)]
    assert not differences(
        whole,
        [
            {key: np.concatenate([a[key], b[key]]) for key in a}
            for a, b in zip(*halves, strict=True)
        ],
    )


def test_a_template_task_drops_and_can_still_be_entered_anywhere(data, small_vocab_path):
    register_task("super_glue/copa", "direct", "…which may be caused by", data, small_vocab_path)
    name = "direct.super_glue_copa.which_may_be_caused_by"
    whole = take(name, 6, batch_size=4)
    assert not differences(whole[4:], take(name, 2, batch_size=4, start_step=4))
    halves = [take(name, 6, batch_size=4, host_index=host, host_count=2) for host in range(2)]
    assert not differences(
        whole,
        [
            {key: np.concatenate([a[key], b[key]]) for key in a}
            for a, b in zip(*halves, strict=True)
        ],
    )
    numbers = {int(i.decode().split("/")[3]) for batch in whole for i in batch["example_ids"]}
    assert numbers == set(range(0, 11, 2))


def test_buckets_pad_only_as_far_as_a_batch_needs(mixture):
    plain = take(mixture, 8, batch_size=2)
    found = take(
        mixture, 8, batch_size=2, length_buckets=[(88, 40), (64, 40), (72, 32), (200, 200)]
    )
    shapes = set()
    for full, short in zip(plain, found, strict=True):
        length, target_length = (
            short["encoder_input_tokens"].shape[1],
            short["decoder_target_tokens"].shape[1],
        )
        shapes.add((length, target_length))
        assert short["wrong_encoder_input_tokens"].shape[1] == length
        for key, value in full.items():
            if value.ndim == 2:
                kept = value[:, : short[key].shape[1]]
                np.testing.assert_array_equal(short[key], kept)
                if key != "decoder_input_tokens":
                    assert not value[:, kept.shape[1] :].any()
    assert shapes <= {(88, 40), (64, 40), (72, 32), (96, 40)} and len(shapes) > 1


@pytest.mark.parametrize("method", ["direct", "flipped"])
def test_stock_seqio_reads_the_same_stream(mixture, data, small_vocab_path, method):
    name = mixture if method == "flipped" else register_task(
        "imdb", "direct", None, data, small_vocab_path
    ).name  # fmt: skip
    converter = (
        features.FlippedFeatureConverter()
        if method == "flipped"
        else features.Seq2SeqFeatureConverter()
    )
    lengths = LENGTHS | ({"wrong_inputs": LENGTHS["inputs"]} if method == "flipped" else {})
    stock = seqio.get_dataset(
        name, lengths, converter, shuffle=True, num_epochs=None, seed=5, batch_size=12
    )
    for ours, theirs in zip(take(name, 4), stock.take(4).as_numpy_iterator(), strict=True):
        del ours["example_ids"]
        assert not differences([ours], [theirs])


def test_our_converter_is_seqios_for_direct(mixture):
    example = {"inputs": [5, 6, 1], "targets": [7, 1]}
    dataset = tf.data.Dataset.from_tensors(
        {k: tf.constant(v, tf.int32) for k, v in example.items()}
    )
    lengths = {"inputs": 5, "targets": 4}
    ours = next(features.Seq2SeqFeatureConverter()(dataset, lengths).as_numpy_iterator())
    theirs = next(seqio.EncDecFeatureConverter(pack=False)(dataset, lengths).as_numpy_iterator())
    assert not differences([ours], [theirs])


def test_no_wrong_choice_has_weight_0():
    example = {"inputs": [5, 1], "targets": [7, 1], "wrong_inputs": []}
    dataset = tf.data.Dataset.from_tensors(
        {k: tf.constant(v, tf.int32) for k, v in example.items()}
    )
    lengths = {"inputs": 3, "targets": 3, "wrong_inputs": 3}
    found = next(features.FlippedFeatureConverter()(dataset, lengths).as_numpy_iterator())
    assert found["wrong_weights"] == 0 and not found["wrong_encoder_input_tokens"].any()


def test_an_error_of_the_data_comes_out_as_a_user_error(mixture, monkeypatch):
    task = seqio.TaskRegistry.get("flipped.imdb")
    monkeypatch.setattr(task, "write", lambda *_: seqio_tasks.Dropped("hopeless"))
    with pytest.raises(UserError, match="'flipped.imdb'.*no example can be used"):
        take(mixture, 20)


@pytest.mark.parametrize(
    "how, told",
    [
        ({"host_count": 5}, "batch_size: expected a positive multiple of the 5"),
        ({"host_count": 2, "host_index": 2}, "host_index: expected 0 to 1, got 2"),
        ({"start_step": -1}, "start_step: expected at least 0"),
        ({"lengths": {"inputs": 8}}, "lengths.'targets'.: expected at least 1, got None"),
        ({"length_buckets": [(0, 4)]}, "length_buckets: expected pairs of at least 1"),
        ({"length_buckets": [(8, 4)], "host_count": 2}, "length_buckets: expected None"),
        ({"split": "validation"}, "unknown split"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(mixture, how, told):
    with pytest.raises(UserError, match=told):
        batches(mixture, **({"lengths": LENGTHS, "batch_size": 12, "seed": 5} | how))


def test_an_unknown_mixture_names_the_nearest(mixture):
    with pytest.raises(UserError, match="test_batches_mixture"):
        batches("test_batch_mixture", LENGTHS, 12, 5)


def test_a_closed_stream_ends(mixture):
    stream_of_batches = batches(mixture, LENGTHS, 12, 5)
    next(stream_of_batches)
    stream_of_batches.close()
    assert list(stream_of_batches) == []
