"""What is evaluated: the 14 NLP tasks, 14 tasks of BIG-bench, and label generalization.

A suite is a list of `EvalTask`: one split of one dataset under one template. Sources: the model cards of the public
Flipped models; Sanh et al. 2022 (arXiv 2110.08207) for the datasets and for ANLI's splits.
"""

from __future__ import annotations

import dataclasses
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import Any

from flipped_core.errors import UserError, unknown
from flipped_core.paths import explain, to_path
from flipped_tasks import bigbench, promptsource, safe_yaml
from flipped_tasks.datasets import check_template, get_dataset, template_names, usable_templates
from flipped_tasks.rendering import Rendered
from mixtures import catalog as _catalog  # noqa: F401  (fills the registry of datasets)

TEMPLATE_CHOICES = ("original", "all")
LABEL_SETS_FILE = pathlib.Path(__file__).with_name("label_sets.yaml")
ORIGINAL = "original"
ALL_SUBSTITUTES = "all substitutes"  # the mean over all label sets
_NOT_IN_TEXT = ("Cc", "Cs", "Zl", "Zp")  # control characters, half characters, ends of lines
_KEPT_NAMES = {ORIGINAL: "the template's own words", ALL_SUBSTITUTES: "the mean over all sets"}
LONGEST_WORD = 200  # characters of a label word or of a name in a file of label sets
CHOSEN = "chosen"  # the suite of the datasets that are named one by one

# Task → dataset and split.
NLP14: dict[str, tuple[str, str]] = {
    "anli_r1": ("anli", "dev_r1"),
    "anli_r2": ("anli", "dev_r2"),
    "anli_r3": ("anli", "dev_r3"),
    "cb": ("super_glue/cb", "validation"),
    "rte": ("super_glue/rte", "validation"),
    "wsc": ("super_glue/wsc.fixed", "validation"),
    "winogrande_xl": ("winogrande/winogrande_xl", "validation"),
    "wic": ("super_glue/wic", "validation"),
    "copa": ("super_glue/copa", "validation"),
    "hellaswag": ("hellaswag", "validation"),
    "story_cloze": ("story_cloze/2016", "validation"),
    "piqa": ("piqa", "validation"),
    "arc_challenge": ("ai2_arc/ARC-Challenge", "validation"),
    "openbookqa": ("openbookqa/main", "validation"),
}
# Of the datasets in the label suite, those that are not evaluated on their validation split.
_LABEL_SPLITS = {"imdb": "test"}


@dataclasses.dataclass(frozen=True)
class EvalTask:
    """One split of one dataset under one template.

    Attributes:
      suite: 'nlp14', 'bigbench14', 'labels' or 'seen'.
      task: the name in the report; several templates share it.
      dataset, split, template: what is read and how it is put.
      label_words: original word → substitute; None leaves the choices as they are.
      label_set: the substitution's name; 'original' for none.
    """

    suite: str
    task: str
    dataset: str
    split: str
    template: str
    label_words: Mapping[str, str] | None = None
    label_set: str = ORIGINAL


def nlp14(templates: str = "original", split: str | None = None) -> list[EvalTask]:
    """The 14 tasks, each under its templates: 103 original templates, or all 111.

    ANLI's templates count once for each of its three rounds.

    Args:
      templates: 'original' for those that pose the dataset's own task, as T0 does; 'all' for all usable ones.
      split: instead of validation: 'train' or 'test'. ANLI's is that of the round: 'test' is test_r1 and so on.

    Raises:
      UserError: another value of `templates`, or a dataset without that split.
    """
    if templates not in TEMPLATE_CHOICES:
        raise unknown("templates", templates, TEMPLATE_CHOICES)
    tasks = []
    for task, (dataset, default) in NLP14.items():
        chosen = _split(dataset, default, split)
        for template in template_names(dataset, original_task=templates == "original"):
            tasks.append(EvalTask("nlp14", task, dataset, chosen, template))
    return tasks


def _split(dataset: str, default: str, split: str | None) -> str:
    if split in (None, "validation"):
        return default
    assert split is not None
    wanted = split + default.removeprefix("dev") if default.startswith("dev_") else split
    known = get_dataset(dataset).splits
    if wanted not in known:
        raise unknown(f"split of {dataset!r}", wanted, known)
    return wanted


def bigbench14() -> list[EvalTask]:
    """The 14 tasks of BIG-bench. A sub-task stands as a template of its task, so that sub-tasks are averaged."""
    tasks = []
    for task, parts in _catalog.BIGBENCH.items():
        for part in parts:
            dataset = f"{bigbench.PREFIX}{task}/{part}".rstrip("/")
            name = bigbench.template_name(dataset)
            tasks.append(EvalTask("bigbench14", task, dataset, bigbench.SPLIT, name))
    return tasks


@dataclasses.dataclass(frozen=True)
class LabelSets:
    """The answer words of one template and what may stand for them.

    Attributes:
      dataset, template: which template.
      words: its choices, in its order.
      sets: name → substitutes, in the order of `words`.
    """

    dataset: str
    template: str
    words: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]


def load_label_sets(path: str | pathlib.Path | None = None) -> list[LabelSets]:
    """Reads a file like `label_sets.yaml`; None reads that.

    Raises:
      UserError: the file cannot be read, names what does not exist, says something twice, or gives other words or
        another number of words than the template has.
    """
    file = to_path(LABEL_SETS_FILE if path is None else path, "label_sets")
    if file.exists() and not file.is_file():
        raise UserError(f"cannot read label sets: {file} is no file")
    try:
        with file.open("rb") as opened:
            entries = safe_yaml.load(opened.read(safe_yaml.MOST_BYTES + 1))
    except OSError as error:
        raise UserError(f"cannot read label sets: {file}: {explain(error)}") from error
    except ValueError as error:
        raise UserError(f"{file} is not safe YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: expected a list of entries, got {type(entries).__name__}")
    found: dict[tuple[str, str], LabelSets] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{file.name}, entry {number}"
        sets = _label_sets(entry, where)
        if (sets.dataset, sets.template) in found:
            raise UserError(f"{where}: {sets.dataset!r}, template {sets.template!r} occurs twice")
        found[sets.dataset, sets.template] = sets
    return list(found.values())


