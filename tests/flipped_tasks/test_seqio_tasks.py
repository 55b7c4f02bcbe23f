"""SeqIO tasks: what they draw, drop and give."""

import collections
import json

import numpy as np
import pytest
import seqio

from flipped_core.errors import UserError
from flipped_tasks import seqio_tasks, tokens
from flipped_tasks.datasets import usable_templates
from flipped_tasks.methods import format_example
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import compile_template, template_rng
from flipped_tasks.seqio_tasks import drop_counts, register_task, task_name
from flipped_tasks.seqio_vocabulary import SeqioVocabulary
from mixtures import catalog  # noqa: F401

LENGTHS = {"inputs": 256, "targets": 64}
FLIPPED_LENGTHS = LENGTHS | {"wrong_inputs": 256}


def write(folder, dataset, rows, split="train"):
    place = folder / dataset.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def pairs(count):
    return [
        {
            "sentence1": f"the {n} cats sat .",
            "sentence2": f"{n} dogs ran .",
            "label": n % 2,
            "idx": n,
        }
        for n in range(count)
    ]


def science(count):
    return [
        {
            "question": f"what is {n}", "distractor1": "one", "distractor2": "two", "distractor3": "three",
            "correct_answer": "four", "support": f"it is {n} .",
        }
        for n in range(count)
    ]  # fmt: skip


def read(task, count=None, lengths=LENGTHS, **how):
    dataset = task.get_dataset(lengths, **({"split": "train", "shuffle": False, "seed": 3} | how))
    return list((dataset if count is None else dataset.take(count)).as_numpy_iterator())


@pytest.mark.parametrize("method", ["direct", "channel", "flipped"])
def test_a_template_task_gives_the_method_in_order(tmp_path, small_vocab_path, method):
    rows = pairs(70)
    task = register_task(
        "glue/mrpc", method, "equivalent", write(tmp_path, "glue/mrpc", rows), small_vocab_path
    )
    assert seqio.get_mixture_or_task(f"{method}.glue_mrpc.equivalent") is task
    found = read(task)
    vocab = tokens.Vocabulary.from_file(small_vocab_path)
    compiled = compile_template(load_template("glue/mrpc", "equivalent"))
    assert len(found) == 70
    for number, (row, example) in enumerate(zip(rows, found, strict=True)):
        rendered = compiled.render(row, template_rng(3, "equivalent", f"0/{number}"))
        ids = tokens.encode(format_example(method, rendered, rendered.correct), vocab, LENGTHS)
        np.testing.assert_array_equal(example["inputs"], ids.inputs)
        np.testing.assert_array_equal(example["targets"], ids.targets)
        assert example["example_id"] == f"glue/mrpc/train/{number}/equivalent".encode()
        if method == "flipped":
            other = tokens.encode(
                format_example(method, rendered, 1 - rendered.correct), vocab, LENGTHS
            )
            np.testing.assert_array_equal(example["wrong_inputs"], other.inputs)


def test_inputs_end_with_eos_only_where_it_is_wanted(tmp_path, small_vocab_path):
    data = write(tmp_path, "glue/mrpc", pairs(2))
    with_eos = read(register_task("glue/mrpc", "direct", "equivalent", data, small_vocab_path))
    without = read(
        register_task("glue/mrpc", "direct", "equivalent", data, small_vocab_path, input_eos=False)
    )
    assert with_eos[0]["inputs"][-1] == 1 != without[0]["inputs"][-1]
    np.testing.assert_array_equal(with_eos[0]["inputs"][:-1], without[0]["inputs"])


def templates_drawn(examples):
    return [example["example_id"].decode().rsplit("/", 1)[1] for example in examples]


