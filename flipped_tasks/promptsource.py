"""The templates of promptsource 0.2.3, read as data from the installed package's YAML files.

promptsource itself is never imported: importing it needs packages that it pins far in the past, and
its own loader would run whatever a YAML tag asks for. A safe loader that knows promptsource's two
tags is enough. Source of the format: Bach et al. 2022, arXiv 2202.01279.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from flipped_core.errors import UserError, unknown

_INSTALL = "pip install --no-deps --ignore-requires-python promptsource==0.2.3"
_FILE_NAME = "templates.yaml"


@dataclass(frozen=True)
class TemplateSpec:
    """One template as its author wrote it.

    Attributes:
      dataset: promptsource's name, with the configuration behind a slash: `super_glue/rte`.
      name: unique within the dataset.
      jinja: prompt and target, parted by `|||`.
      answer_choices: Jinja source of the options, parted by `|||`; None where the answer is open.
      original_task: whether the template asks for the dataset's own task.
      choices_in_prompt: whether the prompt shows the options; None where the author did not say.
      metrics: the author's metrics, such as "Accuracy".
      reference: the author's note on where the wording comes from.
    """

    dataset: str
    name: str
    jinja: str
    answer_choices: str | None
    original_task: bool
    choices_in_prompt: bool | None
    metrics: tuple[str, ...]
    reference: str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, plus promptsource's two tags as plain mappings."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _mapping)
_Loader.add_constructor("!TemplateMetadata", _mapping)


def templates_dir() -> pathlib.Path:
    """The folder of YAML files in the installed package; `UserError` where there is none."""
    found = importlib.util.find_spec("promptsource")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = pathlib.Path(place) / "templates"
        if folder.is_dir():
            return folder
    raise UserError(f"promptsource's templates are not installed; expected after: {_INSTALL}")


def template_datasets() -> list[str]:
    """Names of all datasets that promptsource has templates for, sorted."""
    root = templates_dir()
    return sorted(file.parent.relative_to(root).as_posix() for file in root.rglob(_FILE_NAME))


def parse_templates(text: str, dataset: str) -> dict[str, TemplateSpec]:
    """The templates in one YAML document, by name, sorted by name.

    Raises:
      UserError: the text is not YAML, asks for another tag than promptsource's two (such as
        `!!python/object`), or lacks a field.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
        entries = document["templates"].values()
        specs = [_spec(dataset, entry) for entry in entries]
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"templates of {dataset!r} cannot be read as safe YAML: {reason}"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"templates of {dataset!r}: expected promptsource's fields, got {error!r}"
        ) from error
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.name)}


def _spec(dataset: str, entry: dict[str, Any]) -> TemplateSpec:
    metadata = entry.get("metadata") or {}
    return TemplateSpec(
        dataset=dataset,
        name=entry["name"],
        jinja=entry["jinja"],
        answer_choices=entry.get("answer_choices"),
        original_task=bool(metadata.get("original_task")),
        choices_in_prompt=metadata.get("choices_in_prompt"),
        metrics=tuple(metadata.get("metrics") or ()),
        reference=entry.get("reference") or "",
    )


@functools.cache
def _load(dataset: str) -> dict[str, TemplateSpec]:
    if dataset not in template_datasets():
        raise unknown("dataset", dataset, template_datasets())
    file = templates_dir() / dataset / _FILE_NAME
    return parse_templates(file.read_text(encoding="utf-8"), dataset)


_OWN: dict[str, dict[str, TemplateSpec]] = {}


def register_templates(dataset: str, specs: Iterable[TemplateSpec]) -> None:
    """Gives a dataset templates of its own, in place of any that promptsource has under that name."""
    ordered = sorted(specs, key=lambda spec: spec.name)
    _OWN[dataset] = {spec.name: dataclasses.replace(spec, dataset=dataset) for spec in ordered}


def forget_templates(dataset: str) -> None:
    """Takes back `register_templates`."""
    _OWN.pop(dataset, None)


def load_templates(dataset: str) -> dict[str, TemplateSpec]:
    """All templates of a dataset such as `super_glue/rte`, by name, sorted by name.

    Raises:
      UserError: promptsource is not installed, or has no such dataset; names the nearest.
    """
    return dict(_OWN[dataset] if dataset in _OWN else _load(dataset))


def load_template(dataset: str, name: str) -> TemplateSpec:
    """One template; `UserError` with the nearest names where the dataset has none of that name."""
    templates = load_templates(dataset)
    if name not in templates:
        raise unknown(f"template of {dataset}", name, templates)
    return templates[name]
