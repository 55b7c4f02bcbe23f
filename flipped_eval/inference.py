"""Ad hoc scoring and generation: a checkpoint, a few questions, what the model says.

    from flipped_eval.inference import Model, Question

    model = Model.load("runs/flipped")
    question = Question("The plot never arrives.", ("good", "bad"), "Review: {{input}} Is it good or bad?")
    model.score([question])[0]       # Scored(logprobs=(…, …), prediction=1, notes=())
    model.generate([question], outputs=["bad"])[0].text  # the instruction that a FLIPPED model guesses

A question's template is Jinja in promptsource's form: what depends on the question (`{{input}}`, or the columns of a
row) is instance, all other text is instruction.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flipped_core import hub
from flipped_core.errors import UserError, nearest, unknown
from flipped_eval import recipes
from flipped_tasks.methods import METHODS, Formatted, Piece, PieceKind, format_example
from flipped_tasks.promptsource import TemplateSpec, load_template
from flipped_tasks.rendering import Dropped, Rendered, compile_template, template_rng
from flipped_tasks.spans import Segment
from flipped_tasks.tokens import Encoded, Vocabulary, encode

LENGTHS = {"inputs": 512, "targets": 128}
_HOW = {
    "lengths": "--inputs_length NUMBER --targets_length NUMBER",
    "input_eos": "--eos or --no_eos",
    "vocab_path": "--vocab PATH",
}
INPUT = "input"
DEFAULT_TEMPLATE = "{{input}}"
_CHOICES = "choices_of_the_question"
_SEPARATOR = "|||"
# What `rendering` says of a row in one word.
_REASONS = {
    "render_error": "its values are not of the kind that the template expects",
    "not_two_parts": "the template has nothing to ask of such a row",
    "empty_prompt": "the prompt would be empty",
    "empty_target": "the answer would be empty; is the label one that the template knows?",
    "no_choices": "the template has no choices",
    "target_not_in_choices": "the answer would be none of the choices; is the label right?",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
      input: the instance: a text, which a template calls `{{input}}`, or column -> value.
      choices: the options; a template may show them as `answer_choices`, as instance text. With `dataset` they
        are the template's own.
      template: Jinja text in promptsource's form, of which what follows `|||` is left out; with `dataset` the
        name of one of its templates. Where not given, the input is the whole prompt.
      dataset: promptsource's name, such as "super_glue/rte".
    """

    input: str | Mapping[str, Any] = ""
    choices: Sequence[str] = ()
    template: str | None = None
    dataset: str | None = None


