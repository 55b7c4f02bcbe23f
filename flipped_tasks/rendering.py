"""Rendering a template on a row: prompt, target, choices and the prompt's segments from one render.

promptsource's own steps are kept to the letter (truncation to 2,048 characters, pipe escape, split,
strip), so prompt and target equal `promptsource.templates.Template.apply`. What differs: templates
are compiled once, in Jinja's immutable sandbox with limits (`flipped_tasks.sandbox`), random draws come from
the caller's generator, `|||` is protected inside lists and choices too, and a computed index below 0 is outside.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import Template, TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import SecurityError

from flipped_core.errors import UserError, nearest, shown
from flipped_tasks import render_limits, sandbox
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.spans import MARK_FILTER, Instance, Kind, Segment, TaintAnalysis, merge, runs

_SEPARATOR = "|||"
_PIPE_PROTECTOR = "3ed2dface8203c4c9dfb1a5dc58e41e0"  # promptsource's; truncation can cut it
_TRUNCATE = " | string | truncate(2048) }}"
_RNG = "random generator"  # has a space: no template can name it
_PIECES_AT_ONCE = 32  # between two looks at what a template has written
_DRAWING_FILTERS = frozenset({"choice", "random"})


@dataclass(frozen=True)
class Rendered:
    """One example under one template.

    Attributes:
      prompt: the text before `|||`, stripped.
      target: the text behind it, stripped; equals `choices[correct]`.
      choices: the options, each stripped; equal texts may occur twice.
      correct: the first index of the target among the choices.
      segments: maximal runs of one kind, whose texts concatenate to `prompt`.
      also_correct: further choices that are as right as the target; usually none.
    """

    prompt: str
    target: str
    choices: tuple[str, ...]
    correct: int
    segments: tuple[Segment, ...]
    also_correct: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """Why an example has no use under a template, in short machine words that can be counted."""

    reason: str


@pass_context
def _choice(context: Context, items: Sequence[Any]) -> Any:
    return context.parent[_RNG].choice(items)


@pass_context
def _random(context: Context, items: Sequence[Any]) -> Any:
    if not items:
        return context.environment.undefined("No random item, sequence was empty.")
    return context.parent[_RNG].choice(items)


def _highlight(text: str) -> str:
    return "<span style='color: #F08080'>" + text + "</span>"


def _most_frequent(items: Sequence[Any]) -> list[Any] | None:
    counts = Counter(items)
    most = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == most] if counts else None


def _environment() -> sandbox.BoundedEnvironment:
    environment = sandbox.BoundedEnvironment()
    del environment.globals["lipsum"]  # draws from a generator that no seed reaches
    environment.filters.update(
        choice=_choice, random=_random, highlight=_highlight, most_frequent=_most_frequent
    )
    environment.filters[MARK_FILTER] = Instance
    return environment


_ENVIRONMENT = _environment()
_GLOBALS = dict(_ENVIRONMENT.globals)


class _LateRandom:
    """A `random.Random` that is seeded when it is first used: most templates never draw."""

    def __init__(self, *keys: int | str) -> None:
        self._keys = keys

    @functools.cached_property
    def _random(self) -> random.Random:
        key = json.dumps(self._keys).encode()
        return random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._random, name)


def template_rng(seed: int, template: str, example: str | int) -> random.Random:
    """The generator for one example under one template: the same in every process and on every host."""
    return cast(random.Random, _LateRandom(seed, template, str(example)))


class CompiledTemplate:
    """A template that is parsed, analysed and compiled once; safe to share between threads.

    Attributes:
      spec: the template's source.
      columns: names of the columns that a row must have.
      choices_fixed: whether the options are the same for every example.
      draws: whether the prompt or the target draws at random.

    Raises:
      UserError: the template is not valid Jinja, uses a statement that has no span rule, or is too large.
    """

    def __init__(self, spec: TemplateSpec) -> None:
        self.spec = spec
        self._where = f"template {shown(spec.name)} of {spec.dataset}"
        for text in (spec.jinja, spec.answer_choices or ""):
            if len(text) > render_limits.MAX_SOURCE:
                raise UserError(
                    f"{self._where}: expected at most {render_limits.MAX_SOURCE:,} characters, got {len(text):,}"
                )
        try:
            self._set_up(spec)
        except UserError:
            raise
        except Exception as error:
            # Brackets nested 200 deep, or a constant that Jinja computes beforehand: {{ {[]: 1} }}
            why = "nested too deep" if isinstance(error, RecursionError) else error
            raise UserError(f"{self._where}: cannot be compiled: {why}") from error

    def _set_up(self, spec: TemplateSpec) -> None:
        choices: TaintAnalysis | None = None
        self._choices: Template | None = None
        if spec.answer_choices is not None:
            choices_tree = self._parse(spec.answer_choices)
            choices = self._analyse(choices_tree, choices_are_instance=False)
            self._choices = self._compile(choices_tree)
        self.choices_fixed = choices is not None and not choices.columns
        text = spec.jinja.replace("}}", _TRUNCATE)
        tree = self._parse(text)
        self.draws = _draws(tree)
        self._loops = tree.find(nodes.For) is not None
        body = self._analyse(tree, choices is not None and not self.choices_fixed)
        self._body = self._compile(body.mark())
        analyses = [analysis for analysis in (body, choices) if analysis is not None]
        self.columns = tuple(sorted({name for one in analyses for name in one.columns}))
        bound = {name for one in analyses for name in one.bound}
        self._optional = tuple(sorted(bound - set(self.columns)))  # perhaps set, perhaps a column
        self._constant_choices: tuple[str, ...] | None = None
        if self._choices is not None and self.choices_fixed and not _draws(choices_tree):
            try:
                self._constant_choices = self._render_choices(
                    {render_limits.METER: render_limits.Meter()}
                )
            except SecurityError as error:
                raise self._refused(error) from error
            except Exception as error:
                raise UserError(
                    f"{self._where}: its choices cannot be rendered: {error}"
                ) from error

    def _parse(self, source: str) -> nodes.Template:
        try:
            return _ENVIRONMENT.parse(source)
        except TemplateSyntaxError as error:
            raise UserError(f"{self._where}, line {error.lineno}: {error.message}") from error

    def _analyse(self, tree: nodes.Template, choices_are_instance: bool) -> TaintAnalysis:
        return TaintAnalysis(tree, _ENVIRONMENT.globals, choices_are_instance, self._where)

    def _compile(self, tree: nodes.Template) -> Template:
        try:
            code = _ENVIRONMENT.compile(sandbox.instrument(tree), name=None, filename=None)
        except TemplateSyntaxError as error:  # such as a filter that nobody registered
            raise UserError(f"{self._where}, line {error.lineno}: {error.message}") from error
        return _ENVIRONMENT.template_class.from_code(
            _ENVIRONMENT, code, _ENVIRONMENT.make_globals(None)
        )

    def apply(
        self, row: Mapping[str, Any], rng: random.Random
    ) -> tuple[list[str], tuple[str, ...] | None]:
        """What promptsource gives: the stripped parts between `|||`, however many, and the choices.

        To the letter: unlike `render`, it cuts at a `|||` inside a list or a choice too, and gives a row of which
        the template computes the index −1 its last choice.

        Raises:
          UserError: the row lacks a column, or the template does what the sandbox forbids.
          Exception: whatever promptsource would raise on a row that does not fit the template.
        """
        pieces, choices = self._run(row, rng, to_the_letter=True)
        parts = self._join(pieces).split(_SEPARATOR)
        return [_unescape(part).strip() for part in parts], choices

    def render(self, row: Mapping[str, Any], rng: random.Random) -> Rendered | Dropped:
        """Renders a row.

        Args:
          row: the example, with at least the columns that the template uses.
          rng: where the `choice` filter draws; `random.Random(s)` gives the draws that promptsource
            gives after `random.seed(s)`.

        Returns:
          The example, or why it is dropped: `render_error` (the row's values do not fit the
          template), `not_two_parts`, `empty_prompt`, `empty_target`, `no_choices` (the template has
          none), `target_not_in_choices`, `correct_not_shown` (a drawn order of the options leaves the
          correct one out, as one of sciq's 24 does).

        Raises:
          UserError: the row lacks a column, or the template does what the sandbox forbids.
        """
        try:
            pieces, choices = self._run(row, rng)
        except UserError:
            raise
        except Exception:  # whatever a filter of Jinja raises on such values, assertions included
            return Dropped("render_error")
        parts = self._join(pieces).split(_SEPARATOR)
        if len(parts) != 2:
            return Dropped("not_two_parts")
        segments = _prompt_segments(pieces, parts[0])
        target = _unescape(parts[1]).strip()
        if not segments:
            return Dropped("empty_prompt")
        if not target:
            return Dropped("empty_target")
        if choices is None:
            return Dropped("no_choices")
        if target not in choices:
            return Dropped("target_not_in_choices")
        if self.draws and _leaves_out(target, choices, runs(pieces, 0, len(parts[0]))):
            return Dropped("correct_not_shown")
        prompt = "".join(segment.text for segment in segments)
        return Rendered(prompt, target, choices, choices.index(target), segments)

    def _run(
        self, row: Mapping[str, Any], rng: random.Random, to_the_letter: bool = False
    ) -> tuple[list[str], tuple[str, ...] | None]:
        values = self._values(row, _escape_text if to_the_letter else _escape)
        values[_RNG] = rng
        values[render_limits.METER] = meter = render_limits.Meter()
        if to_the_letter:
            meter.from_end = True
        try:
            choices = self._constant_choices or self._render_choices(values)
            shown = choices if to_the_letter else _escape_choices(choices)
            values["answer_choices"] = None if shown is None else list(shown)
            return _pieces(self._body, values, self._loops), choices
        except SecurityError as error:
            raise self._refused(error) from error
        except MemoryError as error:
            raise UserError(f"{self._where}: there is no memory for what it makes") from error

    def _refused(self, error: SecurityError) -> UserError:
        return UserError(f"{self._where}: refused by the sandbox: {error}")

    def _join(self, pieces: Sequence[str]) -> str:
        """The pieces as one text. Raises `UserError` where a template writes half a character, such as '\\ud800'."""
        text = "".join(pieces)
        if len(text) > render_limits.MAX_OUTPUT:
            raise UserError(
                f"{self._where}: it writes more than {render_limits.MAX_OUTPUT:,} characters"
            )
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{self._where}: expected text that UTF-8 can hold, got {ascii(text[error.start])}"
                ) from error
        return text

    def _values(self, row: Mapping[str, Any], escape: Callable[[Any], Any]) -> dict[str, Any]:
        if "answer_choices" in row:
            raise UserError(f"{self._where}: a row has the reserved column 'answer_choices'")
        values = {}
        for column in self.columns:
            if column not in row:
                raise self._missing(column, row)
            value = row[column]
            values[column] = (
                value.replace(_SEPARATOR, _PIPE_PROTECTOR) if type(value) is str else escape(value)
            )
        for name in self._optional:
            if name in row:
                values[name] = escape(row[name])
        return values

    def _missing(self, column: str, row: Mapping[str, Any]) -> UserError:
        near = ", ".join(map(repr, nearest(column, [*row, "answer_choices"]))) or "none"
        return UserError(
            f"{self._where}: the row has no column {column!r}; expected columns: "
            f"{', '.join(self.columns)}; nearest: {near}"
        )

    def _render_choices(self, values: Mapping[str, Any]) -> tuple[str, ...] | None:
        if self._choices is None:
            return None
        options = self._join(_pieces(self._choices, values, loops=True)).split(
            _SEPARATOR, render_limits.MAX_CHOICES
        )
        if len(options) > render_limits.MAX_CHOICES:
            raise render_limits.OverLimit(
                f"expected at most {render_limits.MAX_CHOICES:,} choices, got more"
            )
        return tuple(_unescape(option.strip()) for option in options)


def _pieces(template: Template, values: Mapping[str, Any], loops: bool) -> list[str]:
    """What a template writes, piece by piece. `_join` looks at the size of few pieces, as one without loops writes."""
    written = template.root_render_func(_context(template, values))
    if not loops:
        return list(written)
    pieces: list[str] = []
    size = 0
    while True:
        part = list(itertools.islice(written, _PIECES_AT_ONCE))
        pieces += part
        if len(part) < _PIECES_AT_ONCE:
            return pieces
        size += sum(map(len, part))
        if size > render_limits.MAX_OUTPUT:
            raise render_limits.OverLimit(
                f"it writes more than {render_limits.MAX_OUTPUT:,} characters"
            )


def _context(template: Template, values: Mapping[str, Any]) -> Context:
    """`template.new_context(values)` without what that does for imports, which no template has."""
    return _ENVIRONMENT.context_class(
        _ENVIRONMENT, {**_GLOBALS, **values}, template.name, template.blocks
    )


def _draws(tree: nodes.Template) -> bool:
    return any(node.name in _DRAWING_FILTERS for node in tree.find_all(nodes.Filter))


def _leaves_out(
    target: str, choices: Sequence[str], prompt_parts: Iterable[tuple[str, Kind]]
) -> bool:
    """Whether a prompt shows options one by one, but not the target."""
    shown = {_unescape(text).strip() for text, kind in prompt_parts if kind == "instance"}
    return target not in shown and not shown.isdisjoint(choices)


def _escape_text(value: Any) -> Any:
    """A column's value with `|||` protected as promptsource does it: not in lists."""
    return value.replace(_SEPARATOR, _PIPE_PROTECTOR) if isinstance(value, str) else value


def _escape(value: Any) -> Any:
    """A column's value with `|||` protected, in lists and dicts too; the same value where there is none."""
    if isinstance(value, str):
        return value.replace(_SEPARATOR, _PIPE_PROTECTOR)
    if type(value) is int:  # as most labels are
        return value
    if isinstance(value, list):
        return [_escape(item) for item in value] if _has_separator(value) else value
    if isinstance(value, Mapping):
        if _has_separator(value):
            return {_escape(key): _escape(item) for key, item in value.items()}
    return value


def _escape_choices(choices: tuple[str, ...] | None) -> Sequence[str] | None:
    return (
        [*map(_escape_text, choices)]
        if choices is not None and _SEPARATOR in "".join(choices)
        else choices
    )


def _has_separator(value: Any) -> bool:
    if isinstance(value, str):
        return _SEPARATOR in value
    if isinstance(value, list):
        try:
            return _SEPARATOR in "\n".join(value)  # nearly all lists are of texts
        except TypeError:
            return any(map(_has_separator, value))
    if isinstance(value, Mapping):
        return any(map(_has_separator, value)) or any(map(_has_separator, value.values()))
    return False


def _unescape(text: str) -> str:
    return text.replace(_PIPE_PROTECTOR, _SEPARATOR)


def _prompt_segments(pieces: Sequence[str], part: str) -> tuple[Segment, ...]:
    """Segments of the first part, stripped and unescaped; the part starts the joined pieces."""
    stop = len(part.rstrip())
    start = len(part) - len(part.lstrip())
    slices: list[tuple[str, Kind]] = []
    while (hit := part.find(_PIPE_PROTECTOR, start, stop)) >= 0:
        slices.extend(runs(pieces, start, hit))
        _, kind = next(runs(pieces, hit, hit + 1))
        slices.append((_SEPARATOR, kind))
        start = hit + len(_PIPE_PROTECTOR)
    slices.extend(runs(pieces, start, stop))
    return merge(slices)


@functools.lru_cache(maxsize=4096)
def compile_template(spec: TemplateSpec) -> CompiledTemplate:
    """The compiled form of a template; compiled at most once in a process.

    A spec with a method `compiled`, as BIG-bench's have, gives its own form, which is no Jinja.
    """
    own = getattr(spec, "compiled", None)
    return CompiledTemplate(spec) if own is None else own()
