"""The mixtures in SeqIO's registries."""

import collections
import itertools

import pytest
import seqio

from flipped_core.errors import UserError
from flipped_tasks import sources
from flipped_tasks.batches import batches
from flipped_tasks.datasets import usable_templates
from mixtures import catalog
from mixtures.rates import dataset_rates
from mixtures.registration import register


def test_recipe_rates_are_the_published_numbers_up_to_500_000():
    rates = dataset_rates(catalog.TRAINING)
    assert rates["glue/mrpc"] == 3668 and rates["glue/qqp"] == 363846
    assert [name for name, rate in rates.items() if rate == 500_000] == [
        "amazon_polarity", "yelp_review_full", "dbpedia_14",
    ]  # fmt: skip
    assert sum(rates.values()) == 2_497_543


def test_rates_by_rows_at_hand_and_equal():
    names = ["glue/mrpc", "imdb"]
    rows = dataset_rates(names, "rows")
    assert rows == {name: len(sources.load_rows(name, "train")) for name in names}
    assert dataset_rates(names, "equal") == {"glue/mrpc": 1.0, "imdb": 1.0}
    with pytest.raises(UserError, match="'equal'"):
        dataset_rates(names, "equals")


def test_a_mixture_has_one_task_a_dataset_at_its_rate(small_vocab_path):
    assert register(vocab_path=small_vocab_path) == [
        "direct_train",
        "channel_train",
        "flipped_train",
    ]
    for method in ("direct", "channel", "flipped"):
        mixture = seqio.get_mixture_or_task(f"{method}_train")
        assert len(mixture.tasks) == 20
        assert mixture.get_rate(seqio.TaskRegistry.get(f"{method}.glue_mrpc")) == 3668
        assert all(task.name.startswith(f"{method}.") for task in mixture.tasks)


def test_by_template_a_dataset_keeps_its_rate(small_vocab_path):
    (name,) = register(vocab_path=small_vocab_path, methods=["flipped"], by_template=True)
    mixture = seqio.get_mixture_or_task(name)
    assert name == "flipped_train_by_template" and len(mixture.tasks) == 132
    quail = [task for task in mixture.tasks if task.name.startswith("flipped.quail.")]
    assert len(quail) == 12
    assert {mixture.get_rate(task) for task in quail} == {10246 / 12}


def test_the_embedded_world_is_mixed_as_the_recipe_says(small_vocab_path):
    register(vocab_path=small_vocab_path, methods=["flipped"])
    stream = batches("flipped_train", {"inputs": 128, "targets": 64}, 240, 1)
    ids = [i.decode() for batch in itertools.islice(stream, 20) for i in batch["example_ids"]]
    datasets, templates = collections.Counter(), collections.defaultdict(set)
    for example in ids:
        name = next(n for n in catalog.TRAINING if example.startswith(n + "/train/"))
        datasets[name] += 1
        templates[name].add(example.split("/train/")[1].split("/", 1)[1])
    rates = dataset_rates(catalog.TRAINING)
    for name, rate in rates.items():
        expected = rate / sum(rates.values())
        assert (
            abs(datasets[name] / len(ids) - expected) < 4.5 * (expected / len(ids)) ** 0.5 + 1e-3
        ), name
        assert templates[name] <= set(usable_templates(name, "flipped"))
    assert templates["amazon_polarity"] == set(usable_templates("amazon_polarity", "flipped"))


def test_a_dataset_can_be_replaced_by_its_alternative(small_vocab_path):
    names = [catalog.ALTERNATIVES.get(name, name) for name in catalog.TRAINING]
    register(vocab_path=small_vocab_path, methods=["direct"], datasets=names, rates="equal")
    tasks = {task.name for task in seqio.get_mixture_or_task("direct_train").tasks}
    assert "direct.cos_e_v1_11" in tasks and "direct.commonsense_qa" not in tasks


def test_mistakes(small_vocab_path):
    with pytest.raises(UserError, match="'flipped'"):
        register(vocab_path=small_vocab_path, methods=["flip"])
    with pytest.raises(UserError, match="glue/mrpc"):
        register(vocab_path=small_vocab_path, datasets=["glue/mrcp"])
    with pytest.raises(UserError, match="vocab_path"):
        register()