@dataclasses.dataclass(frozen=True)
class Scored:
    """The answer to a question by rank classification.

    Attributes:
      logprobs: of each choice, in their order.
      prediction: the place of the highest, the first of those that are equal.
      notes: what should be known besides: texts that were truncated, choices that cannot be told apart.
      choices: their texts.
    """

    logprobs: tuple[float, ...]
    prediction: int
    notes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def prediction_text(self) -> str:
        """The text of the predicted choice."""
        return self.choices[self.prediction]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model writes.

    Attributes:
      text: with DIRECT a label, with CHANNEL a prompt, with FLIPPED the spans of instruction after their sentinels.
      log_prob: of all its tokens.
      complete: False where it was cut at the largest number of tokens.
      prompt: with FLIPPED, the input with the spans put in place of its sentinels; otherwise None.
      notes: as in `Scored`.
    """

    text: str
    log_prob: float
    complete: bool
    prompt: str | None = None
    notes: tuple[str, ...] = ()


def render(question: Question, name: str = "question") -> Rendered:
    """The question's prompt in segments of instruction and instance, with its choices; which is correct means nothing.

    Args:
      question: what to render.
      name: how errors call it.

    Raises:
      UserError: choices are missing or empty, the template is unknown or not valid, a column is missing.
    """
    try:
        return _render(question, name) if question.dataset is None else _render_row(question, name)
    except UserError as error:
        if str(error).startswith(f"{name}:"):
            raise
        raise UserError(f"{name}: {error}") from error


def _render(question: Question, name: str) -> Rendered:
    choices = [str(choice).strip() for choice in question.choices]
    if not choices:
        raise UserError(f"{name}: expected choices, got none")
    for choice in choices:
        if not choice or _SEPARATOR in choice:
            raise UserError(
                f"{name}: choices: expected texts, none of them empty or with {_SEPARATOR!r} in it, got {choice!r}"
            )
    text = (question.template or DEFAULT_TEMPLATE).split(_SEPARATOR)[0]
    spec = TemplateSpec(
        dataset="the question",
        name=text if len(text) < 40 else f"{text[:39]}…",
        jinja=f"{text} {_SEPARATOR} {{{{answer_choices[0]}}}}",
        answer_choices=f"{{{{{_CHOICES} | join('{_SEPARATOR}')}}}}",
        original_task=True,
        choices_in_prompt=None,
        metrics=(),
        reference="",
    )
    row = question.input if isinstance(question.input, Mapping) else {INPUT: question.input}
    template = compile_template(spec)
    for column in template.columns:
        if column not in row and column != _CHOICES:
            near = ", ".join(map(repr, nearest(column, row) or row))
            raise UserError(f"{name}: template: there is no column {column!r}; nearest: {near}")
    found = template.render({**row, _CHOICES: choices}, template_rng(0, spec.name, 0))
    if isinstance(found, Dropped):
        raise UserError(f"{name}: its template cannot be used on it: {_why(found)}")
    return found


def _render_row(question: Question, name: str) -> Rendered:
    dataset, row = str(question.dataset), question.input
    if question.template is None:
        raise UserError(f"{name}: expected the name of a template of {dataset}, got none")
    if not isinstance(row, Mapping):
        raise UserError(f"{name}: expected a row of {dataset}, column -> value, got {row!r}")
    if question.choices:
        raise UserError(
            f"{name}: choices: expected none, those of a template of {dataset} are its own"
        )
    template = compile_template(load_template(dataset, question.template))
    found = template.render(row, template_rng(0, question.template, 0))
    if isinstance(found, Dropped):
        raise UserError(
            f"{name}: template {question.template!r} of {dataset} cannot be used on it: {_why(found)}"
        )
    return found


def _why(dropped: Dropped) -> str:
    return _REASONS.get(dropped.reason, dropped.reason)


class Model:
    """A checkpoint with its vocabulary.

    Attributes:
      method: the one that it was trained for, where its folder says so; otherwise None.
    """

    def __init__(
        self,
        config: Any,
        params: Any,
        vocabulary: Vocabulary,
        *,
        method: str | None = None,
        lengths: Mapping[str, int] | None = None,
        input_eos: bool = True,
        scorer_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes weights that are in memory.

        Args:
          config: their `t5_engine.config.T5Config`.
          params: the weights.
          vocabulary: the tokenizer that they were trained with.
          method: what `score` and `generate` use where they are not told.
          lengths: most tokens of "inputs" and "targets"; 512 and 128 where not given.
          input_eos: whether inputs end with the end-of-sequence id, as in training.
          scorer_options: further arguments of `t5_engine.scorer.Scorer`; all devices share the work where they name
            no mesh.

        Raises:
          UserError: the vocabulary has ids that the model lacks, or the method is unknown.
        """
        from t5_engine.partitioning import make_mesh
        from t5_engine.scorer import Scorer

        if vocabulary.num_ids > config.vocab_size:
            raise UserError(
                f"vocabulary: it has {vocabulary.num_ids} ids with its sentinels, but the checkpoint's "
                f"model has {config.vocab_size}; expected the one that it was trained with"
            )
        if method is not None and method not in METHODS:
            raise unknown("method", method, METHODS)
        self.method = method
        self._config, self._params, self._vocabulary = config, params, vocabulary
        self._lengths, self._input_eos = dict(lengths or LENGTHS), input_eos
        options = {"mesh": make_mesh(), **(scorer_options or {})}
        self._scorer = Scorer(config, params, **options)

    @classmethod
    def load(
        cls,
        checkpoint: str | pathlib.Path,
        *,
        vocab: str | None = None,
        method: str | None = None,
        lengths: Mapping[str, int] | None = None,
        input_eos: bool | None = None,
        scorer_options: Mapping[str, Any] | None = None,
        announce: Callable[[str], object] = lambda line: None,
    ) -> Model:
        """Reads a checkpoint; what is not given is as its files record it (`recipes.find`).

        Args:
          checkpoint: a run's folder (its newest checkpoint), a folder of one checkpoint, or one that
            `t5_engine.exchange` knows, `hf://OWNER/NAME[@REVISION]` included.
          vocab: a SentencePiece model.
          method: "direct", "channel" or "flipped".
          lengths: most tokens of "inputs" and "targets".
          input_eos: whether inputs end with the end-of-sequence id.
          scorer_options: further arguments of `t5_engine.scorer.Scorer`.
          announce: gets lines about what is used and where it comes from.

        Raises:
          UserError: there is no checkpoint; vocabulary, lengths or eos are neither given nor recorded; or the
            vocabulary does not fit.
        """
        from t5_engine import exchange

        checkpoint = hub.pin(checkpoint)
        recipe, config = recipes.of(checkpoint)
        recipe = recipe.given(method=method, lengths=lengths, input_eos=input_eos, vocab_path=vocab)
        recipe.require(_HOW)
        vocabulary = Vocabulary.from_file(str(recipe.vocab_path))
        size = config.vocab_size
        if vocabulary.num_ids > size or (recipe.exact_vocabulary and vocabulary.size < size):
            raise UserError(
                f"vocabulary: {recipe.vocab_path} has {vocabulary.num_ids} ids ({vocabulary.size} rows, padded as "
                f"embeddings are), {checkpoint} has {size}: expected the vocabulary that it was trained with"
            )
        for line in recipe.lines():
            announce(line)
        params, config, _ = exchange.load(checkpoint)
        return cls(
            config,
            params,
            vocabulary,
            method=recipe.method,
            lengths=recipe.lengths,
            input_eos=bool(recipe.input_eos),
            scorer_options=scorer_options,
        )

    def score(
        self, questions: Sequence[Question], method: str | None = None, names: Sequence[str] = ()
    ) -> list[Scored]:
        """Ranks the choices of each question.

        Args:
          questions: any number; they are scored together.
          method: "direct", "channel" or "flipped"; the model's own where not given.
          names: how errors call the questions.

        Raises:
          UserError: a question that cannot be asked; see `render`.
        """
        method = self._method(method)
        asked, options = [], []
        for question, name in _named(questions, names):
            rendered = render(question, name)
            options.append(rendered.choices)
            formatted = (format_example(method, rendered, i) for i in range(len(rendered.choices)))
            asked.append([self._encode(one, name) for one in formatted])
        pairs = [(one.inputs, one.targets) for several in asked for one in several]
        scores = iter(self._scorer.score(pairs).tolist())
        results = []
        for several, choices in zip(asked, options, strict=True):
            logprobs = tuple(next(scores) for _ in several)
            best = logprobs.index(max(logprobs))
            results.append(Scored(logprobs, best, _notes(several, logprobs), choices))
        return results

    def generate(
        self,
        questions: Sequence[Question],
        method: str | None = None,
        *,
        outputs: Sequence[str] = (),
        num_beams: int = 1,
        max_tokens: int = 64,
        names: Sequence[str] = (),
    ) -> list[Answer]:
        """What the model writes: DIRECT the label of a prompt, CHANNEL the prompt of a label, FLIPPED the instruction.

        Args:
          questions: their choices play no part. A FLIPPED question without a template has a hole on either side of
            its input, as in the public model card.
          method: as in `score`.
          outputs: with CHANNEL and FLIPPED, the label of each question.
          num_beams: 1 takes the most probable token at each step.
          max_tokens: of an answer.
          names: how errors call the questions.
        """
        from t5_engine import generation

        method = self._method(method)
        if method == "direct":
            outputs = outputs or [""] * len(questions)
        if len(outputs) != len(questions):
            raise UserError(
                f"outputs: expected a label for each of {len(questions)} questions, got {len(outputs)}"
            )
        formatted: list[Formatted] = []
        encoded: list[Encoded] = []
        for (question, name), output in zip(_named(questions, names), outputs, strict=True):
            form = _open(method, question, output, name)
            encoded.append(self._encode(form, name))
            assert isinstance(form, Formatted)  # else it was refused
            formatted.append(form)
        found = generation.generate(
            self._config,
            self._params,
            [one.inputs for one in encoded],
            num_beams=num_beams,
            max_tokens=max_tokens,
        )
        return [
            Answer(
                text=self._vocabulary.decode(one.ids),
                log_prob=one.log_prob,
                complete=one.complete,
                prompt=self._filled(form, one.ids) if method == "flipped" else None,
                notes=(f"{ids.inputs_cut} tokens of the input were cut",) if ids.inputs_cut else (),
            )
            for form, ids, one in zip(formatted, encoded, found, strict=True)
        ]

    def _method(self, method: str | None) -> str:
        method = method or self.method
        if method is None:
            raise UserError(f"method: expected one of {', '.join(METHODS)}, got none")
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        return method

    def _encode(self, formatted: Formatted | Dropped, name: str) -> Encoded:
        if isinstance(formatted, Dropped):
            raise UserError(
                f"{name}: FLIPPED cannot use its template ({formatted.reason}): expected text of "
                "the author's own beside {{input}}"
            )
        return encode(formatted, self._vocabulary, self._lengths, self._input_eos)

    def _filled(self, formatted: Formatted, ids: Sequence[int]) -> str:
        """The FLIPPED input with what was generated for each sentinel in its place, without its frame."""
        sentinels = {self._vocabulary.sentinel(k): k for k in range(100)}
        spans: dict[int | None, list[int]] = {}
        place = None
        for token in ids:
            place = sentinels.get(token, place)
            spans.setdefault(place, [])
            if token not in sentinels:
                spans[place].append(token)
        filled = [
            piece if isinstance(piece, str) else self._vocabulary.decode(spans.get(piece, []))
            for piece, kind in zip(formatted.inputs, formatted.input_kinds, strict=True)
            if kind != "output"
        ]
        return "".join(filled).removeprefix("input: ").strip()


