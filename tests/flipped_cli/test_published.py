"""docs/evaluation.md's commands for the published models, with stand-ins of tiny weights laid out as those repositories
are, on a server on loopback; and other published T5 kinds, of which the configuration alone decides."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from flipped_tasks.tokens import Vocabulary
from t5_engine import huggingface
from t5_engine.config import T5Config
from tests import hub_server

torch = pytest.importorskip("torch", reason="PyTorch is not installed (a test dependency only)")
pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")

EVALUATION = pathlib.Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
# What every T5 of 2019 to 2022 has in its config.json.
COMMON = {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "use_cache": True,
}
V1_1 = {**COMMON, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FLIPPED = {
    **V1_1,
    "_name_or_path": "google/t5-xl-lm-adapt",
    "torch_dtype": "float32",
    "transformers_version": "4.19.2",
}
T0 = {
    **V1_1,
    "gradient_checkpointing": False,
    "torch_dtype": "float32",
    "transformers_version": "4.10.0.dev0",
}
MODELS = {"seonghyeonye/direct_3B": 1, "seonghyeonye/flipped_3B": 2, "bigscience/T0_3B": 3}
# Of the decoder's attention to the encoder: conversions of 2021 have it, and nothing reads it.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def commands() -> list[list[str]]:
    """The commands of the section, as their words."""
    section = EVALUATION.read_text(encoding="utf-8").split("## The published models")[1]
    [block] = re.findall(r"```bash\n(.*?)```", section.split("\n## ")[0], re.S)
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def state_dict(config: T5Config, seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    shapes = huggingface.shapes(config)
    state = {name: 0.1 * torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    for name in huggingface.COPIES:
        state[name] = state["shared.weight"]
    return state


def write_repository(
    folder: pathlib.Path, fields: Mapping[str, Any], config: T5Config, seed: int, vocabulary: str
) -> None:
    folder.mkdir()
    sizes = {k: v for k, v in huggingface.config_fields(config).items() if k not in COMMON}
    sizes.pop("relative_attention_max_distance")  # younger than these files
    (folder / "config.json").write_text(json.dumps({**sizes, **fields}))
    shutil.copy(vocabulary, folder / "spiece.model")
    extra = [f"<extra_id_{n}>" for n in range(100)]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = {**special, "extra_ids": 100, "model_max_length": 512}
    (folder / "special_tokens_map.json").write_text(
        json.dumps({**special, "additional_special_tokens": extra})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    state = state_dict(config, seed)
    if fields is not T0:
        torch.save(state, folder / "pytorch_model.bin")
        return
    state[UNUSED] = torch.zeros(32, config.num_heads)
    names = sorted(state)
    places = {}
    for part in range(2):
        file = f"pytorch_model-{part + 1:05d}-of-00002.bin"
        torch.save({name: state[name] for name in names[part::2]}, folder / file)
        places |= dict.fromkeys(names[part::2], file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def repositories(
    tmp_path_factory: pytest.TempPathFactory, small_vocab_path: str
) -> dict[str, dict[str, pathlib.Path]]:
    config = T5Config(
        vocab_size=Vocabulary.from_file(small_vocab_path).size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("hub")
    found = {}
    for name, seed in MODELS.items():
        folder = root / name.replace("/", "--")
        fields = T0 if name.startswith("bigscience") else FLIPPED
        write_repository(folder, fields, config, seed, small_vocab_path)
        found[name] = {"main": folder}
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[hub_server.Hub]:
    with hub_server.running() as running:
        hub_server.use(running, monkeypatch, tmp_path / "cache")
        monkeypatch.chdir(tmp_path)
        yield running


def flipped(*words: str) -> Any:
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def mistake(*words: str) -> str:
    result = flipped(*words)
    assert result.exit_code == 2, result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.slow
def test_the_documented_commands_give_results_and_a_report(
    server: hub_server.Hub, repositories: dict[str, dict[str, pathlib.Path]], tmp_path: pathlib.Path
) -> None:
    server.repositories |= repositories
    prepare, *evaluations, report = commands()
    assert prepare[:3] == ["flipped", "data", "prepare"]
    assert [words[1] for words in evaluations] == ["eval"] * 3 and report[1] == "report"
    for words in evaluations:
        at = words.index("--data_dir")
        made_up = [*words[1:at], *words[at + 2 :], "--max_examples", "1"]  # rows of the world
        done = flipped(*made_up)
        assert done.exit_code == 0, done.stderr
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    found = {(row["method"], row["form"], row["task"]) for row in results["results"]}
    tasks = {task for *_, task in found if task}
    assert len(tasks) == 13 and "story_cloze" not in str(tasks)
    for run in (("DIRECT-3B", "direct"), ("FLIPPED-3B", "flipped"), ("T0-3B", "direct")):
        assert {(*run, task) for task in tasks} <= found
    assert [run["input_eos"] for run in results["runs"]] == [True, True, False]
    asked = json.loads((tmp_path / "results" / "run.json").read_text())["checkpoints"]
    assert set(asked.values()) == {
        f"hf://{name}@{hub_server.commit_of(folders['main'])}"
        for name, folders in repositories.items()
    }
    assert flipped(*report[1:]).exit_code == 0
    page = (tmp_path / "results" / "report.md").read_text()
    assert all(label in page for label in ("DIRECT-3B", "FLIPPED-3B", "T0-3B"))
    assert server.downloaded().count("pytorch_model.bin") == 2
    assert "README.md" not in server.downloaded()


def test_the_documented_commands_reach_the_download(
    server: hub_server.Hub,
    repositories: dict[str, dict[str, pathlib.Path]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the sizes of the 3B models; there is no room for their tensors here, which are not asked for."""
    xl = T5Config(
        vocab_size=32128, emb_dim=2048, num_heads=32, head_dim=64, mlp_dim=5120, num_encoder_layers=24,
        num_decoder_layers=24,
    )  # fmt: skip
    size = 4 * 2_849_757_184
    for name, folders in repositories.items():
        folder = tmp_path / name.replace("/", "--")
        shutil.copytree(folders["main"], folder)
        fields = json.loads((folder / "config.json").read_text())
        sizes = {k: v for k, v in huggingface.config_fields(xl).items() if k not in COMMON}
        (folder / "config.json").write_text(json.dumps({**fields, **sizes}))
        server.repositories[name] = {"main": folder}
    server.declared["pytorch_model.bin"] = size
    for part in (1, 2):
        server.declared[f"pytorch_model-{part:05d}-of-00002.bin"] = size // 2
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 2**30))
    _, *evaluations, _ = commands()
    for words in evaluations:
        at = words.index("--data_dir")
        told = mistake(*words[1:at], *words[at + 2 :], "--max_examples", "1")
        name = words[words.index("--checkpoint") + 1]
        assert told.startswith(f"error: {name}@")
        assert "expected 10.6 GiB free in" in told and "got 5.0 GiB; HF_HOME names another" in told
    assert not [name for name in server.downloaded() if name.endswith(".bin")]
    assert not (tmp_path / "results").exists()


