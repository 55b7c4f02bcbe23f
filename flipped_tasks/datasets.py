"""What is known of a dataset: its columns, its labels, its splits, and which of its templates are used.

The facts live in `mixtures/catalog.py`; this module gives them their form, keeps the registry and checks rows
against them. A row that has no label is dropped and counted; a row that contradicts the catalog is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from flipped_core.errors import UserError, shown, unknown
from flipped_tasks import promptsource
from flipped_tasks.methods import METHODS
from flipped_tasks.rendering import Dropped

UNLABELLED = Dropped("unlabelled")
_MOST_SHOWN = 20  # labels in an error


class Rows(Protocol):
    """Where the rows of a dataset of one's own come from; see `flipped_tasks.own_rows`."""

    def splits(self) -> tuple[str, ...]:
        """The splits at hand."""

    def payloads(self, split: str) -> list[bytes]:
        """All rows of a split, each as its JSON bytes."""

    def __hash__(self) -> int:
        """Rows are cached by where they come from."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One dataset configuration, under the name that promptsource gives it.

    Attributes:
      name: promptsource's name, such as 'super_glue/rte'.
      hub_id: the hub's name of today; `hub_config` is its configuration, None where there is only one.
      hub_revision: the branch, tag or commit to download; by default the hub's own conversion to Parquet.
      columns: column → type name, `[type]` for a list, or a dict of these for a nested column.
      label_column: the column that says which choice is correct; None where nothing marks it.
      label_values: the values it may take; None where they are free text.
      label_in: the column, dotted where nested, whose items hold the allowed values of this row.
      label_names: what integer labels 0, 1, … mean, in their order; None where that is not known.
      unlabelled: values of the label column that mean that the row has no label; null always does, and so do a
        whole number below 0 and an empty text where the allowed values are not known.
      splits: split → published number of examples.
      unusable: templates whose target is not always one of their choices → why.
      excluded_templates: usable templates that no method uses → why.
      excluded_flipped: templates that FLIPPED cannot use → why.
      notes: template → what to know of it; it stays in use.
      rows: where a dataset of one's own is read; None for a `data_dir` or the embedded world.
    """

    name: str
    hub_id: str
    columns: Mapping[str, Any]
    splits: Mapping[str, int]
    label_column: str | None = None
    label_values: tuple[Any, ...] | None = None
    label_names: tuple[str, ...] | None = None
    label_in: str | None = None
    unlabelled: tuple[Any, ...] = ()
    hub_config: str | None = None
    hub_revision: str = "refs/convert/parquet"
    unusable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    excluded_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    excluded_flipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: Rows | None = None

    def check_row(self, row: Mapping[str, Any], number: int | None = None) -> Dropped | None:
        """None for a good row, `Dropped('unlabelled')` for a row without a label.

        Args:
          row: column → value, in the hub's schema; additional columns are allowed.
          number: 1-based row number, for the message.

        Raises:
          UserError: a column is missing, or the label is outside its range.
        """
        self._check_columns(row, self.columns, "", number)
        if self.label_column is None:
            return None
        label = _plain(row[self.label_column])
        if label is None or label in self.unlabelled:
            return UNLABELLED
        if isinstance(label, list | tuple | Mapping):
            raise UserError(
                f"{self._where(number)}: column {self.label_column!r}: expected a text or a number, "
                f"got {type(label).__name__}"
            )
        allowed = self.allowed_labels(row, number)
        if allowed is None and _means_none(label):
            return UNLABELLED
        if allowed is not None and label not in allowed:
            known = ", ".join(shown(value) for value in allowed[:_MOST_SHOWN])
            more = f", … ({len(allowed)} in all)" if len(allowed) > _MOST_SHOWN else ""
            raise UserError(
                f"{self._where(number)}: column {self.label_column!r}: expected one of {known}{more}, "
                f"got {shown(row[self.label_column])}"
            )
        return None

    def allowed_labels(
        self, row: Mapping[str, Any], number: int | None = None
    ) -> tuple[Any, ...] | None:
        """The labels that a row may have; None where that is not known. Raises `UserError` as `check_row`."""
        if self.label_in is None:
            return self.label_values
        value: Any = row
        for part in self.label_in.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            if value is None:
                return None
        if not isinstance(value, list | tuple):
            raise UserError(
                f"{self._where(number)}: column {self.label_in!r}: expected the list of the row's labels, got "
                + ("no such column" if value is _ABSENT else f"{type(value).__name__}")
            )
        return tuple(_plain(item) for item in value)

    def _check_columns(
        self, row: Mapping[str, Any], columns: Mapping[str, Any], prefix: str, number: int | None
    ) -> None:
        for column, kind in columns.items():
            if column not in row:
                hint = unknown("column", column, row).args[0].split("; ", 1)[1]
                raise UserError(
                    f"{self._where(number)}: missing column {prefix + column!r}; among the row's, {hint}"
                )
            value = row[column]
            if isinstance(kind, Mapping) and value is not None:
                if not isinstance(value, Mapping):
                    raise UserError(
                        f"{self._where(number)}: column {prefix + column!r}: expected a dict of "
                        f"{', '.join(kind)}, got {type(value).__name__}"
                    )
                self._check_columns(value, kind, f"{prefix}{column}.", number)

    def _where(self, number: int | None) -> str:
        return f"dataset {self.name!r}" + ("" if number is None else f", row {number}")


