"""A dataset of one's own: registered for all three methods in a few lines, and mixed in at a rate.

    add_dataset("kettles", source="kettles/", label_column="label", templates=[Template(…)])
    add_to_mixture("train", "kettles", rate=2000)

`examples/own_dataset/` works; `flipped tasks new NAME` writes a skeleton. A module that calls these is named with
`--module`, in gin as TASK_MODULES, or by the entry points of an installed package (`mixtures.modules`).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flipped_core import bounded
from flipped_core.errors import UserError, is_utf8, nearest, shown
from flipped_tasks import promptsource
from flipped_tasks.datasets import (
    DatasetSpec,
    dataset_names,
    forget_dataset,
    get_dataset,
    register_dataset,
    slug,
)
from flipped_tasks.own_rows import OwnRows, Source
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.rendering import compile_template
from flipped_tasks.row_values import check_columns
from mixtures import catalog as _catalog  # noqa: F401  (its names are taken)

RECIPE = "train"  # the mixture of the catalog's training datasets: direct_train, channel_train, flipped_train
_ADDED: dict[str, dict[str, float]] = {}  # mixture → dataset → rate
_SHARES: dict[str, dict[str, float]] = {}  # mixture → dataset → share of the examples
_OWN: list[str] = []
_BEFORE: dict[str, DatasetSpec] = {}  # datasets as they were before templates were left out


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt in Jinja, with promptsource's rules; columns are its variables.

    Attributes:
      name: unique within the dataset.
      prompt: instruction and instance, such as 'Is this a question? {{text}}'.
      target: the correct choice, such as '{{answer_choices[label]}}'.
      choices: the options, fixed texts or one Jinja text that parts them by `|||`.
    """

    name: str
    prompt: str
    target: str
    choices: Sequence[str] | str


def add_dataset(
    name: str,
    source: Source,
    label_column: str,
    templates: str | pathlib.Path | Sequence[Template],
    *,
    label_values: Sequence[Any] | None = None,
    label_in: str | None = None,
    unlabelled: Sequence[Any] = (),
    columns: Mapping[str, Any] | None = None,
) -> DatasetSpec:
    """Makes a dataset known, with a task for each method: `flipped.NAME`, `flipped.NAME.TEMPLATE`, ….

    Args:
      name: another than the names that are taken.
      source: a folder with `<split>.jsonl`, `.jsonl.gz`, `.parquet` or `.csv`; or split → file, rows, or a function
        that gives rows. It is read when it is first needed.
      label_column: says which choice is correct; rows in which it is null or in `unlabelled` are dropped and counted.
      templates: `Template`s; a YAML file in promptsource's form; or a dataset whose templates promptsource has.
      label_values: the labels that may occur, or `label_in`: the column that lists them for each row. Without them a
        label below 0 and an empty text mean that a row has no label.
      columns: column → 'string', 'int', 'any', a list of one of these or a dict of columns: must be in each row, and
        types the cells of CSV. None asks for the label column only; other cells of CSV are text then.

    Raises:
      UserError: the name is taken, a template is without choices or not valid, or `columns` lacks the label column.
    """
    if not isinstance(name, str) or not slug(name) or not is_utf8(name):
        raise UserError(f"dataset name: expected letters or digits, got {shown(name)}")
    _check_labels(name, label_column, label_values, label_in, unlabelled)
    if columns is not None and not isinstance(columns, Mapping):
        raise UserError(
            f"dataset {name!r}: columns: expected {{column: type}}, got {shown(columns)}"
        )
    taken = {slug(other).replace(".", "_"): other for other in dataset_names()}
    if (other := taken.get(slug(name).replace(".", "_"))) is not None:
        raise UserError(
            f"dataset {name!r} cannot be registered: {other!r} is registered already; expected another name"
        )
    if columns is not None and label_column not in columns:
        near = ", ".join(map(repr, nearest(label_column, columns) or columns))
        raise UserError(
            f"dataset {name!r}: label_column: expected one of its columns, got {label_column!r}; nearest: {near}"
        )
    types = dict(columns) if columns is not None else {label_column: _label_type(label_values)}
    check_columns(types, f"dataset {name!r}")
    spec = DatasetSpec(
        name=name,
        hub_id="",
        columns=types,
        splits={},
        label_column=label_column,
        label_values=None if label_values is None else tuple(label_values),
        label_in=label_in,
        unlabelled=tuple(unlabelled),
        rows=OwnRows(name, source, types),
    )
    promptsource.register_templates(name, _templates(name, templates))
    _OWN.append(name)
    return register_dataset(spec)