def _label_sets(entry: Any, where: str) -> LabelSets:
    fields = {"dataset", "template", "words", "sets"}
    if not isinstance(entry, dict) or set(entry) != fields:
        got = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(
            f"{where}: expected the fields {', '.join(sorted(fields))}, got {got[:120]}"
        )
    dataset, template = (_text(entry[name], f"{where}: {name}") for name in ("dataset", "template"))
    if not isinstance(entry["sets"], dict):
        raise UserError(
            f"{where}: sets: expected names with their words, got {type(entry['sets']).__name__}"
        )
    try:
        if template not in usable_templates(dataset):
            check_template(dataset, template, "direct")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    words = _words(entry["words"], f"{where}: words")
    _check_own_words(dataset, template, words, where)
    sets: dict[str, tuple[str, ...]] = {}
    for key, substitutes in entry["sets"].items():
        name = _text(key, f"{where}: the name of a set")
        found = _words(substitutes, f"{where}: set {name!r}")
        if len(found) != len(words):
            raise UserError(
                f"{where}: set {name!r}: expected {len(words)} words, got {len(found)}: {_shown(list(found))}"
            )
        if name in _KEPT_NAMES:
            raise UserError(f"{where}: the name {name!r} is kept for {_KEPT_NAMES[name]}")
        sets[name] = found
    return LabelSets(dataset, template, words, sets)


def _text(value: Any, where: str) -> str:
    """A text for files and reports: 1 to `LONGEST_WORD` characters on one line, without control characters."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected a word in quotes, got {_shown(value)}")
    if len(value) > LONGEST_WORD:
        raise UserError(f"{where}: expected at most {LONGEST_WORD} characters, got {len(value):,}")
    if any(unicodedata.category(character) in _NOT_IN_TEXT for character in value):
        raise UserError(f"{where}: expected a word on one line, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value in a message; a long one is cut."""
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list of words, got {_shown(value)}")
    words = [_text(word, where) for word in value]
    if stray := next((word for word in words if word != word.strip()), None):
        raise UserError(f"{where}: expected a word without spaces around it, got {stray!r}")
    if len(set(words)) != len(words):
        raise UserError(f"{where}: a word occurs twice: {_shown(words)}")
    return tuple(words)


def _check_own_words(dataset: str, template: str, words: tuple[str, ...], where: str) -> None:
    source = promptsource.load_template(dataset, template).answer_choices or ""
    own = tuple(part.strip() for part in source.split("|||"))
    if words != own:
        raise UserError(
            f"{where}: words: expected those of template {template!r}, {list(own)}, got {_shown(list(words))}"
        )


def labels(path: str | pathlib.Path | None = None, split: str | None = None) -> list[EvalTask]:
    """Label generalization: each template with its own words and with each set of substitutes.

    Args:
      path: another file of label sets.
      split: for all datasets; None reads validation (imdb: test).
    """
    tasks = []
    for entry in load_label_sets(path):
        chosen = split or _LABEL_SPLITS.get(entry.dataset, "validation")
        known = get_dataset(entry.dataset).splits
        if chosen not in known:
            raise unknown(f"split of {entry.dataset!r}", chosen, known)
        task = (
            entry.dataset.split("/")[-1]
            if entry.dataset.startswith("super_glue")
            else entry.dataset.split("/")[0]
        )
        base = EvalTask(
            "labels", task.removesuffix(".fixed"), entry.dataset, chosen, entry.template
        )
        tasks.append(base)
        for name, substitutes in entry.sets.items():
            words = dict(zip(entry.words, substitutes, strict=True))
            tasks.append(dataclasses.replace(base, label_words=words, label_set=name))
    return tasks


def seen(templates: str = "original") -> list[EvalTask]:
    """The training datasets on rows that training does not see: validation, or test where there is none.

    Only templates that every method can use, so that the methods are compared on the same ones. app_reviews is
    not there: the hub has nothing but its training rows.

    Args:
      templates: as in `nlp14`; a dataset without original ones (quarel) is there with all of its templates.
    """
    if templates not in TEMPLATE_CHOICES:
        raise unknown("templates", templates, TEMPLATE_CHOICES)
    tasks = []
    for dataset in _catalog.TRAINING:
        known = get_dataset(dataset).splits
        split = next((name for name in ("validation", "test") if name in known), None)
        if split is not None:
            names = template_names(dataset, "flipped", original_task=templates == "original")
            for template in names or template_names(dataset, "flipped"):
                tasks.append(EvalTask("seen", dataset, dataset, split, template))
    return tasks


def with_label_words(rendered: Rendered, words: Mapping[str, str] | None) -> Rendered:
    """The example with other label words: choices and target change, the prompt does not.

    Raises:
      UserError: a choice has no substitute.
    """
    if words is None:
        return rendered
    missing = [choice for choice in rendered.choices if choice not in words]
    if missing:
        raise UserError(
            f"label words: expected a substitute for {missing[0]!r}, got {', '.join(words)}"
        )
    choices = tuple(words[choice] for choice in rendered.choices)
    return dataclasses.replace(rendered, choices=choices, target=choices[rendered.correct])
