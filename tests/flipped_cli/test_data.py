"""`flipped data prepare|list|verify`, and that nothing of a prepared dataset needs a network."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flipped_cli import offline
from flipped_cli.main import main


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["data", *words], catch_exceptions=False)


def write(folder: pathlib.Path, dataset: str, rows: list[Any]) -> str:
    place = folder / dataset.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{folder}"


def reviews(count: int, unlabelled: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"review {n}", "label": -1 if n < unlabelled else n % 2} for n in range(count)]


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of `--offline` do not outlive a test."""
    for name in offline.SETTINGS:
        monkeypatch.setenv(name, "")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any socket is an error."""

    def refuse(*args: Any, **how: Any) -> Any:
        raise AssertionError(f"a socket was opened: {args}")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_prepare_list_and_verify(tmp_path) -> None:
    source, out = write(tmp_path / "files", "imdb", reviews(40, 4)), str(tmp_path / "out")
    write(tmp_path / "files", "rotten_tomatoes", reviews(8))
    words = ("prepare", "imdb", "rotten_tomatoes", "--from", source, "--data_dir", out)
    result = call(*words)
    assert result.exit_code == 0 and not result.stderr
    assert "imdb: train 36; stored in" in result.stdout
    assert "train: warning, 10%: 4 of 40 rows dropped: unlabelled" in result.stdout
    assert "imdb: train 36; is already in" in call(*words).stdout
    listed = call("list", "--data_dir", out).stdout
    assert "2 prepared datasets" in listed and "train 36 of 25,000" in listed
    lines = call("list", "--data_dir", out, "--json").stdout.splitlines()
    assert [json.loads(line)["dataset"] for line in lines] == ["imdb", "rotten_tomatoes"]
    assert call("verify", "--data_dir", out).exit_code == 0
    (shard,) = (tmp_path / "out").rglob("imdb-train.tfrecord*")
    shard.write_bytes(b"")
    result = call("verify", "--data_dir", out)
    assert result.exit_code == 1 and "rotten_tomatoes: good" in result.stdout
    assert "1 of 2 datasets are damaged" in result.stdout


def test_one_bad_dataset_does_not_stop_the_others(tmp_path) -> None:
    source, out = write(tmp_path / "files", "imdb", reviews(8)), str(tmp_path / "out")
    write(tmp_path / "files", "dream", [{"id": 1}])
    result = call("prepare", "dream", "imdb", "--from", source, "--data_dir", out)
    assert result.exit_code == 2 and "imdb: train 8; stored" in result.stdout
    assert "missing column 'dialogue_id'" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: 1 of 2 datasets not prepared: dream"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prepare", "imbd", "--from", "embedded"], "unknown dataset 'imbd'; nearest: 'imdb'"),
        (["prepare", "imdb", "--from", "embeded"], "unknown source 'embeded'; nearest: 'embedded'"),
        (["prepare", "imdb", "--from", "embedded", "--revision", "x"], "revision: expected none"),
        (["prepare", "bigbench/winowhy", "--from", "hub"], "is not on the hub"),
        (["prepare", "imdb", "--from", "hub", "--offline"], "offline: dataset 'imdb' is not prepared"),
        (["prepare", "imdb"], "Missing option '--from'"),
        (["verify"], "expected a folder, there is none"),
        (["list"], "expected a folder, there is none"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_code_2(tmp_path, words, expected) -> None:
    result = call(*words, "--data_dir", str(tmp_path / "none"))
    assert result.exit_code == 2 and not result.stdout
    assert expected in result.stderr and len(result.stderr.splitlines()) == 1


def test_names_of_groups_are_resolved() -> None:
    from flipped_cli.data import _expand

    assert len(_expand(["training"])) == 20 and len(_expand(["nlp14"])) == 12
    assert len(_expand(["bigbench14", "bigbench/logical_deduction", "imdb"])) == 22
    assert len(_expand(["bigbench/logical_deduction"])) == 3


def test_offline_opens_no_socket(tmp_path, no_network, t5_vocab_path) -> None:
    """Preparing, checking and reading batches of the three methods, with every socket refused."""
    from flipped_tasks import batches
    from flipped_tasks.seqio_tasks import register_task

    source, out = write(tmp_path / "files", "imdb", reviews(40)), str(tmp_path / "out")
    words = ("--data_dir", out, "--offline")
    assert call("prepare", "imdb", "--from", source, *words).exit_code == 0
    assert call("list", *words).exit_code == 0 and call("verify", *words).exit_code == 0
    for method in ("direct", "channel", "flipped"):
        task = register_task("imdb", method, None, out, t5_vocab_path)
        batch = next(batches.batches(task.name, {"inputs": 64, "targets": 32}, 8, seed=0))
        assert batch["encoder_input_tokens"].shape == (8, 64)


def test_what_came_from_the_hub_is_there_offline(tmp_path, monkeypatch, no_network) -> None:
    import pyarrow
    import pyarrow.parquet

    from flipped_tasks.prepared import hub

    datasets = pytest.importorskip("datasets")
    table = pyarrow.Table.from_pylist(reviews(4))
    pyarrow.parquet.write_table(table, tmp_path / "0000.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ["plain_text/train/0000.parquet"]
    monkeypatch.setattr(hub, "list_files", lambda hub_id, revision: ("ab" * 20, names))
    monkeypatch.setattr(hub, "file_url", lambda *names: str(tmp_path / "0000.parquet"))
    words = ("prepare", "imdb", "--from", "hub", "--data_dir", str(tmp_path / "out"))
    assert "stored in" in call(*words).stdout

    def asked(*args: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "list_files", asked)
    assert "is already in" in call(*words, "--offline").stdout
    result = call(*words, "--offline", "--revision", "cd" * 20)
    assert result.exit_code == 2 and "offline:" in result.stderr


def test_a_hub_without_a_network_is_one_line(tmp_path, monkeypatch) -> None:
    hub_client = pytest.importorskip("huggingface_hub")

    def no_route(*args: Any, **how: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub_client.HfApi, "dataset_info", no_route)
    result = call("prepare", "imdb", "--from", "hub", "--data_dir", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: hub: cannot list stanfordnlp/imdb at refs/convert/")


def test_train_and_eval_know_offline() -> None:
    from flipped_cli import gin_config

    found = gin_config.parse_arguments(["--offline", "--gin_file=x.gin"], "")
    assert found.gin_files == ("x.gin",)
    assert all(os.environ[name] == value for name, value in offline.SETTINGS.items())
