"""Checks a template on rows: does it ask what its label answers, without giving the answer away?

Two checks change a row and look at what follows, so that they need not understand the template:
another label must not change the prompt (or the prompt shows the answer), and where a template is about one option
only (one label gives one target, all the others another), another text of that option must change the prompt (or it
asks about one option and takes its label from another, as qasc/is_correct_2 does).
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flipped_tasks.datasets import DatasetSpec
from flipped_tasks.methods import METHODS, format_example
from flipped_tasks.rendering import CompiledTemplate, Dropped, Rendered, template_rng
from flipped_tasks.tokens import Vocabulary, encode

TOLERATED = 0.05  # of the rows; what happens more often is wrong
LENGTHS = {"inputs": 512, "targets": 128}
_CHANGED_ROWS = 40  # rows that are rendered with other labels and options
_MOST_LABELS = 20  # a label column with more values than this is free text
_SEED = 0
_MARK = "zyx wvu"
_WORD = re.compile(r"\w")

Row = Mapping[str, Any]
_Render = Callable[[Row, int], Rendered | Dropped]


@dataclasses.dataclass
class Report:
    """What was found about one template.

    Attributes:
      dataset, template: which.
      left_out: why the template is not used, and was not checked; empty for one that is.
      rows: rows looked at.
      choices: the number of choices, such as '2' or '3–5'; 'fixed' where they are always the same.
      draws: the template draws at random.
      dropped: reason → rows.
      shown: share of rows whose prompt holds the correct choice and no other.
      cut: 'direct inputs' and so on → share of the examples that truncation cuts; empty without a vocabulary.
      wrong: what must not be; one line each.
      notes: what is worth knowing.
    """

    dataset: str
    template: str
    left_out: str = ""
    rows: int = 0
    choices: str = ""
    fixed: bool = False
    draws: bool = False
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    shown: float = 0.0
    cut: dict[str, float] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def judge(self, share: float, text: str) -> None:
        """Files a finding under `wrong` or `notes` by the share of rows that show it."""
        if share > 0:
            (self.wrong if share > TOLERATED else self.notes).append(
                f"{text} ({share:.0%} of rows)"
            )


def lint_template(
    spec: DatasetSpec,
    template: CompiledTemplate,
    rows: Sequence[Row],
    vocabulary: Vocabulary | None = None,
    lengths: Mapping[str, int] = LENGTHS,
) -> Report:
    """Checks one template.

    Args:
      spec: of the dataset.
      template: compiled.
      rows: labelled rows.
      vocabulary: for the checks of token ids; None leaves them out.
      lengths: at most so many tokens of 'inputs' and 'targets'.

    Raises:
      UserError: a row lacks a column that the template reads.
    """
    name = template.spec.name
    report = Report(spec.name, name, rows=len(rows), fixed=template.choices_fixed)
    report.draws = getattr(template, "draws", False)

    def render(row: Row, number: int) -> Rendered | Dropped:
        return template.render(row, template_rng(_SEED, name, number))

    good: list[tuple[int, Rendered]] = []
    for number, row in enumerate(rows):
        rendered = render(row, number)
        if isinstance(rendered, Dropped):
            report.dropped[rendered.reason] += 1
        else:
            good.append((number, rendered))
    _judge_drops(report, len(rows))
    if not good:
        report.wrong.append("no row can be used")
        return report
    _check_texts(report, [rendered for _, rendered in good], name in spec.excluded_flipped)
    changed = [(number, rows[number]) for number, _ in good[:_CHANGED_ROWS]]
    _check_labels(report, spec, changed, labels_of(spec, rows), render)
    if vocabulary is not None:
        _check_ids(report, [rendered for _, rendered in good], vocabulary, lengths)
    return report


def _judge_drops(report: Report, rows: int) -> None:
    if not rows:
        return
    report.judge(
        report.dropped["target_not_in_choices"] / rows, "the target is none of the choices"
    )
    others = report.dropped.total() - report.dropped["target_not_in_choices"]
    if others:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in report.dropped.items()
            if reason != "target_not_in_choices"
        )  # fmt: skip
        report.notes.append(f"drops {others / rows:.0%} of rows ({reasons})")


def _check_texts(report: Report, examples: Sequence[Rendered], without_instruction: bool) -> None:
    """Numbers of choices, equal ones, the correct one shown alone, and what is left as instruction."""
    sizes = {len(example.choices) for example in examples}
    low, high = min(sizes), max(sizes)
    report.choices = str(low) if low == high else f"{low}–{high}"
    count = len(examples)
    report.judge(sum(len(e.choices) < 2 for e in examples) / count, "there is one choice only")
    double = sum(len(set(e.choices)) < len(e.choices) for e in examples) / count
    if double:
        report.notes.append(f"choices of one text ({double:.0%} of rows)")
    report.shown = sum(_shows_only_target(example) for example in examples) / count
    empty = sum(not _has_instruction(example) for example in examples) / count
    if without_instruction:
        report.notes.append("not for FLIPPED: it has no instruction text")
    else:
        report.judge(empty, "the instruction is empty or punctuation only")


def _has_instruction(example: Rendered) -> bool:
    return any(s.kind == "instruction" and _WORD.search(s.text) for s in example.segments)


def _shows_only_target(example: Rendered) -> bool:
    prompt = example.prompt.lower()

    def shown(text: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(text.lower())}(?!\w)", prompt) is not None

    others = {text for text in example.choices if text != example.target}
    return shown(example.target) and not any(map(shown, others))


def labels_of(spec: DatasetSpec, rows: Sequence[Row]) -> Callable[[Row], Sequence[Any]]:
    """row → the labels that it may have: the catalog's, or else the few that occur; empty for free text."""
    if spec.label_column is None:
        return lambda row: ()
    if spec.label_in is not None:
        path = spec.label_in.split(".")
        return lambda row: tuple(_at(row, path) or ())
    seen: dict[Any, None] = dict.fromkeys(
        row[spec.label_column] for row in rows
        if isinstance(row.get(spec.label_column), str | int | bool)
    )  # fmt: skip
    if spec.label_values is not None:
        known = {_strip(value): value for value in seen}
        labels = tuple(known.get(value, value) for value in spec.label_values)
    else:
        labels = tuple(seen) if len(seen) <= _MOST_LABELS else ()
    return lambda row: labels


