"""Token ids of real rows against a slow reading of the same rules: no cache, no shared part, every text anew."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator

import pytest
import sentencepiece

from flipped_tasks.datasets import get_dataset, usable_templates
from flipped_tasks.methods import METHODS, Formatted, format_example, with_choice
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import Rendered, compile_template, template_rng
from flipped_tasks.sources import load_rows
from flipped_tasks.tokens import Vocabulary, encode, encode_with_choice
from mixtures import catalog

ROWS_PER_TEMPLATE = 5


class Slow:
    """The rules of `tokens.encode`, word for word."""

    def __init__(self, path: str):
        self.processor = sentencepiece.SentencePieceProcessor(model_file=path)
        self.first = self.processor.get_piece_size()

    def ids(self, pieces: list, kinds: list[str]) -> list[int]:
        found: list[int] = []
        merged = [
            (place, list(group))
            for place, group in itertools.groupby(
                range(len(pieces)),
                key=lambda place: place if kinds[place] in ("sentinel", "output") else -1,
            )
        ]
        for place, group in merged:
            if place >= 0 and kinds[place] == "sentinel":
                found.append(self.first + 99 - pieces[place])
            else:
                found += self.processor.encode("".join(pieces[at] for at in group))
        return found

    def prefix(self, text: str, count: int) -> str:
        pieces = self.processor.encode_as_pieces(text)
        if count <= 0 or len(pieces) <= count:
            return text if count > 0 else ""
        size = min(len("".join(pieces[:count])), len(text) - 1)
        while size and len(self.processor.encode(text[:size])) > count:
            size -= 1
        while len(self.processor.encode(text[: size + 1])) <= count:
            size += 1
        return text[:size]

    def inputs(self, made: Formatted, length: int) -> list[int]:
        pieces, kinds = list(made.inputs), list(made.input_kinds)
        room = length - 1
        while len(found := self.ids(pieces, kinds)) > room:
            sizes = {
                at: len(self.processor.encode(pieces[at]))
                for at in range(len(pieces)) if kinds[at] == "instance" and pieces[at]
            }  # fmt: skip
            if not sizes:
                output = self.ids(pieces[-1:], kinds[-1:]) if kinds[-1] == "output" else []
                if not output:
                    return found[len(found) - room :] + [1]
                head = found[: len(found) - len(output)][: max(0, room - len(output))]
                return (head + output)[:room] + [1]
            budget = max(0, sum(sizes.values()) - (len(found) - room))
            highest = max(sizes.values())
            levels = [sum(min(n, cap) for n in sizes.values()) for cap in range(highest + 1)]
            level = bisect.bisect_right(levels, budget) - 1
            spare = budget - levels[level]
            for at, size in sizes.items():
                if size > level or level == 0:
                    pieces[at] = self.prefix(pieces[at], level + (spare > 0))
                    spare -= 1
        return found + [1]

    def targets(self, made: Formatted, length: int) -> list[int]:
        kinds = ["sentinel" if isinstance(piece, int) else "text" for piece in made.targets]
        return self.ids(list(made.targets), kinds)[: length - 1] + [1]


def examples(data_dir: str) -> Iterator[tuple[str, Rendered]]:
    """Every template of the training datasets on a few real rows, long ones among them."""
    for dataset in catalog.TRAINING:
        rows = load_rows(dataset, "train", data_dir)
        rows = [row for row in rows if get_dataset(dataset).check_row(row) is None]
        longest = sorted(rows, key=lambda row: -len(str(row)))[:30]
        for name in usable_templates(dataset, "direct"):
            template = compile_template(load_template(dataset, name))
            for number, row in enumerate(
                random.Random(name).sample(longest, 2)
                + random.Random(name).sample(rows, ROWS_PER_TEMPLATE - 2)
            ):
                rendered = template.render(row, template_rng(0, name, number))
                if isinstance(rendered, Rendered):
                    yield dataset, rendered


@pytest.mark.parametrize("lengths", [(512, 128), (96, 16)])
def test_ids_are_those_of_the_slow_way(
    real_rows_dir: str, t5_vocab_path: str, lengths: tuple[int, int]
) -> None:
    slow, vocab = Slow(t5_vocab_path), Vocabulary.from_file(t5_vocab_path)
    limits = dict(zip(("inputs", "targets"), lengths, strict=True))
    compared = cut = 0
    for dataset, rendered in examples(real_rows_dir):
        for method in METHODS:
            made = format_example(method, rendered, rendered.correct)
            if not isinstance(made, Formatted):
                continue
            got = encode(made, vocab, limits)
            assert got.inputs == slow.inputs(made, lengths[0]), (dataset, method, made)
            assert got.targets == slow.targets(made, lengths[1]), (dataset, method, made)
            compared, cut = compared + 1, cut + (got.inputs_cut > 0)
            if method == "flipped":
                other = (rendered.correct + 1) % len(rendered.choices)
                wrong = format_example(method, rendered, other)
                assert wrong == with_choice(made, rendered.choices[other])
                ids = encode_with_choice(made, got, rendered.choices[other], vocab, limits)
                assert ids == slow.inputs(wrong, lengths[0]), (dataset, made)
    assert compared > 1900 and cut > (10 if lengths[0] == 512 else 500), (compared, cut)
