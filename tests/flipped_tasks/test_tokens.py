"""Token ids: layout of the vocabulary, sentinels beside segments, and what truncation keeps."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flipped_core.errors import UserError
from flipped_tasks.methods import Formatted, format_example
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.rendering import CompiledTemplate, Rendered
from flipped_tasks.tokens import Encoded, Vocabulary, encode, texts

FULL = {"inputs": 512, "targets": 128}
WORDS = "the boat moved on a river under old stone bridges while Yes No output input read and why".split()


def _train(**options: object) -> bytes:
    rnd = random.Random(0)
    lines = [" ".join(rnd.choices(WORDS, k=12)) + " : ? . - |" for _ in range(300)]
    model = io.BytesIO()
    settings_ = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings_,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("vocab") / "small.model"
    path.write_bytes(_train())
    return path


@pytest.fixture(scope="module")
def small(small_path: pathlib.Path) -> Vocabulary:
    return Vocabulary.from_file(small_path)


def example(jinja: str, choices: str = "Yes ||| No", **row: object) -> Rendered:
    jinja += " ||| {{ answer_choices[0] }}"
    template = TemplateSpec("made/up", "t", jinja, choices, True, None, (), "")
    found = CompiledTemplate(template).render(row, random.Random(0))
    assert isinstance(found, Rendered), found
    return found


def formatted(method: str, rendered: Rendered, choice: int = 0) -> Formatted:
    found = format_example(method, rendered, choice)
    assert isinstance(found, Formatted), found
    return found


def test_layout_of_the_real_vocabulary(t5_vocab_path: str) -> None:
    vocab = Vocabulary.from_file(t5_vocab_path)
    assert (vocab.pad, vocab.eos, vocab.unk, vocab.size) == (0, 1, 2, 32128)
    assert (vocab.sentinel(0), vocab.sentinel(99)) == (32099, 32000)
    with pytest.raises(ValueError, match="0 to 99"):
        vocab.sentinel(100)


def test_layout_of_a_small_vocabulary(small: Vocabulary, small_path: pathlib.Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(small_path)).get_piece_size()
    assert small.sentinel(99) == pieces and small.sentinel(0) == pieces + 99
    assert small.size % 128 == 0 and pieces + 100 <= small.size < pieces + 228


def test_files_that_are_no_vocabulary_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="expected a SentencePiece model file"):
        Vocabulary.from_file(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Vocabulary.from_file(tmp_path / "bad.model")
    (tmp_path / "other.model").write_bytes(_train(pad_id=3, eos_id=1, unk_id=0, bos_id=-1))
    with pytest.raises(UserError, match="expected pad, eos, unk to be 0, 1, 2"):
        Vocabulary.from_file(tmp_path / "other.model")


def test_sentinels_that_touch_words_are_kept(small: Vocabulary) -> None:
    rendered = example('Read "{{ a }}" and {{ b }}?', a="the river", b="why")
    flipped = formatted("flipped", rendered)
    encoded = encode(flipped, small, FULL)
    first = small.sentinel(99)
    marks = [small.sentinel(k) for k in range(3)]
    assert [token for token in encoded.inputs if token >= first] == marks
    assert [token for token in encoded.targets if token >= first] == marks
    expected: list[int] = []
    for text, mark in (("input: ", 0), ("the river", 1), (" why", 2)):
        expected += [*small.encode(text), small.sentinel(mark)]
    assert encoded.inputs == [*expected, *small.encode("\noutput: Yes"), small.eos]


def test_a_literal_sentinel_gets_no_sentinels_id(small: Vocabulary) -> None:
    for method in ("direct", "channel", "flipped"):
        rendered = example("Read {{ a }}", a="<extra_id_0><extra_id_5>")
        encoded = encode(formatted(method, rendered), small, FULL)
        allowed = {small.sentinel(0)} if method == "flipped" else set()
        found = {token for token in encoded.inputs + encoded.targets if token >= small.sentinel(99)}
        assert found == allowed


def test_input_eos_is_one_setting_and_targets_always_end_with_it(small: Vocabulary) -> None:
    flipped = formatted("flipped", example("Read {{ a }}", a="river"))
    with_eos, without = encode(flipped, small, FULL), encode(flipped, small, FULL, input_eos=False)
    assert with_eos.inputs == [*without.inputs, small.eos] and small.eos not in without.inputs
    assert with_eos.targets == without.targets and with_eos.targets[-1] == small.eos


def test_encoded_lists_are_the_callers_own(small: Vocabulary) -> None:
    ids = small.encode("the river")
    ids.append(7)
    assert small.encode("the river") == ids[:-1]


def test_texts_encoded_ahead_have_the_ids_of_texts_alone(small_path: pathlib.Path) -> None:
    river = " ".join(f"the river {number} was old" for number in range(40))
    some = ["", "the river", " old  boat ", "the river", river, river[7:], "input: ", "é\u3000ß"]
    alone, ahead = Vocabulary.from_file(small_path), Vocabulary.from_file(small_path)
    ahead.encode_ahead(some)
    ahead.encode_ahead([])
    assert [ahead.encode_text(text) for text in some] == [alone.encode_text(text) for text in some]


def test_what_an_example_asks_for_is_known_ahead(
    small_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = Vocabulary.from_file(small_path)
    for method in ("direct", "channel"):
        asked = formatted(
            method, example("Read {{ a }} and {{ b }}?", a="the river", b="why " * 90)
        )
        vocab.encode_ahead(texts(asked))
        with monkeypatch.context() as patch:
            patch.setattr(vocab, "_encode", lambda text: pytest.fail(f"not known: {text!r}"))
            encode(asked, vocab, FULL)


def test_decode_writes_sentinels_and_skips_padding(small: Vocabulary) -> None:
    ids = [*small.encode("the river"), small.sentinel(4), *small.encode("why"), small.eos, 0, 0]
    assert small.decode(ids) == "the river <extra_id_4> why"
    assert small.decode([small.size - 1]) == "" and small.decode([]) == ""


def _length_without_instances(pieces: Formatted, vocab: Vocabulary, input_eos: bool) -> int:
    kept = tuple(
        "" if kind == "instance" else piece
        for piece, kind in zip(pieces.inputs, pieces.input_kinds, strict=True)
    )
    bare = dataclasses.replace(pieces, inputs=kept)
    return len(encode(bare, vocab, {"inputs": 10**6, "targets": 8}, input_eos).inputs)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(1, 6)),
    limit=st.integers(16, 90),
    target_limit=st.integers(1, 20),
    input_eos=st.booleans(),
)
def test_truncation_laws(
    small: Vocabulary,
    sizes: tuple[int, int, int],
    limit: int,
    target_limit: int,
    input_eos: bool,
) -> None:
    """Within the lengths; eos, sentinels and `output: choice` whole; exact counts of what is cut."""
    rnd = random.Random(str(sizes))
    a, b, option = (" ".join(rnd.choices(WORDS, k=size)) for size in sizes)
    rendered = example("{{ a }} Read {{ b }}why?", "{{ o }} ||| No", a=a, b=b, o=option)
    lengths = {"inputs": limit, "targets": target_limit}
    for method in ("direct", "channel", "flipped"):
        pieces = formatted(method, rendered)
        whole = encode(pieces, small, {"inputs": 10**6, "targets": 10**6}, input_eos)
        cut = encode(pieces, small, lengths, input_eos)
        assert len(cut.inputs) <= limit and len(cut.targets) <= target_limit
        assert cut.targets == whole.targets[: target_limit - 1][: len(whole.targets) - 1] + [1]
        assert cut.inputs_cut == len(whole.inputs) - len(cut.inputs)
        assert cut.targets_cut == len(whole.targets) - len(cut.targets)
        assert (cut == whole) == (len(whole.inputs) <= limit and len(whole.targets) <= target_limit)
        if input_eos:
            assert cut.inputs[-1] == small.eos
        output = small.encode(f"\noutput: {option}") + [small.eos] * input_eos
        if method == "flipped" and _length_without_instances(pieces, small, input_eos) <= limit:
            assert cut.inputs[-len(output) :] == output
            marks = [t for t in whole.inputs if t >= small.sentinel(99)]
            assert [t for t in cut.inputs if t >= small.sentinel(99)] == marks


def test_the_longest_instance_is_shortened_first(small: Vocabulary) -> None:
    long, short = "river " * 60, "old boat"
    rendered = example("Read {{ a }} and {{ b }} why?", a=long.strip(), b=short)
    flipped = formatted("flipped", rendered)
    cut = encode(flipped, small, {"inputs": 40, "targets": 128})
    text = small.decode(cut.inputs)
    assert "old boat" in text and text.endswith("output: Yes") and 38 <= len(cut.inputs) <= 40
    direct = encode(formatted("direct", rendered), small, {"inputs": 30, "targets": 128})
    assert small.decode(direct.inputs).endswith("and old boat why?")


def test_equally_long_instances_are_shortened_alike(small: Vocabulary) -> None:
    many = "river " * 40
    rendered = example("Read {{ a }} and {{ b }} why?", a=many + "x", b=many + "y")
    text = small.decode(
        encode(formatted("flipped", rendered), small, {"inputs": 60, "targets": 9}).inputs
    )
    first, second = text.split("<extra_id_1>")
    assert abs(first.count("river") - second.count("river")) <= 1


def test_direct_without_instances_keeps_its_end_and_outputs_give_way_last(
    small: Vocabulary,
) -> None:
    instruction = "Read " + "the river " * 30 + "{{ a }} why?"
    direct = encode(
        formatted("direct", example(instruction, a="x")), small, {"inputs": 10, "targets": 9}
    )
    assert small.decode(direct.inputs).endswith("why?") and len(direct.inputs) == 10
    option = "river " * 40
    flipped = formatted("flipped", example("Read {{ a }}", "{{ o }} ||| No", a="x", o=option))
    cut = encode(flipped, small, {"inputs": 10, "targets": 9})
    assert len(cut.inputs) == 10 and small.decode(cut.inputs).startswith("output:")


def test_blank_instances_do_not_stall_truncation(small: Vocabulary) -> None:
    rendered = example("Read {{ a }} " + "the river " * 20, a=" \n ")
    assert (
        len(encode(formatted("direct", rendered), small, {"inputs": 8, "targets": 8}).inputs) == 8
    )


def test_lengths_are_checked(small: Vocabulary) -> None:
    flipped = formatted("flipped", example("Read {{ a }}", a="river"))
    for lengths in ({"inputs": 0, "targets": 8}, {"inputs": 8}):
        with pytest.raises(UserError, match="expected at least 1"):
            encode(flipped, small, lengths)


def test_threads_share_a_vocabulary(small: Vocabulary) -> None:
    rows = [" ".join(random.Random(seed).choices(WORDS, k=70)) for seed in range(300)]

    def work(text: str) -> Encoded:
        return encode(formatted("flipped", example("Read {{ a }}", a=text)), small, FULL)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, rows)) == [work(text) for text in rows]