def _check_labels(
    name: str,
    label_column: str,
    label_values: Sequence[Any] | None,
    label_in: str | None,
    unlabelled: Sequence[Any],
) -> None:
    for field, column in (("label_column", label_column), ("label_in", label_in)):
        if not isinstance(column, str) and not (column is None and field == "label_in"):
            raise UserError(
                f"dataset {name!r}: {field}: expected the name of a column, got {shown(column)}"
            )
    for field, values in (("label_values", label_values), ("unlabelled", unlabelled)):
        if values is None and field == "label_values":
            continue
        if not isinstance(values, list | tuple | range):
            raise UserError(f"dataset {name!r}: {field}: expected a list, got {shown(values)}")
        for value in values:
            if not isinstance(value, str | int | float | None):
                raise UserError(
                    f"dataset {name!r}: {field}: expected texts and numbers, got {shown(value)}"
                )


def _label_type(label_values: Sequence[Any] | None) -> str:
    """The type of a label column, as far as its values say it."""
    kinds = {type(value) for value in label_values or ()}
    return {str: "string", int: "int"}.get(kinds.pop(), "any") if len(kinds) == 1 else "any"


def _templates(
    dataset: str, templates: str | pathlib.Path | Sequence[Template]
) -> list[TemplateSpec]:
    """The specs; those of promptsource that have no choices are left out, one's own without are an error."""
    if isinstance(templates, str) and not templates.endswith((".yaml", ".yml")):
        specs = [
            spec for spec in promptsource.load_templates(templates).values() if spec.answer_choices
        ]
        if not specs:
            raise UserError(f"dataset {dataset!r}: no template of {templates!r} has choices")
    elif isinstance(templates, str | pathlib.Path):
        path = pathlib.Path(templates).expanduser()
        if not path.is_file():
            raise UserError(
                f"dataset {dataset!r}: templates: cannot read {str(path)!r}: no such file"
            )
        text = bounded.read_text(path)
        specs = list(promptsource.parse_templates(text, dataset).values())
    elif isinstance(templates, list | tuple):
        specs = [_spec(dataset, template) for template in templates]
    else:
        raise UserError(
            f"dataset {dataset!r}: templates: expected a list of Template(…), a YAML file or a dataset's name, "
            f"got {type(templates).__name__}"
        )
    if not specs:
        raise UserError(f"dataset {dataset!r}: templates: expected at least one, got none")
    names = [slug(spec.name) for spec in specs]
    for spec in specs:
        where = f"template {spec.name!r} of {dataset}"
        if not spec.name.strip() or not is_utf8(spec.name):
            raise UserError(f"{where}: name: expected a text that UTF-8 can hold, not empty")
        if names.count(slug(spec.name)) > 1:
            raise UserError(f"{where}: expected names that differ, got it twice")
        if not (spec.answer_choices or "").strip():
            raise UserError(
                f"{where} has no choices; expected at least two, such as choices=('no', 'yes')"
            )
        _check_fixed_choices(spec, where)
        if "|||" not in spec.jinja:
            raise UserError(f"{where}: expected prompt ||| target, got no '|||'")
        compile_template(dataclasses.replace(spec, dataset=dataset))
    return specs


def _spec(dataset: str, template: Template) -> TemplateSpec:
    if not isinstance(template, Template):
        raise UserError(
            f"dataset {dataset!r}: templates: expected Template(…), got {shown(template)}"
        )
    where = f"template {template.name!r} of {dataset}"
    for field in ("name", "prompt", "target"):
        if not isinstance(value := getattr(template, field), str):
            raise UserError(f"{where}: {field}: expected a text, got {shown(value)}")
    choices = template.choices
    if not isinstance(choices, str):
        plain = isinstance(choices, list | tuple)
        if not plain or any(
            not isinstance(text, str) or "|||" in text or "{{" in text for text in choices
        ):
            raise UserError(
                f"{where}: choices: expected plain texts such as ('no', 'yes') or one Jinja text, got {shown(choices)}"
            )
        choices = " ||| ".join(choices)
    return TemplateSpec(
        dataset=dataset,
        name=template.name,
        jinja=f"{template.prompt} ||| {template.target}",
        answer_choices=choices,
        original_task=True,
        choices_in_prompt=None,
        metrics=("Accuracy",),
        reference="",
    )


def _check_fixed_choices(spec: TemplateSpec, where: str) -> None:
    """Of choices that no row changes: at least two, none of them empty, no two alike."""
    assert spec.answer_choices is not None
    if "{{" in spec.answer_choices or "{%" in spec.answer_choices:
        return
    choices = [choice.strip() for choice in spec.answer_choices.split("|||")]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise UserError(
            f"{where}: choices: expected at least two, none empty and no two alike, got {shown(choices)}"
        )


