"""Our T5.1.1 gives the logits of Hugging Face's `T5ForConditionalGeneration` on the same parameters."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import huggingface
from t5_engine.config import T5Config
from t5_engine.model import T5, init_params

torch = pytest.importorskip("torch", reason="PyTorch is not installed (a test dependency only)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CONFIG = T5Config(
    vocab_size=96,
    emb_dim=32,
    num_heads=4,
    head_dim=16,  # N * H is not D, as in the public small model
    mlp_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.0,
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0))


def test_logits_equal_hugging_face(params):
    their_config = transformers.T5Config(**huggingface.config_fields(CONFIG))
    # transformers 5 sets this to True whatever it is given (and notes what was given in
    # `scale_decoder_outputs`); a model that is built from a config would then share lm_head with the embedding.
    their_config.tie_word_embeddings = False
    model = transformers.T5ForConditionalGeneration(their_config).eval()
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    tensors = {k: torch.from_numpy(v) for k, v in huggingface.to_state_dict(CONFIG, params).items()}
    model.load_state_dict(tensors, strict=True)

    rng = np.random.default_rng(0)
    inputs = rng.integers(2, 96, (3, 150)).astype(
        np.int32
    )  # farther than the largest distance, 128
    inputs[1, 100:] = 0
    targets = rng.integers(2, 96, (3, 20)).astype(np.int32)
    decoder_inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    ours = jax.jit(lambda p: T5(CONFIG).apply({"params": p}, inputs, decoder_inputs))(params)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(inputs).long(),
            attention_mask=torch.from_numpy(inputs != 0).long(),
            decoder_input_ids=torch.from_numpy(decoder_inputs).long(),
        ).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(theirs).max() > 1


def test_state_dictionary_survives_the_way_back(params):
    back = huggingface.from_state_dict(CONFIG, huggingface.to_state_dict(CONFIG, params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_other_sizes_and_missing_parameters_are_named(params):
    tensors = huggingface.to_state_dict(CONFIG, params)
    with pytest.raises(
        UserError, match=r"'lm_head.weight': expected shape \[97, 32\], got \[96, 32\]"
    ):
        huggingface.from_state_dict(CONFIG.replace(vocab_size=97), tensors)
    del tensors["lm_head.weight"]
    with pytest.raises(UserError, match="'lm_head.weight': expected in the state dictionary"):
        huggingface.from_state_dict(CONFIG, tensors)
