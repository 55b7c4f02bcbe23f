"""`flipped ckpt`: each command on a small model, and one clear line for each mistake."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from flipped_cli.main import main
from flipped_tasks.tokens import Vocabulary
from t5_engine import checkpoints, checksums, config, exchange, manifest
from t5_engine.model import init_params


def run(*words: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `flipped ckpt …`."""
    result = CliRunner().invoke(main, ["ckpt", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def ok(*words: Any) -> str:
    code, out, err = run(*words)
    assert code == 0, err
    return out


def mistake(*words: Any) -> str:
    """The one line that a mistake is told in."""
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    return err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_vocab_path: str) -> pathlib.Path:
    """`init`'s checkpoint."""
    out = tmp_path_factory.mktemp("ckpt") / "made"
    told = ok("init", "--model", "tiny", "--vocab", small_vocab_path, "--seed", 4, out)
    assert "tiny" in told and "seed 4" in told
    return out


def test_init_draws_the_parameters_of_the_seed(made: pathlib.Path, small_vocab_path: str):
    import jax

    params, found, step = checkpoints.load(made)
    rows = Vocabulary.from_file(small_vocab_path).size
    assert (found, step) == (config.size("tiny", vocab_size=rows), 0)
    drawn = jax.jit(lambda key: init_params(found, key))(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, params, drawn)
    origin = json.loads((made / "origin.json").read_text())
    assert (origin["command"], origin["model"], origin["seed"]) == ("flipped ckpt init", "tiny", 4)
    assert (made / "spiece.model").read_bytes() == pathlib.Path(small_vocab_path).read_bytes()


def test_info_tells_size_step_configuration_and_provenance(made: pathlib.Path):
    told = ok("info", made)
    for line in ("layout: flipped", "step: 0", "mlp_dim: 128", "spiece.model: "):
        assert line in told
    assert '"command": "flipped ckpt init"' in told


@pytest.mark.parametrize(
    ("kind", "settings", "layout"),
    [
        ("hf", (), "hf"),
        ("t5x", (), "t5x native"),
        ("t5x", ("--layout", "orbax"), "t5x orbax"),
        ("t5x", ("--scanned",), "t5x native, scanned"),
    ],
)
def test_there_and_back(
    made: pathlib.Path, tmp_path: pathlib.Path, kind: str, settings: tuple[str, ...], layout: str
):
    """The same bits, whatever the way; the export passes `verify` and tells its layout."""
    out, back = tmp_path / "out", tmp_path / "back"
    ok("export", "--to", kind, *settings, made, out)
    assert f"layout: {layout}\n" in ok("info", out)
    assert "whole and finite; files as in manifest.json" in ok("verify", out)
    ok("import", "--from", kind, out, back)
    ours, theirs = (exchange.load(path)[0] for path in (made, back))
    import jax

    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    if kind == "hf":
        assert (back / "spiece.model").exists()
        again = tmp_path / "again"
        ok("export", "--to", "hf", back, again)
        files = [folder / "model.safetensors" for folder in (out, again)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_dtype_of_an_export(made: pathlib.Path, tmp_path: pathlib.Path):
    ok("export", "--to", "hf", "--dtype", "bfloat16", made, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}


def test_cp_copies_one_checkpoint_with_its_provenance(made: pathlib.Path, tmp_path: pathlib.Path):
    source = tmp_path / "run"
    shutil.copytree(made, source)
    shutil.copytree(source / "checkpoints" / "0", source / "checkpoints" / "00")  # an older one
    newest = source / "checkpoints" / "7"
    shutil.move(source / "checkpoints" / "00", newest)
    about = newest / "about" / "metadata"
    about.write_text(about.read_text().replace('"step": 0', '"step": 7'))
    checksums.write(newest)
    (source / "run.json").write_text('{"recipe": {"steps": 9}}')
    (source / "metrics.jsonl").write_text("")
    ok("cp", source, tmp_path / "copy")
    files = {path.name for path in (tmp_path / "copy").iterdir()}
    assert files == {"checkpoints", "run.json", "origin.json", "spiece.model", "manifest.json"}
    assert [path.name for path in (tmp_path / "copy" / "checkpoints").iterdir()] == ["7"]
    ok("cp", source / "checkpoints" / "0", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other" / "checkpoints").iterdir()] == ["0"]
    assert (tmp_path / "other" / "run.json").exists()
    assert "files as in manifest.json and checksums.json" in ok("verify", tmp_path / "other")


def test_verify_finds_damage(made: pathlib.Path, tmp_path: pathlib.Path):
    """By the manifest, by training's own checksums; a checkpoint of ours that has none is refused."""
    listings = (manifest.FILE, "checkpoints/0/checksums.json")
    for files, found in ((listings, 2), (listings[1:], 1)):
        place = tmp_path / str(found)
        shutil.copytree(made, place)
        for file in set(listings) - set(files):
            (place / file).unlink()
        assert "whole and finite" in ok("verify", place)
        data = list((place / "checkpoints" / "0" / "params").rglob("d/*"))
        largest = max(data, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
        told = mistake("verify", place)
        assert f"{found} files are not as they were written" in told
    (place / listings[1]).unlink()
    code, out, _ = run("verify", place)
    assert code == 2 and "it has no checksums.json" in out


def test_mistakes_are_told_in_one_line(
    made: pathlib.Path, tmp_path: pathlib.Path, small_vocab_path: str
):
    out = tmp_path / "out"
    ok("export", "--to", "t5x", made, tmp_path / "t5x")
    vocab = ("--vocab", small_vocab_path)
    assert "unknown model size 'smal'; nearest: 'small'" in mistake(
        "init", "--model", "smal", *vocab, out
    )
    assert "expected a SentencePiece model file" in mistake(
        "init", "--model", "tiny", "--vocab", tmp_path / "none", out
    )
    assert "exists already" in mistake("init", "--model", "tiny", *vocab, made)
    assert "unknown layout 'fh'; nearest: 'hf'" in mistake("import", "--from", "fh", made, out)
    assert "expected config.json there" in mistake("import", "--from", "hf", made, out)
    assert "no T5X checkpoint at" in mistake("import", "--from", "t5x", made, out)
    assert "; emb_dim is 64 there and 512 here" in mistake(
        "import", "--from", "t5x", "--model", "small", tmp_path / "t5x", out
    )
    assert "--layout does not go with --to hf" in mistake(
        "export", "--to", "hf", "--layout", "orbax", made, out
    )
    assert "unknown T5X layout 'natve'; nearest: 'native'" in mistake(
        "export", "--to", "t5x", "--layout", "natve", made, out
    )
    assert "unknown dtype 'float16'" in mistake(
        "export", "--to", "hf", "--dtype", "float16", made, out
    )
    (tmp_path / "t5x" / "spiece.model").unlink()
    assert "--vocab: expected the SentencePiece model" in mistake(
        "export", "--to", "hf", tmp_path / "t5x", out
    )
    assert "there is nothing" in mistake("info", tmp_path / "none")
    assert "no checkpoint at" in mistake("verify", tmp_path)
    assert "no checkpoint at" in mistake("cp", tmp_path / "t5x", out)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t5x"]


def test_a_vocabulary_that_does_not_fit_is_refused(
    made: pathlib.Path, tmp_path: pathlib.Path, t5_vocab_path: str
):
    told = mistake("export", "--to", "hf", "--vocab", t5_vocab_path, made, tmp_path / "out")
    assert "is another vocabulary" in told
