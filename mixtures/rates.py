"""How often each dataset is drawn.

The recipe counts a dataset as n = min(number of its training examples, 500,000) and draws it in proportion to n
(model cards of the public Flipped models).
"""

from __future__ import annotations

from collections.abc import Sequence

from flipped_core.errors import unknown
from flipped_tasks.datasets import get_dataset
from flipped_tasks.sources import MAX_EXAMPLES, labelled_payloads

RATES = ("recipe", "rows", "equal")


def dataset_rates(
    datasets: Sequence[str],
    rates: str = "recipe",
    data_dir: str | None = None,
    split: str = "train",
) -> dict[str, float]:
    """dataset → its rate.

    Args:
      datasets: names in the catalog.
      rates: 'recipe' takes the published number of examples, so that a sample of the data or the embedded world
        is mixed as the recipe says; 'rows' counts the labelled rows at hand; 'equal' draws all alike.
      data_dir, split: where the rows are, for 'rows'.

    Raises:
      UserError: an unknown dataset or kind of rates.
    """
    if rates not in RATES:
        raise unknown("rates", rates, RATES)
    if rates == "equal":
        return dict.fromkeys(datasets, 1.0)
    if rates == "recipe":
        counts = {name: get_dataset(name).splits[split] for name in datasets}
    else:
        counts = {name: len(labelled_payloads(name, split, data_dir)) for name in datasets}
    return {name: float(min(count, MAX_EXAMPLES)) for name, count in counts.items()}
