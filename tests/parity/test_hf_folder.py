"""Exported folders in the installed transformers: model, tokenizer and the card's own code."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from flipped_cli import model_card, tokenizer_files
from flipped_core.errors import UserError
from flipped_eval.recipes import Recipe
from flipped_tasks.tokens import Vocabulary
from t5_engine import config as sizes
from t5_engine import huggingface, huggingface_folder
from t5_engine.config import T5Config
from t5_engine.huggingface_folder import HuggingFaceWeights
from t5_engine.model import T5, init_params
from t5_engine.weights import leaves, to_params
from tests.t5_engine.stored import InMemory, assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed (a test dependency only)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CONFIG = T5Config(
    vocab_size=640,
    emb_dim=32,
    num_heads=4,
    head_dim=16,
    mlp_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.0,
)
TEXTS = [
    "input: <extra_id_0> this is the best pan<extra_id_1>\noutput: Positive",
    "<extra_id_0>Title: <extra_id_1> Is it<extra_id_2>positive?",
    "  two  spaces,\ttabs \n and ünïcödé — 東京 ½ ﬁ",
    "",
]


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(1))


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, params: Any, small_vocab_path: str
) -> pathlib.Path:
    assert Vocabulary.from_file(small_vocab_path).size <= CONFIG.vocab_size
    out = tmp_path_factory.mktemp("exported")
    huggingface_folder.write(InMemory(CONFIG, params), out, shard_bytes=60_000)
    tokenizer_files.write(out, pathlib.Path(small_vocab_path))
    return out


@pytest.fixture(scope="module")
def model(folder: pathlib.Path) -> Any:
    return transformers.T5ForConditionalGeneration.from_pretrained(
        folder, local_files_only=True
    ).eval()


def batch(rows: int, inputs: int, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Random words, all rows but the first padded."""
    rng = np.random.default_rng(rows)
    words = [rng.integers(2, CONFIG.vocab_size, (rows, length)) for length in (inputs, targets)]
    for array in words:
        for row in range(1, rows):
            array[row, max(1, array.shape[1] - 3 * row) :] = 0
    return words[0].astype(np.int32), words[1].astype(np.int32)


def their_logits(model: Any, inputs: np.ndarray, targets: np.ndarray) -> Any:
    """Their output for a batch, with labels of which the padding is left out."""
    labels = torch.from_numpy(np.where(targets == 0, -100, targets)).long()
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(inputs).long(),
            attention_mask=torch.from_numpy(inputs != 0).long(),
            labels=labels,
        )


