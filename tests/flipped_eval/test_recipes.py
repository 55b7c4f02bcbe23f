"""A checkpoint is asked as its own files record it: not as the files of another run say, and nothing is assumed."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

from flipped_core.errors import UserError
from flipped_eval import recipes
from flipped_tasks.tokens import Vocabulary
from t5_engine.config import T5Config

HOW = {name: f"--{name}" for name in ("method", "lengths", "input_eos", "vocab_path")}
LENGTHS = {"inputs": 256, "targets": 64}


@pytest.fixture
def config(small_vocab_path: str) -> T5Config:
    rows = Vocabulary.from_file(small_vocab_path).size
    return T5Config(vocab_size=rows, emb_dim=16, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture
def trained(tmp_path: pathlib.Path, small_vocab_path: str, config: T5Config) -> pathlib.Path:
    """RUN/checkpoints/5 with the files that training writes beside it."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "5").mkdir(parents=True)
    shutil.copyfile(small_vocab_path, folder / "spiece.model")
    write_run(folder, config, vocabulary={"sha256": recipes.sha256(small_vocab_path), "given": "x"})
    return folder


def write_run(
    folder: pathlib.Path, config: T5Config, vocabulary: Any = None, **changes: Any
) -> None:
    recipe = {
        "mixture": "channel_train",
        "model": config.to_dict(),
        "lengths": LENGTHS,
        "input_eos": False,
        "vocab_path": "spiece.model",
        **changes,
    }
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, "vocabulary": vocabulary}))


def find(step: pathlib.Path, config: T5Config) -> recipes.Recipe:
    return recipes.find("C", str(step), config)


def test_a_runs_own_checkpoint(trained: pathlib.Path, config: T5Config) -> None:
    found = find(trained / "checkpoints" / "5", config)
    assert (found.method, found.lengths, found.input_eos) == ("channel", LENGTHS, False)
    assert found.vocab_path == str(trained / "spiece.model")
    run_file = str(trained / "run.json")
    assert found.sources == {
        "method": run_file,
        "lengths": run_file,
        "input_eos": run_file,
        "vocab_path": str(trained / "spiece.model"),
    }
    found.require(HOW)
    [line] = found.lines()
    for part in ("method channel", "256 inputs and 64 targets", "without </s>", run_file):
        assert part in line


