"""Puts the training tasks and mixtures into SeqIO's registries.

`direct_train`, `channel_train` and `flipped_train` hold one task for each dataset, which draws the template; the
same names with `_by_template` hold one task for each template, as T0 mixes.
"""

from __future__ import annotations

from collections.abc import Sequence

import seqio

from flipped_errors import unknown
from flipped_tasks import stream
from flipped_tasks.datasets import usable_templates
from flipped_tasks.embedded import warmup_texts
from flipped_tasks.methods import METHODS
from flipped_tasks.seqio_tasks import register_task
from flipped_tasks.warmup import register_text_task
from mixtures import catalog
from mixtures.rates import dataset_rates


WORLD_TEXT = "world_text"
WORLD_TEXTS = 60_000


def register_world_text(vocab_path: str, seed: int = 0, input_eos: bool = True) -> str:
    """Registers the running text of the made-up world as the task `world_text`, and returns its name.

    Args:
      vocab_path: the SentencePiece model.
      seed: which texts are written.
      input_eos: whether inputs end with eos.
    """
    register_text_task(
        WORLD_TEXT, lambda: warmup_texts(seed, WORLD_TEXTS), vocab_path, input_eos=input_eos
    )
    return WORLD_TEXT


def mixture_name(method: str, by_template: bool = False) -> str:
    """Such as 'flipped_train'."""
    return f"{method}_train" + ("_by_template" if by_template else "")


def register(
    data_dir: str | None = None,
    vocab_path: str | None = None,
    methods: Sequence[str] = METHODS,
    datasets: Sequence[str] = catalog.TRAINING,
    rates: str = "recipe",
    input_eos: bool = True,
    by_template: bool = False,
) -> list[str]:
    """Registers the mixtures of some methods with their tasks; what has the same name is replaced.

    Rows and templates are read when a mixture is first opened.

    Args:
      data_dir: see `flipped_tasks.sources.load_rows`; None for the embedded world.
      vocab_path: the SentencePiece model.
      methods: which of 'direct', 'channel', 'flipped'.
      datasets: what is mixed; `catalog.ALTERNATIVES` names what may stand for a dataset.
      rates: see `mixtures.rates.dataset_rates`.
      input_eos: whether inputs end with eos.
      by_template: mixes a task for each template with rate n / number of templates. It can be read from any step
        too, but only by rendering what comes before.

    Returns:
      The names of the mixtures.

    Raises:
      UserError: an unknown method, dataset or kind of rates; no vocabulary.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    weights = dataset_rates(datasets, rates, data_dir)
    names = []
    for method in methods:
        parts = []
        for dataset in datasets:
            templates = usable_templates(dataset, method) if by_template else [None]
            for template in templates:
                task = register_task(dataset, method, template, data_dir, vocab_path, input_eos)
                parts.append((task.name, weights[dataset] / len(templates)))
        name = mixture_name(method, by_template)
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add_provider(name, seqio.Mixture(name, parts, sample_fn=stream.mix))
        names.append(name)
    return names
