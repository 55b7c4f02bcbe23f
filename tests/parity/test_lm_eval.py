"""Stock lm-evaluation-harness gives our predictions and log-probabilities on exported tasks and checkpoints.

The harness is no requirement of ours: it is looked for in this Python, or in the one that FLIPPED_LM_EVAL_PYTHON
names, such as that of a virtual environment with `pip install 'lm-eval[hf]'`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from flipped_cli import tokenizer_files
from flipped_cli.main import main
from flipped_core.paths import to_path
from flipped_eval import shards
from flipped_eval.lm_eval_tasks import tokenizer_ids
from flipped_tasks.tokens import Vocabulary

VARIABLE = "FLIPPED_LM_EVAL_PYTHON"
METHODS = ("direct", "channel", "flipped")
# Two, three, four and five choices; ARC's prompts of random order draw from the seed.
CHOSEN = (
    "super_glue/rte:GPT-3 style",
    "super_glue/cb:MNLI crowdsource",
    "hellaswag:Randomized prompts template",
    "commonsense_qa:most_suitable_answer",
)
LENGTHS = ("64", "24")  # some inputs and targets are truncated
EXAMPLES = 5


def call(*words: str) -> Any:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def harness() -> str:
    """The Python that has lm-eval."""
    python = os.environ.get(VARIABLE, sys.executable)
    found = subprocess.run(
        [python, "-c", "import lm_eval.models.huggingface"], capture_output=True, text=True
    )
    if found.returncode:
        why = found.stderr.strip().splitlines()[-1]
        pytest.skip(f"{python} has no lm-eval ({why}); name one that has it in {VARIABLE}")
    return python


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, t5_vocab_path: str) -> pathlib.Path:
    """A random tiny model with T5's vocabulary, as a Hugging Face folder."""
    import jax

    from t5_engine import checkpoints, model
    from t5_engine.config import T5Config

    folder = tmp_path_factory.mktemp("checkpoint")
    config = T5Config(
        vocab_size=Vocabulary.from_file(t5_vocab_path).size, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=32,
        num_encoder_layers=2, num_decoder_layers=2,
    )  # fmt: skip
    params = jax.jit(lambda key: model.init_params(config, key))(jax.random.key(5))
    saved = checkpoints.Checkpoints(folder / "run")
    saved.save(3, params, {"count": np.zeros(())}, config, "none")
    saved.close()
    exported = folder / "hf"
    call("ckpt", "export", folder / "run", exported, "--to", "hf", "--vocab", t5_vocab_path)
    return exported


def our_scores(output: pathlib.Path) -> dict[tuple[str, str, str, str], list[float]]:
    """(method, dataset, template, example) -> log-probabilities of its choices."""
    units = shards.read(to_path(output)).units
    found = {}
    for planned in json.loads((output / "plan.json").read_text())["units"]:
        for example, score in units[planned["key"]].scores.items():
            key = (planned["method"], planned["dataset"], planned["template"], example)
            found[key] = list(score.logprobs)
    return found


def their_scores(
    tasks: pathlib.Path, output: pathlib.Path
) -> dict[tuple[str, str, str, str], tuple[list[float], float]]:
    """The same keys -> (log-probabilities, accuracy) in the samples that lm-eval logs."""
    import yaml

    found = {}
    for file in output.rglob("samples_*.jsonl"):
        name = file.stem.removeprefix("samples_").rsplit("_", 1)[0]
        about = yaml.safe_load((tasks / f"{name}.yaml").read_text())["metadata"]
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            logprobs = [float(answer[0]) for answer in sample["filtered_resps"]]
            key = about["method"], about["dataset"], about["template"], sample["doc"]["example"]
            found[key] = logprobs, sample["acc"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("eos", ["--eos", "--no_eos"])
def test_stock_harness_confirms_our_scores(
    harness: str, checkpoint: pathlib.Path, real_rows_dir: str, tmp_path: pathlib.Path, eos: str
) -> None:
    """All three methods, real rows of four datasets; the differences are exactly the texts that are listed."""
    asked = ["--max_examples", str(EXAMPLES), "--data_dir", real_rows_dir, eos]
    asked += ["--inputs_length", LENGTHS[0], "--targets_length", LENGTHS[1]]
    ours = tmp_path / "ours"
    asked += ["--checkpoint", str(checkpoint)]
    call("eval", "--method", *METHODS, "--suite", *CHOSEN, "--output", ours, *asked)
    tasks = tmp_path / "tasks"
    methods = [word for method in METHODS for word in ("--method", method)]
    result = call("tasks", "export", "--to", "lm-eval", *methods, *asked, *CHOSEN, tasks)
    command = next(line for line in result.output.splitlines() if line.startswith("next: "))
    _, _, words = command.partition(" && lm_eval ")
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(
        [harness, "-m", "lm_eval", *words.split(), "--device", "cpu"], cwd=tasks, env=environment,
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    expected, found = our_scores(ours), their_scores(tasks, tasks / "results")
    assert set(found) == set(expected)
    assert len(found) == len(METHODS) * len(CHOSEN) * EXAMPLES
    assert {len(logprobs) for logprobs in expected.values()} == {2, 3, 4, 5}
    assert json.loads((tasks / "export.json").read_text())["inputs_truncated"] > 0
    listed = (tasks / "differences.jsonl").read_text().splitlines()
    assert not listed  # of these rows none
    for key, (theirs, _) in found.items():
        np.testing.assert_allclose(theirs, expected[key], rtol=0, atol=1e-4)
        assert np.argmax(theirs) == np.argmax(expected[key]), key
    correct = {key: accuracy for key, (_, accuracy) in found.items()}
    assert _accuracies(ours) == pytest.approx(_means(correct))


def _accuracies(output: pathlib.Path) -> dict[tuple[str, str, str], float]:
    rows = json.loads((output / "results.json").read_text())["results"]
    return {
        (row["method"], row["task"], row["template"]): row["value"]
        for row in rows
        if row["template"] and row["metric"] == "accuracy"
    }


def _means(correct: dict[tuple[str, str, str, str], float]) -> dict[tuple[str, str, str], float]:
    by_template: dict[tuple[str, str, str], list[float]] = {}
    for key, accuracy in correct.items():
        by_template.setdefault(key[:3], []).append(accuracy)
    return {key: float(np.mean(values)) for key, values in by_template.items()}


TEXTS = [
    "input: <extra_id_0> this is the best pan<extra_id_1>\noutput: Positive",
    "Positive</s>",
    "<extra_id_0> Is it <extra_id_1> positive?</s>",
    "a literal <extra_id_7> , </s> and <pad> and <unk> in a text",
    "<extra_id_07> <extra_id_100> < /s> are none",
    "  two  spaces,\ttabs \n and ünïcödé — 東京 ½ ﬁ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_exported_tokenizer(
    tokenizer: Callable[[str], list[int]], t5_vocab_path: str, text: str
) -> None:
    assert tokenizer_ids(text, Vocabulary.from_file(t5_vocab_path)) == tokenizer(text)


@pytest.fixture(scope="module")
def tokenizer(
    tmp_path_factory: pytest.TempPathFactory, t5_vocab_path: str
) -> Callable[[str], list[int]]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.write(folder, pathlib.Path(t5_vocab_path))
    (folder / "config.json").write_text('{"model_type": "t5"}')
    found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return lambda text: found.encode(text, add_special_tokens=False)