def _plain(value: Any) -> Any:
    """A label as it is compared: strings without the white space around them ('1\\n' is '1')."""
    if isinstance(value, float) and value != value:  # NaN, as pandas writes what is missing
        return None
    return value.strip() if isinstance(value, str) else value


def _means_none(label: Any) -> bool:
    """The usual signs that a row has no label: the hub's −1 (any number below 0), an empty text."""
    return label == "" or (isinstance(label, int | float) and label < 0)


_ABSENT = object()
_DATASETS: dict[str, DatasetSpec] = {}


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Makes a dataset known under its name; the same name again replaces it."""
    _DATASETS[spec.name] = spec
    return spec


def forget_dataset(name: str) -> None:
    """Takes back `register_dataset`."""
    _DATASETS.pop(name, None)


def get_dataset(name: str) -> DatasetSpec:
    """The dataset of that name. Raises `UserError` with the nearest names."""
    if name not in _DATASETS:
        raise unknown("dataset", name, _DATASETS)
    return _DATASETS[name]


def dataset_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_DATASETS)


def usable_templates(dataset: str | DatasetSpec, method: str | None = None) -> list[str]:
    """Names of the templates that can be ranked: choices are given and the target is always one of them.

    Args:
      dataset: a name or a spec.
      method: leaves out what this method cannot use; None counts as the table of promptsource's
        usable templates does, before any exclusion.

    Raises:
      UserError: the dataset or the method is unknown.
    """
    spec = get_dataset(dataset) if isinstance(dataset, str) else dataset
    if method is not None and method not in METHODS:
        raise unknown("method", method, METHODS)
    out: set[str] = set(spec.unusable)
    if method is not None:
        out |= set(spec.excluded_templates)
    if method == "flipped":
        out |= set(spec.excluded_flipped)
    templates = promptsource.load_templates(spec.name)
    return [name for name, t in templates.items() if t.answer_choices and name not in out]


def training_templates(spec: DatasetSpec, method: str) -> list[str]:
    """As `usable_templates`; raises `UserError` where there is none."""
    names = usable_templates(spec, method)
    if not names:
        raise UserError(f"dataset {spec.name!r} has no template left that {method} can use")
    return names


def template_names(
    dataset: str, method: str | None = None, original_task: bool = False
) -> list[str]:
    """As `usable_templates`; `original_task` keeps those that pose the dataset's own task, as T0 does."""
    templates = promptsource.load_templates(dataset)
    names = usable_templates(dataset, method)
    return [name for name in names if templates[name].original_task or not original_task]


def check_template(dataset: str, template: str, method: str) -> str:
    """The template's name when this method can use it; raises `UserError` with the reason otherwise."""
    spec = get_dataset(dataset)
    promptsource.load_template(dataset, template)
    usable = usable_templates(spec, method)
    if template in usable:
        return template
    reasons = {**spec.excluded_flipped, **spec.excluded_templates, **spec.unusable}
    why = reasons.get(template, "it has no answer choices")
    raise UserError(f"template {template!r} of dataset {dataset!r} is not used for {method}: {why}")


def slug(name: str) -> str:
    """A name as SeqIO allows it in task names: letters, digits, `_` and `.` only."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.")


def slugs(names: Iterable[str]) -> dict[str, str]:
    """slug → name. Raises `UserError` where two names would share a slug."""
    out: dict[str, str] = {}
    for name in names:
        if slug(name) in out:
            raise UserError(
                f"names {out[slug(name)]!r} and {name!r} give the same slug {slug(name)!r}"
            )
        out[slug(name)] = name
    return out