def test_the_accuracies_are_the_published_ones(shared_dir: pathlib.Path) -> None:
    """docs/evaluation.md's table, and its mean."""
    published = json.loads((shared_dir / "data" / "published.json").read_text())
    text = EVALUATION.read_text(encoding="utf-8")
    for model in ("T0-3B", "FLIPPED-3B"):
        [line] = re.findall(rf"^\| {model} \|(.*)\|$", text, re.M)
        expected = [*published["models"][model], published["means"][model]]
        assert [float(cell) for cell in line.split("|")] == expected


# The fields of other published T5s that matter here, and the one that is named; None is a model that opens.
OTHERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "google/flan-t5-small": (
        {
            **V1_1, "d_ff": 1024, "d_kv": 64, "d_model": 512, "n_positions": 512, "num_decoder_layers": 8,
            "num_heads": 6, "num_layers": 8, "relative_attention_max_distance": 128, "transformers_version": "4.23.1",
            "vocab_size": 32128,
        },
        None,
    ),
    "google-t5/t5-small": (
        {
            **COMMON, "d_ff": 2048, "d_kv": 64, "d_model": 512, "n_positions": 512, "num_heads": 8, "num_layers": 6,
            "task_specific_params": {"summarization": {"prefix": "summarize: "}}, "vocab_size": 32128,
        },
        "feed_forward_proj: expected 'gated-gelu', as T5 v1.1 has it, got 'relu'",
    ),
    "google/mt5-small": (
        {
            **V1_1, "architectures": ["MT5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
            "model_type": "mt5", "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8,
            "tokenizer_class": "T5Tokenizer", "vocab_size": 250112,
        },
        "model_type: expected 't5', as T5 v1.1 has it, got 'mt5'",
    ),
    "google/byt5-small": (
        {
            **V1_1, "d_ff": 3584, "d_kv": 64, "d_model": 1472, "num_decoder_layers": 4, "num_heads": 6,
            "num_layers": 12, "tokenizer_class": "ByT5Tokenizer", "vocab_size": 384,
        },
        "tokenizer_class: expected 'T5Tokenizer', as T5 v1.1 has it, got 'ByT5Tokenizer'",
    ),
    "google/ul2": (
        {
            **V1_1, "d_ff": 16384, "d_kv": 256, "d_model": 4096, "dropout_rate": 0.0, "feed_forward_proj": "gated-silu",
            "num_decoder_layers": 32, "num_heads": 16, "num_layers": 32, "vocab_size": 32128,
        },
        "feed_forward_proj: expected 'gated-gelu', as T5 v1.1 has it, got 'gated-silu'",
    ),
    "google/t5gemma-s-s-ul2": (
        {
            "architectures": ["T5GemmaForConditionalGeneration"], "is_encoder_decoder": True,
            "decoder": {"hidden_size": 512, "model_type": "t5_gemma_module"},
            "encoder": {"hidden_size": 512, "model_type": "t5_gemma_module"},
            "model_type": "t5gemma", "vocab_size": 256000,
        },
        "model_type: expected 't5', as T5 v1.1 has it, got 't5gemma'",
    ),
    "google/umt5-small": (
        {**V1_1, "architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5", "vocab_size": 256384},
        "model_type: expected 't5', as T5 v1.1 has it, got 'umt5'",
    ),
    "google/long-t5-local-base": (
        {**V1_1, "model_type": "longt5", "encoder_attention_type": "local", "vocab_size": 32128},
        "model_type: expected 't5', as T5 v1.1 has it, got 'longt5'",
    ),
    "google/switch-base-8": (
        {**V1_1, "model_type": "switch_transformers", "num_experts": 8, "vocab_size": 32128},
        "model_type: expected 't5', as T5 v1.1 has it, got 'switch_transformers'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_published_models(
    name: str, server: hub_server.Hub, tmp_path: pathlib.Path, small_vocab_path: str
) -> None:
    """Those of another architecture are refused by the field that differs, before their tensors are asked for."""
    fields, refused = OTHERS[name]
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    shutil.copy(small_vocab_path, folder / "spiece.model")
    server.repositories[name] = {"main": folder}
    out = str(tmp_path / "out")
    if refused is not None:
        for words in (
            ("info",),
            ("verify",),
            ("import", "--from", "hf"),
            ("export", "--to", "t5x"),
        ):
            last = [out] if words[0] in ("import", "export") else []
            told = mistake("ckpt", *words, f"hf://{name}", *last)
            assert f"config.json: {refused}" in told, told
            assert told == mistake("ckpt", *words, str(folder), *last).replace(
                str(folder / "config.json"),
                f"hf://{name}@{hub_server.commit_of(folder)}: config.json",
            )
        assert not [file for file in server.downloaded() if file.endswith(("bin", "safetensors"))]
        assert not (tmp_path / "out").exists()
        return
    config = huggingface.config_from_fields(fields, "config.json").replace(
        emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
    )
    tiny = {**fields, **huggingface.config_fields(config)}
    (folder / "config.json").write_text(json.dumps(tiny))
    torch.save(state_dict(config, 0), folder / "pytorch_model.bin")
    assert "layout: hf" in flipped("ckpt", "info", f"hf://{name}").stdout
    assert "whole and finite" in flipped("ckpt", "verify", f"hf://{name}").stdout
