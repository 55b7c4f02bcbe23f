"""`flipped tasks export --to lm-eval`: what it writes, counts and refuses (the harness runs in tests/parity)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from flipped_cli.main import main
from flipped_eval.lm_eval_tasks import tokenizer_ids
from flipped_tasks.tokens import Vocabulary

from .test_evaluation import save

pytestmark = pytest.mark.usefixtures("own_datasets")
MODULE = """
from mixtures.own import Template, add_dataset
ANSWER = "{{answer_choices[label]}}"
add_dataset(
    "notes",
    {"validation": [
        {"text": "It is fine.", "label": 1},
        {"text": "It ends with </s> here", "label": 0},
        {"text": "no label", "label": None},
        {"text": "a very long note " * 20, "label": 0},
    ]},
    "label",
    [Template("fine", "Note: {{text}} Is all fine?", ANSWER, ("no", "yes"))],
)
"""


def call(*words: Any) -> Any:
    return CliRunner().invoke(main, ["tasks", "export", *map(str, words)], catch_exceptions=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_vocab_path: str) -> str:
    folder = tmp_path_factory.mktemp("run")
    recipe = {"vocab_path": small_vocab_path, "lengths": {"inputs": 48, "targets": 32}}
    return save(folder, small_vocab_path, 0, mixture="flipped_train", **recipe)


@pytest.fixture
def module(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "notes_tasks.py"
    file.write_text(MODULE)
    return str(file)


def rows(folder: pathlib.Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "rows" / f"{name}.jsonl").read_text().splitlines()
    ]


def test_tasks_of_all_methods_and_what_is_counted(tmp_path, checkpoint, module, small_vocab_path):
    out = tmp_path / "out"
    methods = ("--method", "direct", "--method", "channel", "--method", "flipped")
    told = call(
        "--to", "lm-eval", "--checkpoint", checkpoint, *methods, "--module", module, "notes", out
    )
    assert told.exit_code == 0, told.output
    direct = rows(out, "chosen_direct_notes_fine")
    assert [one["example"] for one in direct] == ["0", "1", "3"]
    assert direct[0] == {
        "example": "0", "prompt": "Note: It is fine. Is all fine?", "choices": ["no</s>", "yes</s>"], "gold": 1,
    }  # fmt: skip
    channel = rows(out, "chosen_channel_notes_fine")
    assert channel[0] == {
        "example": "0", "choices": ["no", "yes"], "contexts": ["no", "yes"], "gold": 1,
        "target": "Note: It is fine. Is all fine?</s>",
    }  # fmt: skip
    flipped = rows(out, "chosen_flipped_notes_fine")
    assert flipped[0]["contexts"] == [
        f"input: <extra_id_0> It is fine. <extra_id_1>\noutput: {choice}"
        for choice in ("no", "yes")
    ]
    assert flipped[0]["target"] == "<extra_id_0> Note: <extra_id_1> Is all fine?</s>"
    # The instance was shortened, and the choice is still there.
    vocabulary = Vocabulary.from_file(small_vocab_path)
    for context, choice in zip(flipped[2]["contexts"], ("no", "yes"), strict=True):
        assert context.endswith(f"output: {choice}")
        assert len(tokenizer_ids(context, vocabulary)) <= 47
    # A literal </s> in an example is a special token to the Hugging Face tokenizer.
    differences = [
        json.loads(line) for line in (out / "differences.jsonl").read_text().splitlines()
    ]
    assert {(one["task"], one["side"]) for one in differences} == {
        ("chosen_direct_notes_fine", "inputs"),
        ("chosen_channel_notes_fine", "targets"),
        ("chosen_flipped_notes_fine", "inputs"),
    }
    assert {one["example"] for one in differences} == {"1"}
    for one in differences:
        assert tokenizer_ids(one["text"], vocabulary) == one["tokenizer_ids"] != one["ids"]
    assert (
        f"gives other ids for {len(differences)} texts: see {out}/differences.jsonl" in told.output
    )
    assert "dropped, as in flipped eval: 3 unlabelled" in told.output
    about = json.loads((out / "export.json").read_text())
    assert about["other_ids"] == len(differences) and about["dropped"] == {"unlabelled": 3}
    assert (
        about["inputs_truncated"] == 2 and about["targets_truncated"] == 1
    )  # CHANNEL's target is the prompt


def test_yaml_files_say_how_the_harness_asks(tmp_path, checkpoint, module):
    out = tmp_path / "out"
    assert (
        call(
            "--to", "lm-eval", "--checkpoint", checkpoint, "--module", module, "notes", out
        ).exit_code
        == 0
    )
    task = yaml.safe_load((out / "chosen_flipped_notes_fine.yaml").read_text())
    assert (task["doc_to_text"], task["doc_to_choice"], task["doc_to_target"]) == (
        "gold",
        "contexts",
        "target",
    )
    assert task["output_type"] == "multiple_choice" and task["target_delimiter"] == ""
    assert (out / task["dataset_kwargs"]["data_files"]["test"]).is_file()
    group = yaml.safe_load((out / "chosen_flipped_notes.yaml").read_text())
    assert group["task"] == ["chosen_flipped_notes_fine"]
    assert group["aggregate_metric_list"] == [
        {"metric": "acc", "aggregation": "mean", "weight_by_size": False}
    ]
    suite = yaml.safe_load((out / "chosen_flipped.yaml").read_text())
    assert suite == {"group": "chosen_flipped", "task": ["chosen_flipped_notes"]}


def test_the_printed_command_asks_as_the_checkpoint_was_trained(tmp_path, checkpoint, module):
    words = ("--to", "lm-eval", "--checkpoint", checkpoint, "--module", module, "--no_eos", "notes")
    told = call(*words, tmp_path / "out").output
    (line,) = [line for line in told.splitlines() if line.startswith("next: ")]
    assert (
        "pretrained=HUGGING_FACE_FOLDER,dtype=float32,max_length=48,tie_word_embeddings=False,add_bos_token=False"
        in line
    )
    assert "--tasks chosen_flipped " in line


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, checkpoint, module):
    base = ("--checkpoint", checkpoint, "--module", module)
    for words, message in (
        (("--to", "lm-evl", *base, "notes"), "unknown tool in --to 'lm-evl'"),
        (("--to", "lm-eval", *base, "--method", "fliped", "notes"), "unknown method 'fliped'"),
        (("--to", "lm-eval", *base, "notess"), "unknown suite or dataset 'notess'"),
        (("--to", "lm-eval", "--checkpoint", tmp_path / "none", "imdb"), "no checkpoint at"),
    ):
        told = call(*words, tmp_path / "out")
        assert told.exit_code == 2 and told.output.splitlines()[-1].startswith(
            f"error: {message}"
        ), told.output
        assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    told = call("--to", "lm-eval", *base, "notes", tmp_path / "there")
    assert told.exit_code == 2 and "exists already" in told.output


def test_a_task_without_rows_leaves_the_others_and_exits_2(tmp_path, checkpoint, module):
    rte = tmp_path / "data" / "super_glue__rte"
    rte.mkdir(parents=True)
    row = {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0, "label": 1}
    (rte / "validation.jsonl").write_text(json.dumps(row) + "\n")
    words = ("--to", "lm-eval", "--checkpoint", checkpoint, "--data_dir", tmp_path / "data")
    told = call(*words, "super_glue/rte:GPT-3 style", "super_glue/cb:GPT-3 style", tmp_path / "out")
    assert told.exit_code == 2
    assert "error: not exported: chosen super_glue/cb 'GPT-3 style': " in told.output
    assert list((tmp_path / "out" / "rows").iterdir()) == [
        tmp_path / "out" / "rows" / "chosen_flipped_super_glue_rte_gpt_3_style.jsonl"
    ]
