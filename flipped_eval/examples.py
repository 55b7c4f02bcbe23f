"""From an evaluation task and rows to the pairs of token ids that the scorer is asked about.

Rank classification needs one score for each choice of each example:

| method  | encoder input              | decoder target | score                     |
|---------|----------------------------|----------------|---------------------------|
| direct  | prompt                     | choice         | log p(choice | prompt)    |
| channel | choice                     | prompt         | log p(prompt | choice)    |
| flipped | flipped prompt with choice | instruction    | log p(instruction | …)    |

What cannot be ranked is left out and counted by reason: rows that the dataset or the template drops,
and (`one_choice`) rows with a single choice, on which every model is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flipped_tasks.methods import format_example, to_text
from flipped_tasks.rendering import CompiledTemplate, Dropped, Rendered, template_rng
from flipped_tasks.tokens import Encoded, Vocabulary, encode
from mixtures.suites import EvalTask, with_label_words

Pair = tuple[tuple[int, ...], tuple[int, ...]]
Row = tuple[int, Mapping]


@dataclass(frozen=True)
class Case:
    """One example of one task: its id, its choices, the index of the right one, and a pair for each choice.

    `also_correct` names further choices that are as right, as a few examples of BIG-bench have.
    """

    example: str
    choices: tuple[str, ...]
    correct: int
    pairs: tuple[Pair, ...]
    also_correct: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One example as text, for the report: encoder input and decoder target with the right choice."""

    inputs: str
    targets: str
    choices: tuple[str, ...]
    correct: int


@dataclass
class TaskCases:
    """All cases of one task, and what became of the rows that are not among them.

    Attributes:
      cases: what is scored.
      rows: the rows that were looked at.
      dropped: reason -> rows; one-choice examples are `one_choice`.
      inputs_cut, targets_cut: cases of which some input or target was longer than the length allows.
      several_correct: cases with more than one right choice; each of them counts as right.
      shown: the first case as text.
    """

    cases: list[Case] = field(default_factory=list)
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    inputs_cut: int = 0
    targets_cut: int = 0
    several_correct: int = 0
    shown: Shown | None = None


def build_cases(
    task: EvalTask,
    rows: Sequence[Row],
    *,
    method: str,
    template: CompiledTemplate,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    seed: int,
    input_eos: bool = True,
    check_row: Callable[[Mapping, int], Dropped | None] | None = None,
) -> TaskCases:
    """The cases of `rows` under one template, in the order of the rows.

    Args:
      task: names the template and, for label generalization, the words that replace the choices.
      rows: (place in the split, row of the dataset); the place is the example's id.
      method: "direct", "channel" or "flipped".
      template: the compiled template of the task.
      vocabulary: the tokenizer.
      lengths: "inputs" and "targets", in tokens.
      seed: with the template and the example id it decides what the template's `choice` filter draws.
      input_eos: whether the encoder input ends with the end-of-sequence id.
      check_row: the dataset's own check for unlabelled and malformed rows; gets row and place.

    Raises:
      UserError: a row lacks a column, or the label words do not fit the choices.
    """
    built = TaskCases(rows=len(rows))
    for number, row in rows:
        example = str(number)
        found: Dropped | Rendered | Case | None = check_row(row, number) if check_row else None
        if found is None:
            found = template.render(row, template_rng(seed, task.template, example))
        if isinstance(found, Rendered):
            found = with_label_words(found, task.label_words)
            found = _case(built, example, found, method, vocabulary, lengths, input_eos)
        if isinstance(found, Dropped):
            built.dropped[found.reason] += 1
        else:
            built.cases.append(found)
    return built


def _case(
    built: TaskCases,
    example: str,
    rendered: Rendered,
    method: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    input_eos: bool,
) -> Case | Dropped:
    """One case; counts what was cut and keeps the first text in `built`."""
    if len(rendered.choices) < 2:
        return Dropped("one_choice")
    encoded: list[Encoded] = []
    for choice in range(len(rendered.choices)):
        formatted = format_example(method, rendered, choice)
        if isinstance(formatted, Dropped):
            return formatted
        encoded.append(encode(formatted, vocabulary, lengths, input_eos=input_eos))
        if choice == rendered.correct and built.shown is None:
            inputs, targets = to_text(formatted.inputs), to_text(formatted.targets)
            built.shown = Shown(inputs, targets, rendered.choices, rendered.correct)
    built.several_correct += bool(rendered.also_correct)
    built.inputs_cut += any(pair.inputs_cut for pair in encoded)
    built.targets_cut += any(pair.targets_cut for pair in encoded)
    pairs = tuple((tuple(pair.inputs), tuple(pair.targets)) for pair in encoded)
    return Case(example, rendered.choices, rendered.correct, pairs, rendered.also_correct)
