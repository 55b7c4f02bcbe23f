"""Ours against the programs that the public models were trained through: promptsource, Hugging Face.

promptsource 0.2.3 imports where pandas and `setuptools<81` (its `pkg_resources`) are installed;
the tokenizer needs transformers 5.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from flipped_tasks.methods import Formatted, format_example, to_text
from flipped_tasks.promptsource import load_templates
from flipped_tasks.rendering import Dropped, Rendered, compile_template
from flipped_tasks.tokens import Vocabulary, encode

ROWS_A_SPLIT = 3
NASTY = ("|||", " a ||| b", "{{ x }}", "<b>&amp;", "\x85 \n", "3ed2dface8203", "word " * 600, "")


def _rows(shared_dir: pathlib.Path) -> dict[str, list[dict]]:
    """A few real rows of each split, and the hand-made ones, of all 33 dataset configurations."""
    found: dict[str, list[dict]] = {}
    for line in (shared_dir / "gold" / "sample.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if case["row"] not in found.setdefault(case["dataset"], []):
            found[case["dataset"]].append(case["row"])
    for file in sorted((shared_dir / "data" / "nlp").glob("*/*.jsonl.gz")):
        rows = found[file.parent.name.replace("__", "/")]
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for _, line in zip(range(ROWS_A_SPLIT), lines, strict=False)]
    return found


@pytest.fixture(scope="module")
def rows(shared_dir: pathlib.Path) -> dict[str, list[dict]]:
    return _rows(shared_dir)


@pytest.fixture(scope="module")
def reference() -> Any:
    return pytest.importorskip(
        "promptsource.templates",
        reason="promptsource cannot be imported: it needs pandas and setuptools<81",
        exc_type=ImportError,
    )


def _variants(row: dict, rnd: random.Random) -> Iterator[dict]:
    def change(value: Any) -> Any:
        if isinstance(value, str) and rnd.random() < 0.5:
            return value + rnd.choice(NASTY) if rnd.random() < 0.7 else rnd.choice(NASTY) + value
        if isinstance(value, list):
            return [change(item) for item in value]
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        return value

    yield row
    yield change(row)
    yield {key: None if rnd.random() < 0.3 else value for key, value in row.items()}


def _compare(theirs: Any, ours: Any, row: dict, seed: int) -> bool:
    """Asserts equality on one row; False where promptsource itself raises."""
    random.seed(seed)
    try:
        parts, choices = theirs.apply(row), theirs.get_answer_choices_list(row)
    except Exception as error:
        with pytest.raises(type(error)):
            ours.apply(row, random.Random(seed))
        assert ours.render(row, random.Random(seed)) == Dropped("render_error")
        return False
    got, got_choices = ours.apply(row, random.Random(seed))
    assert got == parts
    assert got_choices == (None if choices is None else tuple(choices))
    rendered = ours.render(row, random.Random(seed))
    if isinstance(rendered, Rendered):
        parts, choices = _without_separators(theirs, row, seed)
        assert [rendered.prompt, rendered.target] == parts
        assert rendered.choices == tuple(choices)
        assert rendered.correct == choices.index(parts[1])
    return True


def _without_separators(theirs: Any, row: dict, seed: int) -> tuple[list[str], list[str]]:
    """What promptsource gives where `|||` means nothing to it, as long as its own stand-in: put back afterwards.

    promptsource cuts at a `|||` inside a list or a choice; `render` does not.
    """
    word = "3ed2dface8203c4c9dfb1a5dc58e41e1"
    changed = json.loads(json.dumps(row).replace("|||", word))
    random.seed(seed)
    parts, choices = theirs.apply(changed), theirs.get_answer_choices_list(changed)
    return [part.replace(word, "|||") for part in parts], [
        choice.replace(word, "|||") for choice in choices
    ]


def test_every_template_equals_promptsource(rows: dict[str, list[dict]], reference: Any) -> None:
    rnd = random.Random(0)
    templates = compared = 0
    for dataset, examples in sorted(rows.items()):
        theirs = reference.DatasetTemplates(*dataset.split("/", 1))
        ours = load_templates(dataset)
        assert list(ours) == theirs.all_template_names
        for name, spec in ours.items():
            templates += 1
            assert spec.original_task == bool(theirs[name].metadata.original_task)
            compiled = compile_template(spec)
            for row in examples:
                for variant in _variants(row, rnd):
                    compared += _compare(theirs[name], compiled, variant, rnd.randrange(1000))
    assert templates == 283 and compared > 5000


@pytest.fixture(scope="module")
def hugging_face(t5_vocab_path: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its T5 tokenizer, built from the vocabulary file alone."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("t5")
    shutil.copyfile(t5_vocab_path, folder / "spiece.model")
    return transformers.T5Tokenizer.from_pretrained(str(folder), extra_ids=100)


def test_ids_equal_hugging_faces(
    rows: dict[str, list[dict]], hugging_face: Any, t5_vocab_path: str
) -> None:
    vocab = Vocabulary.from_file(t5_vocab_path)
    assert hugging_face.convert_tokens_to_ids("<extra_id_0>") == vocab.sentinel(0) == 32099
    lengths = {"inputs": 10**6, "targets": 10**6}
    compared = 0
    for dataset, examples in sorted(rows.items()):
        for spec in load_templates(dataset).values():
            for row in examples[:4]:
                rendered = compile_template(spec).render(row, random.Random(0))
                if not isinstance(rendered, Rendered):
                    continue
                for method in ("direct", "channel", "flipped"):
                    formatted = format_example(method, rendered, rendered.correct)
                    if not isinstance(formatted, Formatted):
                        continue
                    encoded = encode(formatted, vocab, lengths)
                    for pieces, ids in (
                        (formatted.inputs, encoded.inputs),
                        (formatted.targets, encoded.targets),
                    ):
                        assert ids == hugging_face(to_text(pieces)).input_ids, (method, pieces)
                        compared += 1
    assert compared > 4000
