"""The tokenizer's files of a Hugging Face folder, from a SentencePiece model with T5's layout of ids.

transformers has T5's tokenizer for unigram models, such as T5's own. For a BPE model, such as that of the
made-up world, the same steps are written out in `tokenizer.json`.
"""

from __future__ import annotations

import base64
import json
import pathlib
import shutil
from typing import Any

from flipped_core.errors import UserError
from flipped_tasks.methods import NUM_SENTINELS

VOCABULARY = "spiece.model"
UNIGRAM, BPE = 1, 2  # SentencePiece's numbers of kinds
_EOS_ID = 1
_SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_WORD_START = "▁"


def write(folder: pathlib.Path, vocabulary: pathlib.Path) -> None:
    """Writes what `AutoTokenizer.from_pretrained` needs, and the model itself as `spiece.model`.

    Raises:
      UserError: it is of a kind for which transformers has no tokenizer that gives the same ids.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    model.ParseFromString(vocabulary.read_bytes())
    kind = model.trainer_spec.model_type
    settings: dict[str, Any] = {"tokenizer_class": "T5Tokenizer", "extra_ids": NUM_SENTINELS}
    if kind == BPE:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        _write_json(folder / "tokenizer.json", _steps(model))
    elif kind != UNIGRAM:
        raise UserError(
            f"vocabulary {vocabulary}: expected a unigram or BPE model of SentencePiece, for which transformers "
            f"has a tokenizer, got kind {kind}"
        )
    shutil.copyfile(vocabulary, folder / VOCABULARY)
    _write_json(folder / "tokenizer_config.json", {**settings, **_SPECIAL})
    sentinels = [f"<extra_id_{k}>" for k in range(NUM_SENTINELS)]
    _write_json(
        folder / "special_tokens_map.json", {**_SPECIAL, "additional_special_tokens": sentinels}
    )


def _steps(model: Any) -> dict[str, Any]:
    """A BPE model as the `tokenizers` library describes one, with T5's sentinels and end of sequence."""
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    merges = _merges(ids)
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(NUM_SENTINELS))]
    ids |= {sentinel: len(model.pieces) + i for i, sentinel in enumerate(sentinels)}
    words = {"replacement": _WORD_START, "prepend_scheme": "always", "split": True}
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    ends = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
    second = [{"Sequence": {"id": "B", "type_id": 0}}, ends[1]]
    return {
        "version": "1.0",
        "added_tokens": [_added(name, ids[name]) for name in (*_SPECIAL.values(), *sentinels)],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", **words}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": ends,
            "pair": [*ends, *second],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [_EOS_ID], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", **words},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": False,
            "vocab": ids,
            "merges": merges,
        },
    }


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces that make a piece, the piece that SentencePiece prefers (the lower id) first."""
    return [
        (piece[:place], piece[place:])
        for piece in sorted(ids, key=ids.__getitem__)
        for place in range(1, len(piece))
        if piece[:place] in ids and piece[place:] in ids
    ]


def _added(name: str, token: int) -> dict[str, Any]:
    return {
        "id": token,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _write_json(file: pathlib.Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
