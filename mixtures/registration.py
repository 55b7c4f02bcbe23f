"""Puts the training tasks and mixtures into SeqIO's registries.

`direct_train`, `channel_train` and `flipped_train` hold one task for each dataset, which draws the template; the
same names with `_by_template` hold one task for each template, as T0 mixes.
"""

from __future__ import annotations

from collections.abc import Sequence

import seqio

from flipped_core.errors import unknown
from flipped_tasks.datasets import (
    dataset_names,
    get_dataset,
    training_templates,
    usable_templates,
)
from flipped_tasks.embedded import warmup_texts
from flipped_tasks.methods import METHODS
from flipped_tasks.mixing import RowMixture
from flipped_tasks.seqio_tasks import register_task, task_name
from flipped_tasks.warmup import register_text_task
from mixtures import catalog, own
from mixtures.rates import dataset_rates

WORLD_TEXT = "world_text"
_BY_TEMPLATE = "_by_template"
# The same with lists of options: the second half of the pre-training.
WORLD_TEXT_WITH_LISTS = "world_text_with_lists"
WORLD_TEXTS = {WORLD_TEXT: 100_000, WORLD_TEXT_WITH_LISTS: 300_000}
_MOST_HOLES = {WORLD_TEXT: 3, WORLD_TEXT_WITH_LISTS: 6}


def register_world_text(
    vocab_path: str, seed: int = 0, input_eos: bool = True, name: str = WORLD_TEXT
) -> str:
    """Registers the running text of the made-up world as the task `name`, and returns its name.

    Args:
      vocab_path: the SentencePiece model.
      seed: which texts are written.
      input_eos: whether inputs end with eos.
      name: one of `WORLD_TEXTS`.
    """
    register_text_task(
        name,
        lambda: warmup_texts(seed, WORLD_TEXTS[name], lists=name == WORLD_TEXT_WITH_LISTS),
        vocab_path,
        prefix_lm_share=0.5,
        input_eos=input_eos,
        most_holes=_MOST_HOLES[name],
    )
    return name


def mixture_name(method: str, by_template: bool = False, mixture: str = own.RECIPE) -> str:
    """Such as 'flipped_train'."""
    return f"{method}_{mixture}" + (_BY_TEMPLATE if by_template else "")


def mixture_rates(
    mixture: str = own.RECIPE,
    rates: str = "recipe",
    data_dir: str | None = None,
    datasets: Sequence[str] | None = None,
) -> dict[str, float]:
    """dataset → rate in a mixture: the catalog's for 'train', and what was added with `own.add_to_mixture`.

    Args:
      rates, data_dir: see `mixtures.rates.dataset_rates`; for the catalog's datasets.
      datasets: stand for the catalog's training datasets.

    Raises:
      UserError: no such mixture, or one of shares only.
    """
    if mixture not in own.mixture_names():
        raise unknown("mixture", mixture, own.mixture_names())
    if datasets is None:
        datasets = catalog.TRAINING if mixture == own.RECIPE else ()
    return own.with_shares(mixture, dataset_rates(datasets, rates, data_dir) | own.added(mixture))


def register(
    data_dir: str | None = None,
    vocab_path: str | None = None,
    methods: Sequence[str] = METHODS,
    datasets: Sequence[str] | None = None,
    rates: str = "recipe",
    input_eos: bool = True,
    by_template: bool = False,
    mixture: str = own.RECIPE,
) -> list[str]:
    """Registers the mixtures of some methods with their tasks; what has the same name is replaced.

    Rows and templates are read when a mixture is first opened.

    Args:
      data_dir: see `flipped_tasks.sources.load_rows`; None for the embedded world.
      vocab_path: the SentencePiece model.
      methods: which of 'direct', 'channel', 'flipped'.
      datasets: what is mixed beside what `own.add_to_mixture` added; None for the catalog's training datasets.
        `catalog.ALTERNATIVES` names what may stand for a dataset.
      rates: see `mixtures.rates.dataset_rates`.
      input_eos: whether inputs end with eos.
      by_template: mixes a task for each template with rate n / number of templates. It can be read from any step
        too, but only by rendering what comes before.
      mixture: 'train', or one that `own.add_to_mixture` made.

    Returns:
      The names of the mixtures.

    Raises:
      UserError: an unknown method, dataset or kind of rates; no vocabulary.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    weights = mixture_rates(mixture, rates, data_dir, datasets)
    names = []
    for method in methods:
        parts = []
        for dataset in weights:
            spec = get_dataset(dataset)
            templates = training_templates(spec, method) if by_template else [None]
            for template in templates:
                task = register_task(dataset, method, template, data_dir, vocab_path, input_eos)
                parts.append((task.name, weights[dataset] / len(templates)))
        name = mixture_name(method, by_template, mixture)
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add_provider(name, RowMixture(name, parts))
        names.append(name)
    return names


def register_named(
    name: str,
    data_dir: str | None = None,
    vocab_path: str | None = None,
    rates: str = "recipe",
    input_eos: bool = True,
) -> str:
    """Registers what a name means: 'flipped_train', 'direct_mine', 'flipped.imdb', 'channel.imdb.Negation', ….

    Args: as of `register`.

    Returns:
      The name.

    Raises:
      UserError: no mixture, dataset or template has that name; names the nearest.
    """
    method = next((m for m in METHODS if name.startswith((f"{m}_", f"{m}."))), None)
    if method is not None and name.startswith(f"{method}_"):
        whole = name.removeprefix(f"{method}_")
        base = whole.removesuffix(_BY_TEMPLATE)
        if base in own.mixture_names():
            register(
                data_dir, vocab_path, [method], None, rates, input_eos, base != whole, mixture=base
            )
            return name
    elif method is not None:
        for dataset in dataset_names():
            head = task_name(dataset, method)
            if name == head:
                return register_task(dataset, method, None, data_dir, vocab_path, input_eos).name
            if name.startswith(f"{head}."):
                by_name = {
                    task_name(dataset, method, t): t for t in usable_templates(dataset, method)
                }
                if name not in by_name:
                    raise unknown("task", name, by_name)
                template = by_name[name]
                return register_task(
                    dataset, method, template, data_dir, vocab_path, input_eos
                ).name
    known = [mixture_name(m, mixture=mixture) for m in METHODS for mixture in own.mixture_names()]
    tasks = [task_name(dataset, m) for m in METHODS for dataset in dataset_names()]
    raise unknown("mixture or task", name, [*known, *tasks, *WORLD_TEXTS])
