"""The catalog against the facts of the hub's own cards."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from flipped_tasks.datasets import get_dataset
from mixtures import catalog


def _kind(kind: Any) -> Any:
    """A type of the cards in the catalog's words."""
    if isinstance(kind, str):
        return {"int8": "int", "int32": "int"}.get(kind, kind)
    if "ClassLabel" in kind:
        return "int"
    if "Sequence" in kind:
        return [_kind(kind["Sequence"])]
    lists = kind.get("Sequence(dict of lists)")
    if lists is not None:
        return {key: [_kind(one)] for key, one in lists.items()}
    return {key: _kind(one) for key, one in kind.items()}


def test_the_catalog_says_what_the_cards_say(shared_dir: pathlib.Path) -> None:
    """Hub id, configuration, splits with numbers of examples, columns, and names of labels."""
    document = json.loads((shared_dir / "data" / "nlp" / "catalog_facts.json").read_text())
    facts = {fact["promptsource"]: fact for fact in document["datasets"]}
    ours = (*catalog.TRAINING, *catalog.EVALUATION, *catalog.ALTERNATIVES.values())
    assert len(ours) == 33
    for name in ours:
        spec, fact = get_dataset(name), facts[name]
        assert spec.hub_id == fact["hub_id_today"], name
        assert spec.hub_config == fact["config"], name
        assert spec.hub_revision == "refs/convert/parquet"
        assert dict(spec.splits) == fact["num_examples"], name
        if fact["columns"]:
            assert spec.columns == {key: _kind(kind) for key, kind in fact["columns"].items()}, name
        assert spec.label_column is None or spec.label_column in spec.columns
        assert spec.unlabelled or spec.label_column is None, name
        for names in (fact["label_names"] or {}).values():
            assert spec.label_names == tuple(names), name


def test_bigbench_has_no_label_column_and_one_split() -> None:
    for task, parts in catalog.BIGBENCH.items():
        for part, examples in parts.items():
            spec = get_dataset(f"bigbench/{task}/{part}".rstrip("/"))
            assert spec.splits == {"default": examples} and spec.label_column is None