def _open(method: str, question: Question, output: str, name: str) -> Formatted | Dropped:
    """The input to generate from; its targets are not known."""
    if method != "direct" and not output:
        raise UserError(f"{name}: expected an output, the label to generate from, got none")
    if method == "flipped" and question.template is None:
        if not isinstance(question.input, str):
            raise UserError(f"{name}: expected a text as input, or a template for its columns")
        inputs: tuple[Piece, ...] = ("input: ", 0, f" {question.input}", 1, f"\noutput: {output}")
        kinds: tuple[PieceKind, ...] = ("instruction", "sentinel", "instance", "sentinel", "output")
        return Formatted(inputs, (0,), kinds)
    if question.dataset is None:
        question = dataclasses.replace(question, choices=[*question.choices] or [output or "?"])
    rendered = render(question, name) if method != "channel" else _prompt_of("?")
    if output:
        rendered = dataclasses.replace(rendered, choices=(output,), correct=0)
    return format_example(method, rendered, 0)


def _prompt_of(text: str) -> Rendered:
    return Rendered(text, text, (text,), 0, (Segment(text, "instance"),))


def _named(questions: Sequence[Question], names: Sequence[str]) -> Any:
    numbered = (f"question {number}" for number in itertools.count(1))
    return zip(questions, names or numbered, strict=False)


def _notes(encoded: Sequence[Encoded], logprobs: Sequence[float]) -> tuple[str, ...]:
    notes = []
    same: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for place, one in enumerate(encoded):
        same.setdefault((tuple(one.inputs), tuple(one.targets)), []).append(place)
        for side, cut in (("input", one.inputs_cut), ("target", one.targets_cut)):
            if cut:
                notes.append(f"choice {place}: {cut} tokens of its {side} were cut")
    for places in same.values():
        if len(places) > 1:
            notes.append(f"choices {', '.join(map(str, places))} have the same tokens")
    if len(encoded) == 1:
        notes.append("one choice only: nothing was ranked")
    elif len(same) > 1 and [*logprobs].count(max(logprobs)) > len(
        max((p for p in same.values()), key=lambda p: logprobs[p[0]])
    ):
        notes.append("the highest log-probability is shared")
    return tuple(notes)
