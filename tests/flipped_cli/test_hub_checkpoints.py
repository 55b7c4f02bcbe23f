"""`hf://OWNER/NAME` wherever a checkpoint is named, with the hub's own client and a server on loopback."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from flipped_cli import gin_config, provenance, training
from flipped_cli.main import main
from flipped_cli.runs import TrainRun
from flipped_core.errors import UserError
from flipped_tasks.tokens import Vocabulary
from t5_engine import exchange, huggingface
from t5_engine.config import T5Config
from t5_engine.model import init_params
from tests import hub_server

torch = pytest.importorskip("torch", reason="PyTorch is not installed (a test dependency only)")
pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")

NAME = "hf://someone/direct_3B"
RTE = "super_glue/rte:MNLI crowdsource"
# The fields of bigscience/T0_3B's config.json beside the sizes.
T0 = {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def config(small_vocab_path: str) -> T5Config:
    return T5Config(
        vocab_size=Vocabulary.from_file(small_vocab_path).size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(config: T5Config) -> Any:
    return jax.jit(lambda key: init_params(config, key))(jax.random.key(3))


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory, config: T5Config, params: Any, small_vocab_path: str
) -> pathlib.Path:
    """A folder as those of 2022: `pytorch_model.bin` whose three embeddings share a storage."""
    folder = tmp_path_factory.mktemp("published") / "direct_3B"
    folder.mkdir()
    fields = {**T0, **{k: v for k, v in huggingface.config_fields(config).items() if k not in T0}}
    (folder / "config.json").write_text(json.dumps(fields))
    shutil.copy(small_vocab_path, folder / "spiece.model")
    state = {
        name: torch.from_numpy(array)
        for name, array in huggingface.to_state_dict(config, params).items()
    }
    for name in huggingface.COPIES:
        state[name] = state["shared.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "README.md").write_text("never asked for")
    return folder


# What such a repository does not record.
ASKED = ("--inputs_length", "512", "--targets_length", "128", "--eos")


@pytest.fixture
def server(
    published: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> Iterator[hub_server.Hub]:
    with hub_server.running() as running:
        running.repositories["someone/direct_3B"] = {"main": published}
        hub_server.use(running, monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture
def pinned(published: pathlib.Path) -> str:
    return f"{NAME}@{hub_server.commit_of(published)}"


def run(*words: Any) -> Any:
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def ok(*words: Any) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def mistake(*words: Any) -> str:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def no_network(server: hub_server.Hub) -> None:
    server.requests.clear()
    server.repositories.clear()


def test_ckpt_commands(
    server: hub_server.Hub,
    published: pathlib.Path,
    pinned: str,
    params: Any,
    tmp_path: pathlib.Path,
):
    told = ok("ckpt", "info", NAME)
    assert f"path: {pinned}\n" in told and "layout: hf\n" in told and "spiece.model: " in told
    assert sorted(server.downloaded()) == ["config.json", "pytorch_model.bin", "spiece.model"]
    no_network(server)  # all else from the cache
    ok("ckpt", "import", "--from", "hf", NAME, tmp_path / "ours", "--offline")
    jax.tree.map(np.testing.assert_array_equal, exchange.load(tmp_path / "ours")[0], params)
    assert json.loads((tmp_path / "ours" / "origin.json").read_text())["source"] == pinned
    assert (tmp_path / "ours" / "spiece.model").exists()
    ok("ckpt", "export", "--to", "hf", NAME, tmp_path / "exported", "--offline")
    assert json.loads((tmp_path / "exported" / "origin.json").read_text())["source"] == pinned
    ok("ckpt", "export", "--to", "t5x", NAME, tmp_path / "t5x", "--offline")
    assert "whole and finite; files as in the hub's SHA-256" in ok(
        "ckpt", "verify", NAME, "--offline"
    )
    ok("ckpt", "cp", NAME, tmp_path / "copy", "--offline")
    for name in ("pytorch_model.bin", "config.json", "spiece.model"):
        assert (tmp_path / "copy" / name).read_bytes() == (published / name).read_bytes()
    names = {file.name for file in (tmp_path / "copy").iterdir()}
    assert names == {
        "pytorch_model.bin",
        "config.json",
        "spiece.model",
        "origin.json",
        "manifest.json",
    }
    assert "files as in manifest.json" in ok("ckpt", "verify", tmp_path / "copy")
    assert not server.requests
    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.stat().st_size > 10**4
               and path.read_bytes() == (published / "pytorch_model.bin").read_bytes())  # fmt: skip
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    assert "1 files are not as they were written" in mistake("ckpt", "verify", NAME, "--offline")


def test_score_and_generate(server: hub_server.Hub):
    words = (
        "--checkpoint",
        NAME,
        "--method",
        "direct",
        "--input",
        "The plot never arrives.",
        *ASKED,
    )
    template = ("--template", "Review: {{input}} Good or bad?")
    scored = json.loads(ok("score", *words, *template, "--choices", "bad", "good"))
    assert len(scored["logprobs"]) == 2
    no_network(server)
    again = ok("score", *words, *template, "--vocab", NAME, "--offline", "--choices", "bad", "good")
    assert json.loads(again) == scored
    assert "text" in json.loads(ok("generate", *words, *template, "--max_tokens", 3, "--offline"))
    assert not server.requests


def test_eval_records_the_commit(server: hub_server.Hub, pinned: str, tmp_path: pathlib.Path):
    words = (
        "eval",
        "--checkpoint",
        NAME,
        "--method",
        "direct",
        "--suite",
        RTE,
        "--max_examples",
        2,
        *ASKED,
    )
    ok(*words, "--output", tmp_path / "out")
    run_file = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run_file["checkpoints"] == {"direct": pinned}
    no_network(server)
    ok(*words, "--output", tmp_path / "again", "--offline")
    results = [(tmp_path / name / "results.json").read_bytes() for name in ("out", "again")]
    assert results[0] == results[1]
    ok("report", tmp_path / "out")
    assert not server.requests
    local = (tmp_path / "cache" / "models--someone--direct_3B" / "snapshots").iterdir()
    ok(
        *words[:2], *local, *words[3:], "--output", tmp_path / "folder"
    )  # the vocabulary in a folder, too
    assert (tmp_path / "folder" / "results.json").read_bytes() == results[0]


def train(folder: pathlib.Path, config: T5Config, **changes: Any) -> Any:
    values = {
        "MODEL_DIR": str(folder),
        "VOCAB_PATH": NAME,
        "INITIAL_CHECKPOINT_PATH": NAME,
        "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 8},
        "MIXTURE_OR_TASK_NAME": "direct.imdb",
        "BATCH_SIZE": 4,
        **{f"T5Config.{name}": getattr(config, name) for name in (
            "vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers", "num_decoder_layers"
        )},
        **changes,
    }  # fmt: skip
    files = ("gin/models/tiny.gin", "gin/recipes/direct.gin", "gin/runs/train.gin")
    bindings = tuple((name, repr(value)) for name, value in values.items())
    gin_config.load(gin_config.Arguments(files, bindings), TrainRun)
    return training.train(gin_config.make(TrainRun), gin_config.operative())


def test_training_starts_from_a_repository_and_keeps_its_commit(
    server: hub_server.Hub,
    published: pathlib.Path,
    pinned: str,
    config: T5Config,
    tmp_path: pathlib.Path,
):
    with pytest.raises(
        UserError, match=f"{pinned} is of another model: emb_dim is 16 there and 32"
    ):
        train(tmp_path / "other", config, TRAIN_STEPS=1, **{"T5Config.emb_dim": 32})
    assert "pytorch_model.bin" not in server.downloaded() and not (tmp_path / "other").exists()
    train(tmp_path / "run", config, TRAIN_STEPS=1)
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert recipe["initial_checkpoint_path"] == pinned and recipe["vocab_path"] == "spiece.model"
    assert provenance.read_recipe(str(tmp_path / "run"))["vocab_path"] == pinned
    moved = tmp_path / "moved"
    shutil.copytree(published, moved)
    server.repositories["someone/direct_3B"] = {"main": moved, "old": published}
    assert int(train(tmp_path / "run", config, TRAIN_STEPS=2).step) == 2
    again = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert again["initial_checkpoint_path"] == pinned


def test_the_preferred_form_of_several(
    server: hub_server.Hub, published: pathlib.Path, tmp_path: pathlib.Path
):
    """safetensors where there are both; several files by their index."""
    from safetensors.numpy import save_file

    from t5_engine.torch_files import TorchFile

    both, parts = tmp_path / "both", tmp_path / "parts"
    for folder in (both, parts):
        shutil.copytree(published, folder)
    file = TorchFile(published / "pytorch_model.bin")
    save_file({name: np.array(file[name]) for name in file}, both / "model.safetensors")
    (parts / "pytorch_model.bin").unlink()
    names = list(file)
    files = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for part, held in files.items():
        torch.save({name: torch.from_numpy(np.array(file[name])) for name in held}, parts / part)
    places = {name: part for part, held in files.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (parts / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    server.repositories["someone/direct_3B"] = {"main": published, "both": both, "parts": parts}
    loaded = [exchange.load(f"{NAME}@{revision}")[0] for revision in ("main", "both", "parts")]
    for one in loaded[1:]:
        jax.tree.map(np.testing.assert_array_equal, one, loaded[0])
    downloaded = server.downloaded()
    assert downloaded.count("pytorch_model.bin") == 1 and downloaded.count("model.safetensors") == 1
    assert {*files} <= {*downloaded}
    assert "whole and finite" in ok("ckpt", "verify", f"{NAME}@parts")
    ok("ckpt", "cp", f"{NAME}@parts", tmp_path / "copy")
    assert "whole and finite" in ok("ckpt", "verify", tmp_path / "copy")


def test_mistakes_are_one_line_and_leave_nothing(
    server: hub_server.Hub, published: pathlib.Path, tmp_path: pathlib.Path
):
    out = tmp_path / "out"
    other = tmp_path / "other"
    shutil.copytree(published, other)
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "model_type": "mt5"}))
    server.repositories["someone/mt5"] = {"main": other}
    told = mistake("ckpt", "import", "--from", "hf", "hf://someone/mt5", out)
    assert "config.json: model_type: expected 't5', as T5 v1.1 has it, got 'mt5'" in told
    told = mistake("ckpt", "import", "--from", "hf", "--model", "xl", NAME, out)
    assert "is of another model: " in told and "emb_dim is 16 there and 2048 here" in told
    assert not [name for name in server.downloaded() if name.endswith(".bin")]
    evaluation = ("--method", "direct", "--suite", RTE, "--output", out)
    for words in (
        ("ckpt", "info"),
        ("ckpt", "verify"),
        ("ckpt", "import", "--from", "hf", out),
        ("eval", *evaluation, "--checkpoint"),
        ("score", "--input", "x", "--choices", "a", "b", "--checkpoint"),
        ("generate", "--input", "x", "--checkpoint"),
    ):
        names = [word for word in words if word != out or words[0] == "eval"]
        last = [out] if words[1] == "import" else []
        told = mistake(*names, "hf://someone/none", *last)
        assert "no repository someone/none on the hub" in told, words
        assert "expected hf://OWNER/NAME" in mistake(*names, "hf://t5-small", *last), words
    assert "from the hub" not in told and not out.exists()
    told = mistake("ckpt", "export", "--to", "hf", f"{NAME}@v2", out)
    assert "revision: expected a branch, tag or commit of someone/direct_3B, got 'v2'" in told