def _check_labels(
    report: Report,
    spec: DatasetSpec,
    rows: Sequence[tuple[int, Row]],
    labels: Callable[[Row], Sequence[Any]],
    render: _Render,
) -> None:
    """Renders rows with other labels, and the one option that a template is about with another text."""
    follows = told = looked = 0
    hidden: Counter[int] = Counter()
    for number, row in rows:
        allowed = labels(row)
        if len(allowed) < 2:
            continue
        looked += 1
        made = [render({**row, str(spec.label_column): label}, number) for label in allowed]
        found = [one for one in made if isinstance(one, Rendered)]
        follows += len({one.target for one in found}) > 1
        told += len({one.prompt for one in found}) > 1
        if len(found) == len(made) >= 3:
            option = _singled_out([one.target for one in found])
            if option is not None and _is_hidden(spec, row, number, option, len(made), render):
                hidden[option] += 1
    if not looked:
        return
    report.judge(told / looked, "the prompt changes with the label, so it shows the answer")
    if not follows:
        report.notes.append(
            f"the target does not follow {spec.label_column!r}: its answer comes from another column"
        )
    for option, count in sorted(hidden.items()):
        report.judge(
            count / looked,
            f"its label is about option {option + 1}, which the prompt does not show: it teaches wrong answers",
        )


def _singled_out(targets: Sequence[str]) -> int | None:
    """The index of the one target that differs where all the others are equal."""
    counts = Counter(targets)
    if len(counts) != 2 or min(counts.values()) != 1:
        return None
    return targets.index(min(counts, key=lambda text: counts[text]))


def _is_hidden(
    spec: DatasetSpec, row: Row, number: int, option: int, count: int, render: _Render
) -> bool:
    """Whether the row has texts for each option, and none of this option's reaches the prompt."""
    before = render(row, number)
    places = list(_option_texts(spec, row, option, count))
    if not places or isinstance(before, Dropped):
        return False
    for place in places:
        other = copy.deepcopy(dict(row))
        target = _at(other, place[:-1])
        target[place[-1]] = f"{_MARK} {target[place[-1]]}"
        after = render(other, number)
        if isinstance(after, Dropped) or after.prompt != before.prompt:
            return False
    return True


def _option_texts(
    spec: DatasetSpec, row: Row, option: int, count: int
) -> Iterator[tuple[Any, ...]]:
    """Where an option's text stands: in lists of one item for each option, or columns such as answer0 … answer3."""
    labels = tuple((spec.label_in or "").split("."))

    def lists(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from lists(item, (*path, key))
        elif isinstance(value, list) and len(value) == count and path != labels:
            if all(isinstance(item, str) for item in value):
                yield (*path, option)

    yield from lists(row, ())
    families: dict[str, list[str]] = {}
    for column, value in row.items():
        if isinstance(value, str) and (found := re.fullmatch(r"(.*?)(\d+|[A-Z])", column)):
            families.setdefault(found[1], []).append(column)
    for columns in families.values():
        if len(columns) == count:
            yield (sorted(columns)[option],)


def _check_ids(
    report: Report, examples: Sequence[Rendered], vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> None:
    """Choices that differ as text and not as ids; shares of examples that are cut."""
    same, cut, made = 0, Counter[str](), Counter[str]()
    for example in examples:
        texts = set(example.choices)
        same += len({vocabulary.encode_text(text) for text in texts}) < len(texts)
        for method in METHODS:
            formatted = format_example(method, example, example.correct)
            if isinstance(formatted, Dropped):
                continue
            encoded = encode(formatted, vocabulary, lengths)
            made[method] += 1
            cut[f"{method} inputs"] += encoded.inputs_cut > 0
            cut[f"{method} targets"] += encoded.targets_cut > 0
    report.judge(same / len(examples), "choices that differ as text encode to the same ids")
    report.cut = {name: count / made[name.split()[0]] for name, count in cut.items()}


def _at(value: Any, path: Sequence[Any]) -> Any:
    for part in path:
        value = value[part]
    return value


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value
