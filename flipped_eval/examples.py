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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flipped_tasks.methods import Formatted, format_example, to_text
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

    def is_right(self, choice: int) -> bool:
        """Whether a choice is (one of) the right ones."""
        return choice == self.correct or choice in self.also_correct


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
      rows: the rows that were looked at: all, or those up to the last case that was wanted.
      dropped: reason -> rows; one-choice examples are `one_choice`.
      inputs_cut, targets_cut: cases of which some input or target was longer than the length allows.
      several_correct: cases with more than one right choice; each of them counts as right.
      duplicate_choices: cases in which two choices are the same text.
      same_ids: cases in which two choices differ as texts and are the same ids: no model can tell them apart.
      shown: the first case as text.
    """

    cases: list[Case] = field(default_factory=list)
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    inputs_cut: int = 0
    targets_cut: int = 0
    several_correct: int = 0
    duplicate_choices: int = 0
    same_ids: int = 0
    shown: Shown | None = None


@dataclass(frozen=True)
class CaseBuilder:
    """Makes cases of the rows of one task.

    Attributes:
      task: names the template and, for label generalization, the words that replace the choices.
      template: the compiled template of the task.
      method: "direct", "channel" or "flipped".
      vocabulary: the tokenizer.
      lengths: "inputs" and "targets", in tokens.
      seed: with the template and the example id it decides what the template's `choice` filter draws.
      input_eos: whether the encoder input ends with the end-of-sequence id.
      check_row: the dataset's own check for unlabelled and malformed rows; gets row and 1-based number.
    """

    task: EvalTask
    template: CompiledTemplate
    method: str
    vocabulary: Vocabulary
    lengths: Mapping[str, int]
    seed: int
    input_eos: bool = True
    check_row: Callable[[Mapping, int], Dropped | None] | None = None

    def add(self, built: TaskCases, number: int, row: Mapping) -> Case | None:
        """The case of one row; what is counted, its drop included, is counted in `built`.

        Raises:
          UserError: the row lacks a column, or the label words do not fit the choices.
        """
        built.rows += 1
        found: Dropped | Rendered | Case | None
        found = self.check_row(row, number + 1) if self.check_row else None
        if found is None:
            found = self._render(number, row)
        if isinstance(found, Rendered):
            found = self._case(built, str(number), found)
        if isinstance(found, Dropped):
            built.dropped[found.reason] += 1
            return None
        return found

    def shown(self, number: int, row: Mapping) -> Shown:
        """A row as text; it must be one that gave a case."""
        rendered = self._render(number, row)
        assert isinstance(rendered, Rendered), rendered
        return self._shown(rendered)

    def forms(self, number: int, row: Mapping) -> tuple[Formatted, ...]:
        """A row as pieces, for each choice; it must be one that gave a case."""
        rendered = self._render(number, row)
        assert isinstance(rendered, Rendered), rendered
        found = []
        for choice in range(len(rendered.choices)):
            formatted = format_example(self.method, rendered, choice)
            assert isinstance(formatted, Formatted), formatted
            found.append(formatted)
        return tuple(found)

    def _render(self, number: int, row: Mapping) -> Rendered | Dropped:
        found = self.template.render(row, template_rng(self.seed, self.task.template, str(number)))
        if isinstance(found, Rendered):
            found = with_label_words(found, self.task.label_words)
        return found

    def _shown(self, rendered: Rendered) -> Shown:
        formatted = format_example(self.method, rendered, rendered.correct)
        assert not isinstance(formatted, Dropped), formatted
        inputs, targets = to_text(formatted.inputs), to_text(formatted.targets)
        return Shown(inputs, targets, rendered.choices, rendered.correct)

    def _case(self, built: TaskCases, example: str, rendered: Rendered) -> Case | Dropped:
        """One case; counts what was cut and keeps the first text in `built`."""
        choices = rendered.choices
        if len(choices) < 2:
            return Dropped("one_choice")
        encoded: list[Encoded] = []
        for choice in range(len(choices)):
            formatted = format_example(self.method, rendered, choice)
            if isinstance(formatted, Dropped):
                return formatted
            encoded.append(
                encode(formatted, self.vocabulary, self.lengths, input_eos=self.input_eos)
            )
        if built.shown is None:
            built.shown = self._shown(rendered)
        pairs = tuple((tuple(pair.inputs), tuple(pair.targets)) for pair in encoded)
        built.several_correct += bool(rendered.also_correct)
        built.inputs_cut += any(pair.inputs_cut for pair in encoded)
        built.targets_cut += any(pair.targets_cut for pair in encoded)
        texts = len(set(choices))
        built.duplicate_choices += texts < len(choices)
        built.same_ids += len(set(pairs)) < texts
        return Case(example, choices, rendered.correct, pairs, rendered.also_correct)


def build_cases(
    task: EvalTask,
    rows: Iterable[Row],
    *,
    method: str,
    template: CompiledTemplate,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    seed: int,
    input_eos: bool = True,
    check_row: Callable[[Mapping, int], Dropped | None] | None = None,
    most: int | None = None,
) -> TaskCases:
    """The cases of `rows` under one template, in the order of the rows.

    Args:
      rows: (place in the split, row of the dataset); the place is the example's id.
      most: no further row is looked at once there are so many cases; None looks at all.
      task, method, template, vocabulary, lengths, seed, input_eos, check_row: as in `CaseBuilder`.

    Raises:
      UserError: a row lacks a column, or the label words do not fit the choices.
    """
    builder = CaseBuilder(task, template, method, vocabulary, lengths, seed, input_eos, check_row)
    built = TaskCases()
    for number, row in rows:
        if most is not None and len(built.cases) >= most:
            break
        if (case := builder.add(built, number, row)) is not None:
            built.cases.append(case)
    return built
