"""The templates of promptsource 0.2.3, read as data from the installed package's YAML files.

promptsource itself is never imported: importing it needs packages that it pins far in the past, and
its own loader would run whatever a YAML tag asks for. A safe loader (`safe_yaml`) that knows
promptsource's two tags is enough. Source of the format: Bach et al. 2022, arXiv 2202.01279.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flipped_core import bounded
from flipped_core.errors import UserError, shown, unknown
from flipped_tasks import safe_yaml

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


class _Loader(safe_yaml.Loader):
    """YAML's safe loader, plus promptsource's two tags as plain mappings."""


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
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
      UserError: the text is not safe YAML (see `safe_yaml.load`), two templates have one name, or a field is missing
        or of another type; names template and field.
    """
    where = f"templates of {dataset!r}"
    try:
        document = safe_yaml.load(text.encode("utf-8", "surrogatepass"), _Loader)
    except ValueError as error:
        raise UserError(f"{where}: not safe YAML: {str(error)[:300]}") from error
    entries = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise UserError(
            f"{where}: expected promptsource's fields: 'templates', which holds name, jinja, … by id"
        )
    found: dict[str, TemplateSpec] = {}
    for key, entry in entries.items():
        spec = _spec(dataset, entry, key)
        if spec.name in found:
            raise UserError(
                f"template {shown(spec.name)} of {dataset}: expected each name once, got it twice"
            )
        found[spec.name] = spec
    return dict(sorted(found.items()))


def _spec(dataset: str, entry: Any, key: Any) -> TemplateSpec:
    where = f"template {shown(key)} of {dataset}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected promptsource's fields, got {shown(entry)}")
    name = _text(entry, "name", where)
    where = f"template {shown(name)} of {dataset}"
    metadata = entry.get("metadata")
    if not isinstance(metadata, dict | None):
        raise UserError(f"{where}: metadata: expected a mapping, got {shown(metadata)}")
    metadata = metadata or {}
    metrics = metadata.get("metrics")
    if metrics is None:
        metrics = []
    if not isinstance(metrics, list) or not all(isinstance(one, str) for one in metrics):
        raise UserError(f"{where}: metrics: expected a list of texts, got {shown(metrics)}")
    return TemplateSpec(
        dataset=dataset,
        name=name,
        jinja=_text(entry, "jinja", where),
        answer_choices=None
        if entry.get("answer_choices") is None
        else _text(entry, "answer_choices", where),
        original_task=bool(_flag(metadata, "original_task", where)),
        choices_in_prompt=_flag(metadata, "choices_in_prompt", where),
        metrics=tuple(metrics),
        reference="" if entry.get("reference") is None else _text(entry, "reference", where),
    )


def _text(entry: dict[str, Any], field: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str):
        like = " such as 'no ||| yes'" if field == "answer_choices" else ""
        if field not in entry:
            raise UserError(
                f"{where}: expected promptsource's fields, {field!r} among them; it is missing"
            )
        raise UserError(f"{where}: {field}: expected a text{like}, got {shown(value)}")
    return value


def _flag(metadata: dict[str, Any], field: str, where: str) -> bool | None:
    value = metadata.get(field)
    if not isinstance(value, bool | None):
        raise UserError(f"{where}: {field}: expected true or false, got {shown(value)}")
    return value


@functools.cache
def _load(dataset: str) -> dict[str, TemplateSpec]:
    if dataset not in template_datasets():
        raise unknown("dataset", dataset, template_datasets())
    file = templates_dir() / dataset / _FILE_NAME
    return parse_templates(bounded.read_text(file), dataset)


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
