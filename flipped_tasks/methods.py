"""DIRECT, CHANNEL and FLIPPED as text: what a rendered example gives to the encoder and the decoder.

Source: Ye et al. 2022, arXiv 2210.02969, and the public model cards. Sentinels are kept as integers
beside the text, so that a literal `<extra_id_3>` in an example stays text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from flipped_core.errors import unknown
from flipped_tasks.rendering import Dropped, Rendered

METHODS = ("direct", "channel", "flipped")
NUM_SENTINELS = 100

Piece = str | int  # an integer k stands for <extra_id_k>
PieceKind = Literal["instruction", "instance", "sentinel", "output"]


@dataclass(frozen=True)
class Formatted:
    """One (example, choice) as pieces.

    Attributes:
      inputs: pieces of the encoder's input.
      targets: pieces of the decoder's target.
      input_kinds: what each input piece is: text of the template's author ("instruction", also the
        whitespace around a span), text of the example ("instance"), a "sentinel", or the choice with
        what introduces it ("output"). Truncation shortens "instance" pieces and keeps "output" ones.
    """

    inputs: tuple[Piece, ...]
    targets: tuple[Piece, ...]
    input_kinds: tuple[PieceKind, ...]


def format_example(method: str, rendered: Rendered, choice: int) -> Formatted | Dropped:
    """Puts an example into a method's form.

    Args:
      method: one of `METHODS`.
      rendered: the example.
      choice: which option to put in; `rendered.correct` for training.

    Returns:
      The pieces; or, for FLIPPED only, `Dropped("empty_instruction")` where the template's author
      wrote no text, and `Dropped("too_many_spans")` above 100 spans.

    Raises:
      UserError: the method is unknown.
      IndexError: there is no such choice.
    """
    if not 0 <= choice < len(rendered.choices):
        raise IndexError(f"choice {choice} of {len(rendered.choices)} choices")
    option = rendered.choices[choice]
    if method == "direct":
        texts = tuple(segment.text for segment in rendered.segments)
        kinds: tuple[PieceKind, ...] = tuple(segment.kind for segment in rendered.segments)
        return Formatted(texts, (option,), kinds)
    if method == "channel":
        return Formatted((option,), (rendered.prompt,), ("output",))
    if method == "flipped":
        return _flip(rendered, option)
    raise unknown("method", method, METHODS)


def _flip(rendered: Rendered, option: str) -> Formatted | Dropped:
    inputs: list[Piece] = ["input: "]
    kinds: list[PieceKind] = ["instruction"]
    targets: list[Piece] = []
    count = 0
    for segment in rendered.segments:
        text = segment.text
        span = "" if segment.kind == "instance" else text.strip()
        if not span:
            inputs.append(text)
            kinds.append(segment.kind)
            continue
        begin = text.index(span)
        end = begin + len(span)
        if begin:
            inputs.append(text[:begin])
            kinds.append("instruction")
        inputs.append(count)
        kinds.append("sentinel")
        if end < len(text):
            inputs.append(text[end:])
            kinds.append("instruction")
        targets += (count, f" {span} ")
        count += 1
    if not targets:
        return Dropped("empty_instruction")
    if count > NUM_SENTINELS:
        return Dropped("too_many_spans")
    targets[-1] = str(targets[-1])[:-1]
    inputs.append(output(option))
    kinds.append("output")
    return Formatted(tuple(inputs), tuple(targets), tuple(kinds))


def output(option: str) -> str:
    return f"\noutput: {option}"


def with_choice(flipped: Formatted, option: str) -> Formatted:
    """A FLIPPED example with the text of another choice; the target stays."""
    return dataclasses.replace(flipped, inputs=(*flipped.inputs[:-1], output(option)))


def to_text(pieces: Iterable[Piece]) -> str:
    """The pieces as one string for people to read, sentinels written `<extra_id_k>`."""
    return "".join(f"<extra_id_{piece}>" if isinstance(piece, int) else piece for piece in pieces)


def restore_prompt(flipped: Formatted) -> str:
    """The prompt that a FLIPPED example was made from: the target's spans put back into the input."""
    sentinels, texts = flipped.targets[::2], flipped.targets[1::2]
    spans = {k: str(text).strip() for k, text in zip(sentinels, texts, strict=True)}
    filled = [
        spans[piece] if kind == "sentinel" else str(piece)
        for piece, kind in zip(flipped.inputs, flipped.input_kinds, strict=True)
        if kind != "output"
    ]
    return "".join(filled).removeprefix("input: ")