def our_logits(
    config: T5Config, params: Any, inputs: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return np.asarray(jax.jit(lambda p: T5(config).apply({"params": p}, inputs, shifted))(params))


@pytest.mark.parametrize(("rows", "inputs", "targets"), [(1, 1, 1), (3, 150, 12), (4, 9, 140)])
def test_from_pretrained_gives_our_logits_and_loss(
    model: Any, params: Any, rows: int, inputs: int, targets: int
):
    """fp32, several files of tensors, untied logits, distances beyond the last bucket (128), padding."""
    from t5_engine import losses

    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    source, target = batch(rows, inputs, targets)
    theirs = their_logits(model, source, target)
    ours = our_logits(CONFIG, params, source, target)
    real = target != 0
    np.testing.assert_allclose(ours[real], theirs.logits.numpy()[real], atol=1e-4)
    assert np.abs(ours[real]).max() > 1
    example = {
        "encoder_input_tokens": source,
        "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": target,
        "decoder_loss_weights": real.astype(np.float32),
    }
    loss, _ = losses.objective(CONFIG, params, example)
    assert abs(float(loss) - float(theirs.loss)) <= 1e-4


def test_bfloat16_stays_near_float32(model: Any, params: Any):
    """bfloat16 has 8 bits of mantissa: after 5 layers both stay within 3% of the largest logit of each other."""
    source, target = batch(3, 40, 12)
    exact = their_logits(model, source, target).logits.numpy()
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(
        model.name_or_path, dtype=torch.bfloat16
    ).eval()
    rounded = their_logits(theirs, source, target).logits.float().numpy()
    ours = our_logits(CONFIG.replace(dtype="bfloat16"), params, source, target)
    real, bound = target != 0, 0.03 * np.abs(exact).max()
    assert np.abs(ours[real] - exact[real]).max() <= bound
    assert np.abs(ours[real] - rounded[real]).max() <= bound
    assert np.abs(ours[real] - exact[real]).max() > 1e-4  # else bfloat16 was not used


def test_what_transformers_saves_is_imported(model: Any, params: Any, tmp_path: pathlib.Path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    weights = HuggingFaceWeights(tmp_path)
    assert weights.config == CONFIG
    assert_same(to_params(weights), params)


def test_generation_runs(tmp_path: pathlib.Path):
    """Of a model with as many decoder as encoder layers: transformers' cache takes the encoder's number."""
    config = CONFIG.replace(num_decoder_layers=2)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(2))
    huggingface_folder.write(InMemory(config, params), tmp_path)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    source, _ = batch(2, 9, 3)
    made = model.generate(torch.from_numpy(source).long(), max_new_tokens=4, do_sample=False)
    assert made.shape[0] == 2 and (made[:, 0] == 0).all()


def our_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """The ids of a text with sentinels, each piece between them encoded on its own, and eos."""
    ids: list[int] = []
    for piece in re.split(r"(<extra_id_\d+>)", text):
        sentinel = re.fullmatch(r"<extra_id_(\d+)>", piece)
        ids += [vocabulary.sentinel(int(sentinel[1]))] if sentinel else vocabulary.encode(piece)
    return [*ids, vocabulary.eos]


def assert_same_ids(folder: pathlib.Path, vocabulary: Vocabulary, tokenizer: Any) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    names = [f"<extra_id_{k}>" for k in range(100)]
    sentinels = [vocabulary.sentinel(k) for k in range(100)]
    assert tokenizer.convert_tokens_to_ids(names) == sentinels
    assert len(tokenizer) == sentinels[0] + 1
    for text in TEXTS:
        found = tokenizer(text)
        assert found.input_ids == our_ids(vocabulary, text), text
        assert set(found) == {"input_ids", "attention_mask"}


def test_tokenizer_of_a_bpe_vocabulary(folder: pathlib.Path, small_vocab_path: str):
    from flipped_tasks.embedded import warmup_texts

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary = Vocabulary.from_file(small_vocab_path)
    assert_same_ids(folder, vocabulary, tokenizer)
    for text in warmup_texts(1, 200):
        assert tokenizer(text).input_ids == our_ids(vocabulary, text), text


def test_tokenizer_of_t5_s_vocabulary(tmp_path: pathlib.Path, t5_vocab_path: str):
    tokenizer_files.write(tmp_path, pathlib.Path(t5_vocab_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for maker in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        tokenizer = maker.from_pretrained(tmp_path, local_files_only=True)
        assert_same_ids(tmp_path, Vocabulary.from_file(t5_vocab_path), tokenizer)


def test_worked_cases_of_the_methods_have_our_ids(
    shared_dir: pathlib.Path, tmp_path: pathlib.Path, t5_vocab_path: str
):
    """Inputs and targets with sentinels, of real templates on real rows, by the exported tokenizer."""
    tokenizer_files.write(tmp_path, pathlib.Path(t5_vocab_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    vocabulary = Vocabulary.from_file(t5_vocab_path)
    lines = (shared_dir / "gold" / "sample.jsonl").read_text().splitlines()
    texts = {text for line in lines for text in strings(json.loads(line))}
    with_sentinels = [text for text in texts if "<extra_id_" in text]
    assert len(with_sentinels) > 50
    for text in texts:
        assert tokenizer(text).input_ids == our_ids(vocabulary, text), text


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def test_other_kinds_of_vocabulary_are_refused(tmp_path: pathlib.Path):
    import sentencepiece

    prefix = str(tmp_path / "char")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]), model_prefix=prefix, model_type="char", minloglevel=2,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    with pytest.raises(UserError, match="expected a unigram or BPE model of SentencePiece"):
        tokenizer_files.write(tmp_path, pathlib.Path(f"{prefix}.model"))


@pytest.mark.parametrize("mixture", ["flipped_train", "direct_train", "channel_train", None])
def test_the_code_of_the_card_runs(
    folder: pathlib.Path,
    params: Any,
    mixture: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """And its scores are those of our own model on the ids of the same tokenizer."""
    recipe = {
        "mixture": mixture,
        "lengths": {"inputs": 512, "targets": 128},
        **dict.fromkeys(("steps", "batch_size", "learning_rate", "optimizer", "seed"), 1),
        **dict.fromkeys(("unlikelihood_weight", "z_loss"), 0.0),
        "task_modules": [],
    }
    trained = Recipe("name")
    if mixture:
        method = mixture.removesuffix("_train")
        trained = Recipe(
            "name", method=method, lengths=recipe["lengths"], input_eos=True, run=recipe
        )
    card = model_card.write_card("name", InMemory(CONFIG, params), trained, {}, None, "tiny")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out.strip() in ("Negative", "Positive")
    source = names["source"].input_ids.numpy().astype(np.int32)
    target = names["labels"].numpy().astype(np.int32)
    ours = jax.nn.log_softmax(our_logits(CONFIG, params, source, target))
    picked = np.take_along_axis(np.asarray(ours), target[..., None], -1)[..., 0]
    scores = (picked * (target != 0)).sum(-1)
    np.testing.assert_allclose(scores, names["scores"].numpy(), atol=1e-4)


@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_numbers_of_parameters(size: str):
    """transformers' own model of that size, without memory for it, has as many parameters as ours."""
    config = sizes.size(size)
    theirs = transformers.T5Config(**huggingface.config_fields(config))
    theirs.tie_word_embeddings = False
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(theirs)
    named = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for copy in huggingface.COPIES:
        named.pop(copy, None)
    assert set(named) == set(huggingface.names(config))
    counted = sum(math.prod(leaf.shape) for leaf in leaves(config).values())
    assert sum(map(math.prod, named.values())) == counted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_model_bin_gives_the_logits_of_their_loading(
    folder: pathlib.Path, model: Any, tmp_path: pathlib.Path, dtype: str
):
    """The folder's model saved as in 2022: the same bits as its safetensors, and their logits."""
    state = model.state_dict()
    for name in huggingface.COPIES:
        state[name] = state["shared.weight"]
    if dtype == "bfloat16":
        state = {name: tensor.bfloat16() for name, tensor in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = HuggingFaceWeights(tmp_path)
    params = to_params(weights)
    if dtype == "float32":
        assert_same(params, to_params(HuggingFaceWeights(folder)))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path, local_files_only=True, dtype=torch.float32
    ).eval()
    source, target = batch(3, 40, 12)
    expected = their_logits(theirs, source, target).logits.numpy()
    ours = our_logits(weights.config, params, source, target)
    np.testing.assert_allclose(ours[target != 0], expected[target != 0], atol=2e-5)
