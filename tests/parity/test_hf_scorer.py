"""The scorer gives the log-probabilities of Hugging Face's T5 on the same parameters, however it batches."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from t5_engine import huggingface
from t5_engine.config import T5Config
from t5_engine.model import init_params
from t5_engine.scorer import Scorer

torch = pytest.importorskip("torch", reason="PyTorch is not installed (a test dependency only)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOLERANCE = 1e-4  # a token
CONFIG = T5Config(
    vocab_size=320,
    emb_dim=32,
    num_heads=4,
    head_dim=16,
    mlp_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)


@pytest.fixture(scope="module")
def cases() -> list[list[tuple[list[int], list[int]]]]:
    """Of each example a pair for each choice: shared inputs as in DIRECT, then an input a choice as in FLIPPED."""
    rng = np.random.default_rng(0)

    def words(least: int, most: int) -> list[int]:
        return rng.integers(2, CONFIG.vocab_size, rng.integers(least, most)).tolist()

    found = []
    for number in range(24):
        prompt, choices = words(1, 200), [[*words(1, 12), 1] for _ in range(1 + number % 5)]
        if number == 7:
            choices[1] = choices[0]
        found.append([(prompt, choice) for choice in choices])
        instruction = words(5, 40)
        found.append([([*prompt, *choice], instruction) for choice in choices])
    return found


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def theirs(params, cases) -> list[float]:
    """One pair at a time, without any padding."""
    config = transformers.T5Config(**huggingface.config_fields(CONFIG))
    config.tie_word_embeddings = False  # whatever the constructor made of it
    model = transformers.T5ForConditionalGeneration(config).eval()
    tensors = huggingface.to_state_dict(CONFIG, params)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    scores = []
    with torch.no_grad():
        for inputs, targets in (pair for case in cases for pair in case):
            labels = torch.tensor([targets])
            logits = model(input_ids=torch.tensor([inputs]), labels=labels).logits
            found = torch.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1))
            scores.append(float(found.sum()))
    return scores


@pytest.mark.parametrize(
    "options",
    [*({"batch_size": size} for size in (1, 2, 7, 64)), {}, {"input_buckets": (100,)}],
    ids=str,
)
def test_scores_and_predictions_are_theirs(params, cases, theirs, options):
    pairs = [pair for case in cases for pair in case]
    order = np.random.default_rng(1).permutation(len(pairs))
    scorer = Scorer(CONFIG, params, **options)
    ours = np.empty(len(pairs), np.float32)
    ours[order] = scorer.score([pairs[i] for i in order])
    a_token = np.abs(ours - theirs) / [len(targets) for _, targets in pairs]
    assert a_token.max() <= TOLERANCE
    ends = np.cumsum([len(case) for case in cases])[:-1]
    both = [np.split(scores, ends) for scores in (ours, np.asarray(theirs))]
    assert [a.argmax() for a in both[0]] == [a.argmax() for a in both[1]]