def test_a_training_task_draws_all_templates_alike_and_anew_each_epoch(tmp_path, small_vocab_path):
    data = write(tmp_path, "glue/mrpc", pairs(300))
    task = register_task("glue/mrpc", "direct", None, data, small_vocab_path)
    found = templates_drawn(read(task, num_epochs=2))
    assert len(found) == 600 and found[:300] != found[300:]
    assert found == templates_drawn(read(task, num_epochs=2))
    assert found != templates_drawn(read(task, num_epochs=2, seed=4))
    counts = collections.Counter(found)
    assert set(counts) == set(usable_templates("glue/mrpc", "direct"))
    assert all(85 < count < 155 for count in counts.values()), counts  # 120 ± 3.6 σ


def test_all_methods_meet_the_same_examples_under_the_same_templates(tmp_path, small_vocab_path):
    data = write(tmp_path, "glue/mrpc", pairs(50))
    orders = [
        [
            e["example_id"]
            for e in read(register_task("glue/mrpc", m, None, data, small_vocab_path), shuffle=True)
        ]
        for m in ("direct", "channel", "flipped")
    ]
    assert orders[0] == orders[1] == orders[2]


def test_the_wrong_choice_is_uniform_over_the_others(tmp_path, small_vocab_path):
    data = write(tmp_path, "sciq", science(400))
    task = register_task("sciq", "flipped", "Direct Question (Closed Book)", data, small_vocab_path)
    vocab = SeqioVocabulary(small_vocab_path)
    found = read(task, lengths=FLIPPED_LENGTHS)
    wrong = [vocab.decode(example["wrong_inputs"]).split()[-1] for example in found]
    counts = collections.Counter(wrong)
    assert set(counts) == {"one", "two", "three"}
    assert all(100 < count < 167 for count in counts.values()), counts  # 133 ± 3.5 σ
    assert all(not np.array_equal(example["inputs"], example["wrong_inputs"]) for example in found)


def test_options_of_one_text_leave_no_wrong_choice(tmp_path, small_vocab_path):
    rows = science(3)
    for row in rows:
        row |= {"distractor1": "four", "distractor2": "four", "distractor3": "four"}
    data = write(tmp_path, "sciq", rows)
    task = register_task("sciq", "flipped", "Direct Question (Closed Book)", data, small_vocab_path)
    assert all(
        example["wrong_inputs"].shape == (0,) for example in read(task, lengths=FLIPPED_LENGTHS)
    )
    assert drop_counts(task)["one_choice"] == 3


def copa(question):
    return {
        "premise": "it rained",
        "choice1": "wet",
        "choice2": "dry",
        "question": question,
        "idx": 0,
        "label": 0,
    }


def test_a_template_task_drops_and_counts_what_it_cannot_render(tmp_path, small_vocab_path):
    rows = [copa("cause"), copa("effect"), copa("cause") | {"label": -1}]
    data = write(tmp_path, "super_glue/copa", rows)
    task = register_task(
        "super_glue/copa", "direct", "…which may be caused by", data, small_vocab_path
    )
    found = read(task)
    assert [example["example_id"] for example in found] == [
        "super_glue/copa/train/0/…which may be caused by".encode()
    ]
    assert sum(drop_counts(task).values()) == 2 and drop_counts(task)["unlabelled"] == 1


def test_a_block_that_is_dropped_whole_gives_nothing(tmp_path, small_vocab_path):
    rows = [copa("effect")] * (seqio_tasks.ROWS_PER_CALL + 3) + [copa("cause")]
    data = write(tmp_path, "super_glue/copa", rows)
    task = register_task(
        "super_glue/copa", "flipped", "…which may be caused by", data, small_vocab_path
    )
    assert len(read(task, lengths=FLIPPED_LENGTHS)) == 1


def test_a_training_task_draws_another_template_for_it(tmp_path, small_vocab_path):
    data = write(tmp_path, "super_glue/copa", [copa("cause"), copa("effect")] * 20)
    task = register_task("super_glue/copa", "direct", None, data, small_vocab_path)
    found = read(task, shuffle=True)
    numbers = sorted(int(example["example_id"].decode().split("/")[3]) for example in found)
    assert numbers == list(range(40))
    assert sum(drop_counts(task).values()) > 0


