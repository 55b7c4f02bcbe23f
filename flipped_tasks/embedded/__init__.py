"""A small made-up world behind every dataset: rows in the hub's schemas where no real data is at hand.

Everything here is invented. One closed world of people, places, things, moods, opinions and causes stands behind
all datasets, so that the real templates apply and what is learned from one dataset helps with another. The rows
are a function of (dataset, split): the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from flipped_core.errors import UserError, unknown
from flipped_tasks.embedded import qa_rows, text_rows, unseen_rows
from flipped_tasks.embedded.warmup import warmup_texts

__all__ = ["SPLIT_SIZES", "generate", "splits", "warmup_texts"]

Row = dict[str, Any]

_MAKERS: dict[str, Callable[[random.Random, int], Row]] = {
    "commonsense_qa": qa_rows.commonsense_qa,
    "cos_e/v1.11": qa_rows.cos_e,
    "dream": qa_rows.dream,
    "quail": qa_rows.quail,
    "quartz": qa_rows.quartz,
    "social_i_qa": qa_rows.social_i_qa,
    "wiqa": qa_rows.wiqa,
    "cosmos_qa": qa_rows.cosmos_qa,
    "qasc": qa_rows.qasc,
    "quarel": qa_rows.quarel,
    "sciq": qa_rows.sciq,
    "amazon_polarity": text_rows.amazon_polarity,
    "app_reviews": text_rows.app_reviews,
    "imdb": text_rows.imdb,
    "rotten_tomatoes": text_rows.rotten_tomatoes,
    "yelp_review_full": text_rows.yelp_review_full,
    "ag_news": text_rows.ag_news,
    "dbpedia_14": text_rows.dbpedia_14,
    "glue/mrpc": text_rows.mrpc,
    "glue/qqp": text_rows.qqp,
    "paws/labeled_final": text_rows.paws,
    "super_glue/cb": unseen_rows.cb,
    "super_glue/rte": unseen_rows.rte,
    "super_glue/wsc.fixed": unseen_rows.wsc,
    "winogrande/winogrande_xl": unseen_rows.winogrande,
    "super_glue/wic": unseen_rows.wic,
    "super_glue/copa": unseen_rows.copa,
    "hellaswag": unseen_rows.hellaswag,
    "story_cloze/2016": unseen_rows.story_cloze,
    "piqa": unseen_rows.piqa,
    "ai2_arc/ARC-Challenge": unseen_rows.arc_challenge,
    "openbookqa/main": unseen_rows.openbookqa,
}

# Rows of a split, by what the split is for; a dataset's own splits are in the catalog.
_TRAIN_SIZES = {
    "glue/mrpc": 4000, "glue/qqp": 4000, "paws/labeled_final": 6000, "dbpedia_14": 1500, "ag_news": 1000,
    "imdb": 1000, "rotten_tomatoes": 1000, "amazon_polarity": 1000, "yelp_review_full": 1500, "app_reviews": 500,
}  # fmt: skip
_OTHER_TRAIN_SIZE = 2000
_HELD_OUT_SIZE = 200
_SPLITS = {
    "quail": ("train", "validation", "challenge"),
    "commonsense_qa": ("train", "validation"),
    "cos_e/v1.11": ("train", "validation"),
    "social_i_qa": ("train", "validation"),
    "amazon_polarity": ("train", "test"),
    "app_reviews": ("train",),
    "imdb": ("train", "test"),
    "yelp_review_full": ("train", "test"),
    "ag_news": ("train", "test"),
    "dbpedia_14": ("train", "test"),
    "glue/qqp": ("train", "validation"),
    "anli": tuple(f"{part}_r{n}" for n in (1, 2, 3) for part in ("train", "dev", "test")),
    "story_cloze/2016": ("validation", "test"),
}
_DEFAULT_SPLITS = ("train", "validation", "test")


def datasets() -> tuple[str, ...]:
    """The names of all datasets that the world tells."""
    return (*_MAKERS, "anli")


def splits(dataset: str) -> dict[str, int]:
    """The splits of a dataset and their numbers of rows; those of the hub, at the world's size."""
    if dataset not in datasets():
        raise unknown("dataset", dataset, datasets())
    train = _TRAIN_SIZES.get(dataset, _OTHER_TRAIN_SIZE)
    return {
        name: train if name.startswith("train") else _HELD_OUT_SIZE
        for name in _SPLITS.get(dataset, _DEFAULT_SPLITS)
    }


SPLIT_SIZES: dict[str, dict[str, int]] = {name: splits(name) for name in datasets()}


def generate(dataset: str, split: str) -> list[Row]:
    """All rows of one split, in the hub's schema.

    Args:
      dataset: the catalog's name, such as "super_glue/rte".
      split: one of the dataset's splits, such as "validation" or "dev_r1".

    Raises:
      UserError: an unknown dataset or split.
    """
    sizes = splits(dataset)
    if split not in sizes:
        raise UserError(
            f"unknown split {split!r} of {dataset}; expected one of: {', '.join(sizes)}"
        )
    maker = unseen_rows.anli(int(split[-1])) if dataset == "anli" else _MAKERS[dataset]
    rng = random.Random(f"world/{dataset}/{split}")
    return [maker(rng, number) for number in range(sizes[split])]
