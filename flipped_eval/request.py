"""The settings that all runs of an evaluation job share. Importing this module loads nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flipped_core.settings import check_fields, setting

TEMPLATE_CHOICES = ("original", "all")


@dataclasses.dataclass(frozen=True)
class Request:
    """Which suites are scored, and on which rows."""

    suites: tuple[str, ...] = setting(
        "nlp14, bigbench14, labels, seen; or DATASET, DATASET:TEMPLATE.",
        ("nlp14", "labels"),
        macro="SUITES",
        option="suite",
    )
    templates: str = setting(
        "T0's templates (original), or every usable one (all).",
        "original",
        macro="TEMPLATES",
        option="templates",
        choices=TEMPLATE_CHOICES,
    )
    splits: Mapping[str, str] = setting(
        "Another split than the suite's: {'imdb': 'train'}.",
        factory=dict,
        macro="SPLITS",
        option="split",
        metavar="DATASET=SPLIT",
    )
    exclude_datasets: tuple[str, ...] = setting(
        "Datasets to leave out, such as story_cloze/2016, whose rows are handed out on request.",
        (),
        macro="EXCLUDE_DATASETS",
        option="exclude",
        metavar="DATASET",
    )
    max_examples: int | None = setting(
        "Examples of each template, sampled with SEED; None takes all.",
        None,
        macro="MAX_EXAMPLES",
        option="max_examples",
        unit="examples",
        minimum=1,
    )
    seed: int = setting(
        "Seed of the sampled examples and of the templates' random choices.",
        0,
        macro="SEED",
        option="seed",
        minimum=0,
    )
    data_dir: str | None = setting(
        "Folder of rows, DATASET/SPLIT.jsonl[.gz] or .parquet; None uses made-up rows.",
        None,
        macro="DATA_DIR",
        option="data_dir",
        env="FLIPPED_DATA_DIR",
        path=True,
    )
    label_sets: str | None = setting(
        "A file like mixtures/label_sets.yaml, for the suite labels.",
        None,
        macro="LABEL_SETS",
        option="label_sets",
        path=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
