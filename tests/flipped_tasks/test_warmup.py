"""Plain text as a task."""

import itertools

import numpy as np
import pytest

from flipped_core.errors import UserError
from flipped_tasks import warmup
from flipped_tasks.batches import batches
from flipped_tasks.draws import generator
from flipped_tasks.embedded import warmup_texts
from flipped_tasks.seqio_vocabulary import load_vocabulary
from flipped_tasks.warmup import register_text_task

LENGTHS = {"inputs": 64, "targets": 64}


def texts():
    return [text.replace("\t", " ") for text in warmup_texts(3, 120)]


def texts_with_tabs():
    return [text for text in warmup_texts(3, 60) if "\t" in text]


def examples(count=240, given=texts, **how):
    name = register_text_task("test_warmup", given, **how).name
    found = []
    for batch in itertools.islice(batches(name, LENGTHS, 12, 7), count // 12):
        for inputs, targets, example in zip(
            batch["encoder_input_tokens"],
            batch["decoder_target_tokens"],
            batch["example_ids"],
            strict=True,
        ):
            found.append(([i for i in inputs if i], [t for t in targets if t], example.decode()))
    return found


def test_a_tab_parts_a_text_and_what_comes_after_it(small_vocab_path):
    vocab = load_vocabulary(small_vocab_path)
    first_sentinel = vocab.sentinel(99)
    parts = [[vocab.encode(part) for part in text.split("\t")] for text in texts_with_tabs()]
    forms = set()
    for inputs, targets, example in examples(given=texts_with_tabs, vocab_path=small_vocab_path):
        _, _, number, form = example.split("/")
        before, after = parts[int(number)]
        holes = [token for token in inputs if token >= first_sentinel]
        forms.add(form)
        if form == "holes":
            assert holes == [vocab.sentinel(k) for k in range(len(holes))] and 1 <= len(holes) <= 3
            assert targets == [vocab.sentinel(0), *after, 1]
        else:
            assert not holes and targets == [*after, 1]
        assert [token for token in inputs if token not in holes] == [*before, 1]
    assert forms == {"holes", "prefix_lm"}


def test_a_sample_for_measuring_has_each_text_with_a_tab_twice(small_vocab_path):
    vocab = load_vocabulary(small_vocab_path)
    pairs = warmup.sample_pairs(["no tab", "a question\tits answer"], vocab, 3)
    (plain, answer), (with_holes, after) = pairs
    assert plain == [*vocab.encode("a question"), vocab.eos]
    assert answer == [*vocab.encode("its answer"), vocab.eos]
    assert after == [vocab.sentinel(0), *answer]
    assert [token for token in with_holes if token < vocab.sentinel(99)] == plain
    assert pairs == warmup.sample_pairs(["no tab", "a question\tits answer"], vocab, 3)


def test_both_objectives_keep_every_id_of_the_text(small_vocab_path):
    vocab = load_vocabulary(small_vocab_path)
    sources = [vocab.encode(text) for text in texts()]
    first_sentinel = vocab.sentinel(99)
    for inputs, targets, example in examples(vocab_path=small_vocab_path):
        _, _, number, form = example.split("/")
        assert inputs[-1] == targets[-1] == 1
        inputs, targets = inputs[:-1], targets[:-1]
        if form == "prefix_lm":
            assert inputs and targets and inputs + targets == sources[int(number)]
            continue
        runs, sentinel = {}, None
        for token in targets:
            if token >= first_sentinel:
                sentinel = token
                runs[sentinel] = []
            else:
                runs[sentinel].append(token)
        assert list(runs) == [vocab.sentinel(k) for k in range(len(runs))]
        assert (
            list(itertools.chain(*(runs.get(token, [token]) for token in inputs)))
            == sources[int(number)]
        )


def test_the_share_of_prefix_lm_is_kept_and_drawn_anew(small_vocab_path):
    found = examples(600, vocab_path=small_vocab_path, prefix_lm_share=0.7)
    share = np.mean([example.endswith("prefix_lm") for _, _, example in found])
    assert abs(share - 0.7) < 4 * (0.21 / 600) ** 0.5
    assert len({(tuple(i), tuple(t)) for i, t, _ in found}) > 400  # of 120 texts in 5 epochs
    assert all(
        e.endswith("prefix_lm")
        for _, _, e in examples(vocab_path=small_vocab_path, prefix_lm_share=1.0)
    )


def test_a_restart_gives_what_an_uninterrupted_run_gives(small_vocab_path):
    name = register_text_task("test_warmup", texts, small_vocab_path).name
    whole = list(itertools.islice(batches(name, LENGTHS, 12, 7), 12))
    rest = list(itertools.islice(batches(name, LENGTHS, 12, 7, start_step=9), 3))
    for left, right in zip(whole[9:], rest, strict=True):
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


@pytest.mark.parametrize("length", [2, 3, 17, 400])
def test_the_noise_has_its_density_and_its_mean_run(length):
    masks = np.array([warmup.noise_mask(length, 0.15, 3.0, generator(seed)) for seed in range(50)])
    assert not masks[:, 0].any() and masks[:, -1].all()
    expected = min(max(round(length * 0.15), 1), length - 1)
    assert (masks.sum(axis=1) == expected).all()
    runs = (np.diff(masks.astype(int), axis=1) == 1).sum(axis=1)
    assert (runs == max(round(expected / 3), 1)).all()


def test_mistakes(small_vocab_path):
    with pytest.raises(UserError, match="prefix_lm_share: expected 0.0 to 1.0, got 1.5"):
        register_text_task("test_warmup", texts, small_vocab_path, prefix_lm_share=1.5)
    task = register_text_task("test_warmup", lambda: [], small_vocab_path)
    with pytest.raises(UserError, match="no text is given"):
        batches(task.name, LENGTHS, 12, 7)
    task = register_text_task("test_warmup", lambda: ["", ""], small_vocab_path)
    with pytest.raises(UserError, match="no example can be used"):
        next(batches(task.name, LENGTHS, 12, 7))
