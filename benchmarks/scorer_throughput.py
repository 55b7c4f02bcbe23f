"""Rank classification, ours beside transformers as T0's script uses it: same weights, same cases, one run.

    python benchmarks/scorer_throughput.py --data_dir FOLDER --vocab sentencepiece.model --gold sample.jsonl \\
      [--method direct] [--every 1] [--only ours,t0,sorted]
    python benchmarks/scorer_throughput.py --only memory

Prints Markdown tables. The cases are those of the worked sample and 3 rows of every template that FLIPPED can use
(FOLDER holds rows as `--data_dir` of the commands does); `--every n` takes every n-th batch of 8 of them. The model
has D 512, 4 + 4 layers, 6 heads, F 1024, V 32128, fp32, random weights. transformers gets batches of 8 examples,
padded to the longest: "t0" in the order of the cases (dataset by dataset), "sorted" by length; DIRECT repeats the
encoder's output for each choice, FLIPPED and CHANNEL are pairs. "letter" is T0's script to the letter: it repeats
DIRECT's inputs, and so encodes a prompt once for each choice. 'examples/s' is by the clock, 'a CPU second' by the
processor time of all threads, which other work on the machine disturbs less. Ours is run twice; what the first run
takes longer is compilation.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from t5_engine import huggingface, speed  # noqa: E402
from t5_engine.config import T5Config, size  # noqa: E402
from t5_engine.model import init_params  # noqa: E402
from t5_engine.scorer import Scorer  # noqa: E402

LENGTHS = {"inputs": 512, "targets": 128}
ROWS_EACH = 3
BATCH = 8
THEIRS = ("t0", "sorted", "letter")
PARTS = ("ours", *THEIRS, "memory")
MODEL = T5Config(
    vocab_size=32128,
    emb_dim=512,
    num_heads=6,
    head_dim=64,
    mlp_dim=1024,
    num_encoder_layers=4,
    num_decoder_layers=4,
    dropout_rate=0.0,
)

Case = list[tuple[list[int], list[int]]]  # one pair for each choice


def read_cases(method: str, data_dir: str, vocab: str, gold: str) -> list[Case]:
    """The ids of all cases, in the order of the datasets."""
    from flipped_tasks.methods import Formatted, format_example
    from flipped_tasks.tokens import Vocabulary, encode

    vocabulary = Vocabulary.from_file(vocab)
    cases = []
    for rendered in [*_worked(gold), *_real(data_dir)]:
        forms = [format_example(method, rendered, i) for i in range(len(rendered.choices))]
        if all(isinstance(form, Formatted) for form in forms):
            encoded = [encode(form, vocabulary, LENGTHS) for form in forms]
            cases.append([(one.inputs, one.targets) for one in encoded])
    return cases


def _worked(gold: str) -> list[Any]:
    from flipped_tasks.promptsource import load_template
    from flipped_tasks.rendering import Rendered, compile_template

    found = []
    for line in pathlib.Path(gold).read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        template = compile_template(load_template(case["dataset"], case["template"]))
        rendered = template.render(case["row"], random.Random(case["seed"] or 0))
        if isinstance(rendered, Rendered):
            found.append(rendered)
    return found


def _real(data_dir: str) -> list[Any]:
    from flipped_tasks import sources
    from flipped_tasks.datasets import get_dataset, usable_templates
    from flipped_tasks.promptsource import load_template
    from flipped_tasks.rendering import Rendered, compile_template, template_rng
    from mixtures import catalog

    found = []
    preferred = ("validation", "test", "dev_r1", "content_only_14classes")
    for dataset in (*catalog.TRAINING, *catalog.EVALUATION, *catalog.ALTERNATIVES.values()):
        if not (pathlib.Path(data_dir) / dataset.replace("/", "__")).is_dir():
            continue  # Story Cloze is handed out against a form only
        splits = sources.split_names(dataset, data_dir)
        split = next(name for name in (*preferred, *splits) if name in splits)
        rows = sources.load_rows(dataset, split, data_dir)
        place = 0
        for name in usable_templates(dataset, "flipped"):
            template, taken = compile_template(load_template(dataset, name)), 0
            for _ in rows:
                row, place = rows[place % len(rows)], place + 1
                if get_dataset(dataset).check_row(row) is not None:
                    continue
                rendered = template.render(row, template_rng(0, name, place))
                if isinstance(rendered, Rendered):
                    found.append(rendered)
                    taken += 1
                if taken == ROWS_EACH:
                    break
    return found


@dataclasses.dataclass
class Timed:
    """What a way of scoring gave, and what it took."""

    scores: np.ndarray
    seconds: float
    cpu_seconds: float


def timed(function: Callable[[], np.ndarray]) -> Timed:
    clock, cpu = time.monotonic(), time.process_time()
    scores = function()
    return Timed(scores, time.monotonic() - clock, time.process_time() - cpu)


class Theirs:
    """transformers' T5 with our weights."""

    def __init__(self, params: Any) -> None:
        import torch
        import transformers

        torch.set_num_threads(os.cpu_count() or 1)
        config = transformers.T5Config(**huggingface.config_fields(MODEL))
        config.tie_word_embeddings = False  # whatever the constructor made of it
        self.model = transformers.T5ForConditionalGeneration(config).eval()
        tensors = huggingface.to_state_dict(MODEL, params)
        self.model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})

    def score(self, cases: Sequence[Case], method: str, way: str) -> np.ndarray:
        """The scores of all pairs, in their order."""
        order = list(range(len(cases)))
        if way == "sorted":
            order.sort(
                key=lambda i: tuple(max(map(len, side)) for side in zip(*cases[i], strict=True))
            )
        found: dict[int, list[float]] = {}
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            scores = self._batch([cases[i] for i in some], method == "direct" and way != "letter")
            for i in some:
                found[i], scores = scores[: len(cases[i])], scores[len(cases[i]) :]
        return np.array([score for i in range(len(cases)) for score in found[i]])

    def _batch(self, cases: Sequence[Case], encode_once: bool) -> list[float]:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        def padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
            ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, row in enumerate(rows):
                ids[number, : len(row)] = torch.tensor(row)
                mask[number, : len(row)] = 1
            return ids, mask

        with torch.no_grad():
            rows = [pairs[0][0] for pairs in cases] if encode_once else []
            ids, mask = padded(rows or [inputs for pairs in cases for inputs, _ in pairs])
            encoded = self.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            if encode_once:
                counts = torch.tensor([len(pairs) for pairs in cases])
                encoded, mask = (one.repeat_interleave(counts, 0) for one in (encoded, mask))
            labels, counted = padded([targets for pairs in cases for _, targets in pairs])
            output = self.model(
                encoder_outputs=BaseModelOutput(encoded), attention_mask=mask, labels=labels
            )
            log_probs = counted.unsqueeze(-1) * torch.log_softmax(output.logits, dim=-1)
            own = torch.gather(log_probs, -1, labels.unsqueeze(-1)).squeeze(-1)
            return own.sum(-1).tolist()


