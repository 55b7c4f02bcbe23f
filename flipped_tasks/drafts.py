"""From a row to a training example: first as text (a draft), then, together with others, as token ids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from flipped_tasks import promptsource, tokens
from flipped_tasks.draws import draw
from flipped_tasks.methods import Formatted, format_example, output
from flipped_tasks.rendering import Dropped, Rendered, compile_template, template_rng
from flipped_tasks.seqio_vocabulary import SeqioVocabulary


@dataclasses.dataclass(frozen=True)
class Ids:
    """Token ids of one training example.

    Attributes:
      inputs, targets: with eos where it belongs.
      wrong_inputs: FLIPPED's inputs with a wrong choice; empty where there is none.
      form: how the example was put, such as the template's name.
    """

    inputs: Sequence[int]
    targets: Sequence[int]
    wrong_inputs: Sequence[int] = ()
    form: str = ""


class Draft(Protocol):
    """A training example as text, about to be encoded together with others."""

    def texts(self) -> Sequence[str]:
        """What the vocabulary will be asked for, as far as is known."""
        ...

    def ids(self, lengths: Mapping[str, int], note: Note) -> Ids:
        """The example's ids, at most so many of 'inputs' and 'targets'; `note` is called with what is cut."""
        ...


# Called with a reason for which something is left out or cut.
Note = Callable[[str], object]
# (row, example's number, epoch, seed, note) → an example, or why there is none.
Write = Callable[[bytes, int, int, int, Note], Draft | Dropped]


@dataclasses.dataclass(frozen=True)
class TemplateDraft:
    """An example under one template; see `Draft`.

    Attributes:
      writer: who made it.
      formatted: as pieces.
      name: the template's.
      wrong: the text of FLIPPED's wrong choice; None where there is none.
    """

    writer: TemplateWriter
    formatted: Formatted
    name: str
    wrong: str | None

    def texts(self) -> Sequence[str]:
        found = tokens.texts(self.formatted)
        return found if self.wrong is None else [*found, output(self.wrong)]

    def ids(self, lengths: Mapping[str, int], note: Note) -> Ids:
        vocab, eos = self.writer.vocab.tokens, self.writer.input_eos
        encoded = tokens.encode(self.formatted, vocab, lengths, eos)
        if encoded.inputs_cut:
            note("inputs_cut")
        if encoded.targets_cut:
            note("targets_cut")
        wrong: Sequence[int] = ()
        if self.wrong is not None:
            wrong = tokens.encode_with_choice(
                self.formatted, encoded, self.wrong, vocab, lengths, eos
            )
            if wrong == encoded.inputs:
                # Options that differ as text and not as ids would be taught and untaught at once.
                note("wrong_choice_same_ids")
                wrong = ()
        return Ids(encoded.inputs, encoded.targets, wrong, self.name)


class TemplateWriter:
    """Puts a row into a method's form, with a template that is drawn or given."""

    def __init__(
        self,
        dataset: str,
        method: str,
        templates: Sequence[str],
        vocab: SeqioVocabulary,
        input_eos: bool,
    ):
        """Args: templates: one is drawn for each example and epoch; input_eos: inputs end with eos."""
        self.dataset, self.method, self.input_eos = dataset, method, input_eos
        self._names = tuple(templates)
        self.vocab = vocab

    @functools.cached_property
    def _templates(self) -> tuple[Any, ...]:
        return tuple(
            compile_template(promptsource.load_template(self.dataset, name)) for name in self._names
        )

    def __call__(
        self, row: bytes, number: int, epoch: int, seed: int, note: Note
    ) -> Draft | Dropped:
        """The example under the drawn template, or under another one where that drops the row; else the last reason."""
        columns = orjson.loads(row)
        left = list(self._templates)
        while True:
            template = left.pop(
                draw(len(left), seed, self.dataset, "template", epoch, number, len(left))
            )
            name = template.spec.name
            rendered = template.render(columns, template_rng(seed, name, f"{epoch}/{number}"))
            made: Formatted | Dropped
            if isinstance(rendered, Dropped):
                made = rendered
            else:
                made = format_example(self.method, rendered, rendered.correct)
                if not isinstance(made, Dropped):
                    draws = (seed, self.dataset, "wrong", epoch, number)
                    wrong = self._wrong(rendered, draws, note) if self.method == "flipped" else None
                    return TemplateDraft(self, made, name, wrong)
            if not left:
                return made
            note(made.reason)

    def _wrong(self, rendered: Rendered, draws: tuple[int | str, ...], note: Note) -> str | None:
        """A wrong choice, uniform over the options whose text is another; None without one."""
        wrong = [text for text in rendered.choices if text != rendered.target]
        if not wrong:
            note("one_choice")
            return None
        return wrong[draw(len(wrong), *draws)]