def test_a_training_task_takes_another_example_where_no_template_fits(tmp_path, small_vocab_path):
    rows = [row | {"sentence1": None} if n < 3 else row for n, row in enumerate(pairs(20))]
    task = register_task(
        "glue/mrpc", "direct", None, write(tmp_path, "glue/mrpc", rows), small_vocab_path
    )
    encode = task.write

    def picky(row, *rest):
        return (
            seqio_tasks.Dropped("no_sentence")
            if json.loads(row)["sentence1"] is None
            else encode(row, *rest)
        )

    task.write = picky
    found = read(task)
    numbers = [int(example["example_id"].decode().split("/")[3]) for example in found]
    assert len(found) == 20 and numbers[3:] == list(range(3, 20)) and min(numbers) >= 3
    assert drop_counts(task)["no_sentence"] >= 3


@pytest.mark.parametrize("template", [None, "equivalent"])
def test_a_split_without_one_usable_example_is_an_error(tmp_path, small_vocab_path, template):
    task = register_task(
        "glue/mrpc", "direct", template, write(tmp_path, "glue/mrpc", pairs(5)), small_vocab_path
    )
    task.write = lambda *_: seqio_tasks.Dropped("hopeless")
    with pytest.raises(Exception, match="no example can be used .* hopeless"):
        read(task)


def test_truncation_is_counted(tmp_path, small_vocab_path):
    data = write(tmp_path, "glue/mrpc", pairs(4))
    task = register_task("glue/mrpc", "flipped", "equivalent", data, small_vocab_path)
    short = {"inputs": 40, "targets": 8, "wrong_inputs": 40}
    found = read(task, lengths=short)
    assert all(len(example["inputs"]) <= 40 and len(example["targets"]) == 8 for example in found)
    assert drop_counts(task)["targets_cut"] == 4


def test_hosts_of_stock_seqio_share_the_split(tmp_path, small_vocab_path):
    task = register_task(
        "glue/mrpc", "direct", None, write(tmp_path, "glue/mrpc", pairs(21)), small_vocab_path
    )
    ids = [
        [
            e["example_id"].decode().split("/")[3]
            for e in read(task, shard_info=seqio.ShardInfo(i, 2), shuffle=True)
        ]
        for i in range(2)
    ]
    assert len(ids[0]) == 11 and len(ids[1]) == 10
    assert sorted(map(int, ids[0] + ids[1])) == list(range(21))


def test_the_vocabulary_is_t5s(t5_vocab_path):
    vocab = SeqioVocabulary(t5_vocab_path)
    assert (vocab.pad_id, vocab.eos_id, vocab.unk_id, vocab.extra_ids) == (0, 1, 2, 100)
    assert vocab.vocab_size == 32100
    assert (
        vocab.decode([32099, *vocab.encode("a skillet"), 32000, 1, 5])
        == "<extra_id_0> a skillet <extra_id_99>"
    )
    assert vocab.decode_tf(vocab.encode_tf("a skillet")).numpy() == b"a skillet"
    assert vocab == SeqioVocabulary(t5_vocab_path) != SeqioVocabulary(t5_vocab_path + "x")


def test_names_and_mistakes(tmp_path, small_vocab_path):
    assert task_name("super_glue/wsc.fixed", "flipped", "does the pronoun refer to") == (
        "flipped.super_glue_wsc_fixed.does_the_pronoun_refer_to"
    )
    with pytest.raises(UserError, match="vocab_path"):
        register_task("glue/mrpc", "direct")
    with pytest.raises(UserError, match="unknown method"):
        register_task("glue/mrpc", "directly", vocab_path=small_vocab_path)
    with pytest.raises(UserError, match="unknown template"):
        register_task("glue/mrpc", "direct", "equivalence", vocab_path=small_vocab_path)
    task = register_task(
        "glue/mrpc", "direct", None, write(tmp_path, "glue/mrpc", pairs(2)), small_vocab_path
    )
    with pytest.raises(UserError, match="unknown split"):
        task.get_dataset(LENGTHS, split="validation")