def compare(arguments: argparse.Namespace, parts: Sequence[str]) -> None:
    """One table: ours and theirs on the cases of one method."""
    cases = read_cases(arguments.method, arguments.data_dir, arguments.vocab, arguments.gold)
    blocks = [cases[i : i + BATCH] for i in range(0, len(cases), BATCH)][:: arguments.every]
    cases = [case for block in blocks for case in block]
    pairs = [pair for case in cases for pair in case]
    tokens = np.array([len(targets) for _, targets in pairs])
    params = jax.jit(lambda key: init_params(MODEL, key))(jax.random.key(0))

    scorer = Scorer(MODEL, params)
    first = timed(lambda: scorer.score(pairs))
    ours = timed(lambda: scorer.score(pairs))
    batches = scorer.plan(pairs)
    room = np.sum([len(batch.goes) * batch.shape.room for batch in batches], axis=0)
    used = [len(ids) for batch in batches for row in batch.inputs for ids in row], tokens
    print(
        f"{arguments.method}: {len(cases)} cases, {len(pairs)} pairs; ours: "
        f"{len({batch.shape for batch in batches})} shapes compiled in "
        f"{first.seconds - ours.seconds:.1f} s ({first.cpu_seconds - ours.cpu_seconds:.1f} CPU s), rooms filled to "
        f"{np.sum(used[0]) / room[0]:.0%} (inputs) and {np.sum(used[1]) / room[2]:.0%} (targets)"
    )
    useful = sum(speed.forward_flops(MODEL, len(inputs), len(targets)) for inputs, targets in pairs)
    print(
        f"{useful / ours.seconds / 1e9:.0f} GFLOP/s of the arithmetic of all pairs, each alone and without padding; "
        f"matrix products alone run at {product_rate() / 1e9:.0f}\n"
    )
    print(
        "| | examples/s | a CPU second | ours, by the clock | ours, by CPU time | same predictions | "
        "largest difference a token |\n|---|---|---|---|---|---|---|"
    )
    theirs = Theirs(params) if set(parts) & set(THEIRS) else None
    for part in parts:
        found = ours if theirs is None or part == "ours" else None
        if found is None:
            theirs.score(cases[:BATCH], arguments.method, part)  # the first batch warms up
            found = timed(lambda part=part: theirs.score(cases, arguments.method, part))
        difference = np.abs(found.scores - ours.scores) / np.maximum(tokens, 1)
        print(
            f"| {part} | {len(cases) / found.seconds:.1f} | {len(cases) / found.cpu_seconds:.1f} | "
            f"{found.seconds / ours.seconds:.2f} × | {found.cpu_seconds / ours.cpu_seconds:.2f} × | "
            f"{_same(cases, ours.scores, found.scores)} of {len(cases)} | {difference.max():.1e} |",
            flush=True,
        )


