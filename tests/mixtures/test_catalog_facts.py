"""The catalog against the facts of the hub's own cards."""

from __future__ import annotations

import json
import pathlib

from flipped_tasks.datasets import get_dataset
from mixtures import catalog


def test_the_catalog_says_what_the_cards_say(shared_dir: pathlib.Path) -> None:
    """Hub id, configuration, splits with numbers of examples, columns, and names of labels."""
    document = json.loads((shared_dir / "data" / "nlp" / "catalog_facts.json").read_text())
    facts = {fact["promptsource"]: fact for fact in document["datasets"]}
    ours = (*catalog.TRAINING, *catalog.EVALUATION, *catalog.ALTERNATIVES.values())
    assert len(ours) == 33
    for name in ours:
        spec, fact = get_dataset(name), facts[name]
        assert spec.hub_id == fact["hub_id_today"], name
        assert spec.hub_config in (fact["config"], None), name
        assert spec.hub_revision == "refs/convert/parquet"
        assert dict(spec.splits) == fact["num_examples"], name
        if fact["columns"]:
            assert set(spec.columns) == set(fact["columns"]), name
        assert spec.label_column is None or spec.label_column in spec.columns
        assert spec.unlabelled or spec.label_column is None, name
        for names in (fact["label_names"] or {}).values():
            assert spec.label_names == tuple(names), name


def test_bigbench_has_no_label_column_and_one_split() -> None:
    for task, parts in catalog.BIGBENCH.items():
        for part, examples in parts.items():
            spec = get_dataset(f"bigbench/{task}/{part}".rstrip("/"))
            assert spec.splits == {"default": examples} and spec.label_column is None
