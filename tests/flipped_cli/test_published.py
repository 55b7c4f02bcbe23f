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

import jax
import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from flipped_tasks.tokens import Vocabulary
from t5_engine import huggingface
from t5_engine.config import T5Config
from t5_engine.model import init_params
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
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(seed))
    arrays = huggingface.to_state_dict(config, params)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
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
        made_up = [*words[1:at], *words[at + 2 :], "--max_examples", "2"]  # rows of the world
        done = flipped(*made_up)
        assert done.exit_code == 0, done.stderr
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    rows = [row for row in results["rows"] if row["label"]]
    assert {row["label"] for row in rows} == {"DIRECT-3B", "FLIPPED-3B", "T0-3B"}
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


def test_the_documented_commands_reach_the_download(server: hub_server.Hub) -> None:
    """With the sizes of the 3B models, of which only the tensors are missing here."""
    ...