def add_to_mixture(
    mixture: str, dataset: str, rate: float | None = None, *, share: float | None = None
) -> None:
    """Mixes a dataset in, for every method: 'train' stands for direct_train, channel_train and flipped_train.

    Give either `rate` or `share`.

    Args:
      mixture: 'train', to which the catalog's datasets belong, or a name of one's own.
      dataset: any that is registered.
      rate: how often it is drawn, in the unit of the others: in 'train' the number of training examples.
      share: the expected share of the mixture's examples, such as 0.1; those with a rate divide the rest.

    Raises:
      UserError: an unknown dataset, one that is in the mixture already, neither or both of rate and share, a rate that
        is not above 0, or shares that are not above 0 or leave nothing to the others.
    """
    get_dataset(dataset)
    if not slug(mixture) or slug(mixture) != mixture or mixture.endswith("_by_template"):
        raise UserError(f"mixture: expected letters, digits and _, got {mixture!r}")
    where = f"mixture {mixture!r}, dataset {dataset!r}"
    if (rate is None) == (share is None):
        got = "neither" if rate is None else "both"
        raise UserError(f"{where}: expected either rate or share, got {got}")
    if rate is not None and not _is_number(rate, math.inf):
        raise UserError(f"{where}: rate: expected a number above 0, got {rate!r}")
    if share is not None and not _is_number(share, 1):
        raise UserError(f"{where}: share: expected a number between 0 and 1, got {share!r}")
    inside = {**_ADDED.get(mixture, {}), **_SHARES.get(mixture, {})}
    if dataset in inside or (mixture == RECIPE and dataset in _catalog.TRAINING):
        raise UserError(f"mixture {mixture!r} has dataset {dataset!r} already; expected it once")
    if rate is not None:
        _ADDED.setdefault(mixture, {})[dataset] = float(rate)
        return
    assert share is not None
    total = share + sum(_SHARES.get(mixture, {}).values())
    if total >= 1:
        raise UserError(
            f"{where}: share: expected shares whose sum is below 1, got {total:g} with those of the other datasets"
        )
    _SHARES.setdefault(mixture, {})[dataset] = float(share)


def _is_number(value: Any, limit: float) -> bool:
    """Whether it is a number above 0 and below `limit`."""
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < limit


def exclude_templates(templates: Mapping[str, Sequence[str]], why: str = "left out") -> None:
    """Takes templates out of the training of every method: {'qasc': ['is_correct_2']}.

    Args:
      templates: dataset → names of templates.
      why: what commands say of them.

    Raises:
      UserError: an unknown dataset or template.
    """
    if not isinstance(templates, Mapping):
        raise UserError(
            f"exclude_templates: expected {{dataset: [template, …]}}, got {templates!r}"
        )
    for dataset, names in templates.items():
        spec = get_dataset(dataset)
        if isinstance(names, str):
            raise UserError(f"exclude_templates: {dataset!r}: expected a list, got {names!r}")
        for name in names:
            promptsource.load_template(dataset, name)
        left_out = {**spec.excluded_templates, **dict.fromkeys(names, why)}
        _BEFORE.setdefault(dataset, spec)
        register_dataset(dataclasses.replace(spec, excluded_templates=left_out))


def added(mixture: str = RECIPE) -> dict[str, float]:
    """dataset → rate of what was added to a mixture with a rate."""
    return dict(_ADDED.get(mixture, {}))


def with_shares(mixture: str, rates: Mapping[str, float]) -> dict[str, float]:
    """dataset → rate of all of a mixture, those that were added with a share included.

    Args:
      mixture: its name.
      rates: of the datasets that have a rate.

    Raises:
      UserError: no dataset has a rate, so that the shares leave a part of the examples to none.
    """
    shares = _SHARES.get(mixture, {})
    if not shares:
        return dict(rates)
    if not rates:
        raise UserError(
            f"mixture {mixture!r}: expected at least one dataset with a rate, which takes what the shares leave, got "
            f"shares only, of {', '.join(shares)}"
        )
    whole = sum(rates.values()) / (1 - sum(shares.values()))
    return {**rates, **{dataset: share * whole for dataset, share in shares.items()}}


def mixture_names() -> list[str]:
    """'train' and the names of custom mixtures, sorted."""
    return sorted({RECIPE, *_ADDED, *_SHARES})


def own_datasets() -> list[str]:
    """The names given to `add_dataset`, in that order."""
    return list(_OWN)


def forget_all() -> None:
    """Takes back all that this module's functions did, in notebooks and tests."""
    for spec in _BEFORE.values():
        register_dataset(spec)
    _BEFORE.clear()
    for name in own_datasets():
        forget(name)
    _ADDED.clear()
    _SHARES.clear()


def forget(name: str) -> None:
    """Takes a dataset out again, and out of all mixtures: for notebooks, and for tests."""
    if name in _OWN:
        _OWN.remove(name)
        forget_dataset(name)
        promptsource.forget_templates(name)
    for mixtures in (_ADDED, _SHARES):
        for inside in mixtures.values():
            inside.pop(name, None)
        for mixture in [mixture for mixture, inside in mixtures.items() if not inside]:
            del mixtures[mixture]
