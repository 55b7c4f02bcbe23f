"""The small vocabulary of the made-up world: trained on its text, its prompts and the words of the label sets."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

from flipped_tasks import embedded
from flipped_tasks.datasets import dataset_names, usable_templates
from flipped_tasks.embedded.vocabulary import train_vocabulary
from flipped_tasks.embedded.warmup import VERDICTS
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import Rendered, compile_template
from mixtures import catalog as _catalog  # noqa: F401  (fills the registry of datasets)
from mixtures.suites import load_label_sets

TEXTS = 8_000
ROWS = 60
LABEL_WORD_REPEATS = 300


def make_vocabulary(path: str | os.PathLike[str]) -> None:
    """Trains the world's vocabulary and writes it to `path`; the same on every machine.

    It reads the words of all templates, those that are only evaluated included, but no label: a vocabulary knows
    words, and the public T5 vocabulary knows those words too.
    """
    train_vocabulary(
        itertools.chain(embedded.warmup_texts(1, TEXTS), _prompts(), _label_words()), path
    )


def _prompts() -> Iterator[str]:
    rng = random.Random(0)
    for dataset in dataset_names():
        if dataset not in embedded.SPLIT_SIZES:
            continue
        rows = embedded.generate(dataset, next(iter(embedded.SPLIT_SIZES[dataset])))[:ROWS]
        for name in usable_templates(dataset):
            template = compile_template(load_template(dataset, name))
            for row in rows:
                rendered = template.render(row, rng)
                if isinstance(rendered, Rendered):
                    yield from (rendered.prompt, *rendered.choices)


def _label_words() -> Iterator[str]:
    words = {
        word
        for entry in load_label_sets()
        for words in (entry.words, *entry.sets.values())
        for word in words
    }
    words.update(
        form for verdict in VERDICTS for word in verdict for form in (word, word.capitalize())
    )
    for word in sorted(words):
        yield from itertools.repeat(word, LABEL_WORD_REPEATS)