def product_rate() -> float:
    """The FLOP/s of one matrix product of the model's size, the median of 15."""
    x, y = jnp.ones((4096, MODEL.emb_dim)), jnp.ones((MODEL.emb_dim, MODEL.mlp_dim))
    product = jax.jit(jnp.dot)
    product(x, y).block_until_ready()
    seconds = [timed(lambda: np.asarray(product(x, y)[:1])).seconds for _ in range(15)]
    return 2 * x.shape[0] * y.size / float(np.median(seconds))


def _same(cases: Sequence[Case], ours: np.ndarray, theirs: np.ndarray) -> int:
    """In how many cases the highest score is of the same choice."""
    ends = np.cumsum([len(case) for case in cases])[:-1]
    return sum(
        int(a.argmax()) == int(b.argmax())
        for a, b in zip(np.split(ours, ends), np.split(theirs, ends), strict=True)
    )


def memory() -> None:
    """The resident set over 100,000 scored choices of a tiny model, in calls of 5,000, after the first 10,000."""
    config = size("tiny", dropout_rate=0.0)
    scorer = Scorer(config, init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    readings = []
    for call in range(20):
        pairs = []
        while len(pairs) < 5_000:
            words = rng.integers(
                2, config.vocab_size, int(rng.lognormal(4, 0.8)) % 512 + 1
            ).tolist()
            pairs += [(words, rng.integers(2, 9, rng.integers(1, 9)).tolist()) for _ in range(4)]
        scorer.score(pairs)
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        readings.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        print(f"{(call + 1) * 5_000:,} choices: {readings[-1]:,.0f} MiB", flush=True)
    print(f"growth after the first 10,000: {max(readings[1:]) / readings[1] - 1:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir")
    parser.add_argument("--vocab")
    parser.add_argument("--gold")
    parser.add_argument("--method", default="direct")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="ours,t0,sorted")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"--only: expected of {', '.join(PARTS)}, got {part}")
    if "memory" in parts:
        memory()
    else:
        compare(arguments, parts)


if __name__ == "__main__":
    main()