def test_a_link_and_a_foreign_folder_are_no_checkpoints_of_a_run(
    trained: pathlib.Path, config: T5Config, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other" / "checkpoints"
    (other / "7").mkdir(parents=True)
    write_run(other.parent, config, mixture="flipped_train")
    assert find(other / "7", config).method == "flipped"
    (other / "5").symlink_to(trained / "checkpoints" / "5")
    (tmp_path / "link").symlink_to(trained / "checkpoints" / "5")
    for place in (other / "5", tmp_path / "link"):
        assert find(place, config).sources["method"] == str(trained / "run.json")
    (other / "7" / "config.json").touch()
    assert find(other / "7", config).method is None


def test_a_flipped_digit_of_a_recipe_is_found(
    trained: pathlib.Path, config: T5Config, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "export" / "recipe.json"
    file.parent.mkdir()
    text = recipes.recipe_text(find(trained / "checkpoints" / "5", config))
    file.write_text(text)
    assert find(file.parent, config).lengths == LENGTHS
    file.write_text(text.replace("256", "257"))
    with pytest.raises(UserError, match="recipe.json: not what was written there"):
        find(file.parent, config)


def test_a_copied_run_is_complete_in_itself(
    trained: pathlib.Path, config: T5Config, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(trained, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(trained)
    found = find(tmp_path / "elsewhere" / "copy" / "checkpoints" / "5", config)
    assert found.vocab_path == str(tmp_path / "elsewhere" / "copy" / "spiece.model")
    assert found.method == "channel"


@pytest.mark.parametrize("below", ["sub", "checkpoints/5/sub", "sub/deeper", "checkpoints/sub"])
def test_weights_below_another_run_do_not_take_its_recipe(
    trained: pathlib.Path, config: T5Config, below: str, small_vocab_path: str
) -> None:
    own = trained / below
    (own / "checkpoints" / "0").mkdir(parents=True)
    for place in (own / "checkpoints" / "0", own):
        found = find(place, config)
        assert found == recipes.Recipe("C")
    shutil.copyfile(small_vocab_path, own / "spiece.model")
    found = find(own / "checkpoints" / "0", config)
    assert (found.method, found.lengths, found.input_eos) == (None, None, None)
    assert found.vocab_path == str(own / "spiece.model")
    with pytest.raises(
        UserError, match="does not record its method, lengths, end of inputs"
    ) as error:
        found.require(HOW)
    assert "--method --lengths --input_eos" in str(error.value) and "\n" not in str(error.value)


def test_a_run_file_of_another_model_is_not_used(trained: pathlib.Path, config: T5Config) -> None:
    found = find(trained / "checkpoints" / "5", config.replace(emb_dim=32))
    assert (found.method, found.run) == (None, {})
    assert found.vocab_path == str(trained / "spiece.model")
    with pytest.raises(
        UserError, match="run.json is not used: its model has emb_dim 16, the checkpoint 32"
    ):
        found.require(HOW)
    # How a model is computed is no other model.
    assert find(trained / "checkpoints" / "5", config.replace(remat="full")).method == "channel"


def test_a_vocabulary_beside_the_weights_comes_first(
    trained: pathlib.Path, config: T5Config, t5_vocab_path: str
) -> None:
    beside = trained / "checkpoints" / "5" / "spiece.model"
    shutil.copyfile(t5_vocab_path, beside)
    found = find(trained / "checkpoints" / "5", config)
    assert found.vocab_path == str(beside) and found.method is None
    assert found.notes == (
        f"{trained / 'run.json'} is not used: its vocabulary is another than {beside}",
    )


def test_run_files_of_older_versions_name_the_vocabulary_by_its_path(
    trained: pathlib.Path, config: T5Config, small_vocab_path: str, t5_vocab_path: str
) -> None:
    (trained / "spiece.model").unlink()
    write_run(trained, config, vocab_path=small_vocab_path)
    found = find(trained / "checkpoints" / "5", config)
    assert found.vocab_path == small_vocab_path and found.method == "channel"
    write_run(trained, config, vocab_path=t5_vocab_path)
    found = find(trained / "checkpoints" / "5", config)
    assert found.vocab_path is None and "its vocabulary has 32100 ids" in found.notes[0]
    write_run(trained, config, vocab_path="gone.model")
    found = find(trained / "checkpoints" / "5", config)
    assert found.vocab_path is None and found.method == "channel"


def test_what_the_user_gives_comes_first_and_is_named(
    trained: pathlib.Path, config: T5Config, small_vocab_path: str, t5_vocab_path: str
) -> None:
    recorded = find(trained / "checkpoints" / "5", config)
    given = recorded.given(
        method="flipped", lengths=None, input_eos=True, vocab_path=small_vocab_path
    )
    assert (given.method, given.lengths, given.input_eos) == ("flipped", LENGTHS, True)
    assert given.sources["method"] == given.sources["vocab_path"] == "given"
    with pytest.raises(UserError, match="was trained with .* is another vocabulary"):
        recorded.given(vocab_path=t5_vocab_path)
    with pytest.raises(UserError, match="expected a SentencePiece model file"):
        recorded.given(vocab_path="gone.model")


def test_the_recipe_of_an_export(
    trained: pathlib.Path, config: T5Config, tmp_path: pathlib.Path, t5_vocab_path: str
) -> None:
    out = tmp_path / "export"
    out.mkdir()
    recorded = find(trained / "checkpoints" / "5", config)
    (out / "recipe.json").write_text(recipes.recipe_text(recorded))
    found = find(out, config)
    assert (found.method, found.lengths, found.input_eos) == ("channel", LENGTHS, False)
    assert found.vocab_path is None
    shutil.copyfile(trained / "spiece.model", out / "spiece.model")
    assert find(out, config).vocab_path == str(out / "spiece.model")
    shutil.copyfile(t5_vocab_path, out / "spiece.model")
    with pytest.raises(UserError, match="is not the vocabulary that .*recipe.json records"):
        find(out, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "recipe.json"),
        ("[]", "recipe.json"),
        ("{}", "recipe.json: expected the field 'format', which is missing"),
        ('{"format": 9}', "recipe.json: format: expected a whole number"),
        ('{"format": 1, "method": "fliped"}', "method: expected .*; nearest: 'flipped'"),
        ('{"format": 1, "lengths": 5}', "lengths: expected {'inputs': …"),
        ('{"format": 1, "input_eos": "no"}', "input_eos: expected True or False or None, got 'no'"),
        ('{"format": 1, "eos": true}', "unknown field 'eos'"),
    ],
)
def test_a_damaged_recipe_is_one_line(
    tmp_path: pathlib.Path, config: T5Config, content: str, message: str
) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        find(tmp_path, config)
    assert "\n" not in str(error.value)
