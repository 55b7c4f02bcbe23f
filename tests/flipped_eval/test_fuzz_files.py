"""Mutated metadata of evaluations and files of label sets: one line that names the file, no traceback, no hang.

    python -m pytest -m slow -s tests/flipped_eval/test_fuzz_files.py     # about 10 minutes

A mutation changes bytes (flips, cuts, insertions, parts twice) or a value of the JSON or YAML: another type, a bound,
a part that is missing or twice. Much of the JSON is sealed again, as by someone who knows the format, so that types
are met too.
"""

from __future__ import annotations

import copy
import json
import pathlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from flipped_core.errors import UserError
from flipped_core.files import to_json
from flipped_core.sealed import CHECKSUM, checksum, read_sealed
from flipped_eval import results, significance
from flipped_eval.report import markdown, write_report
from flipped_eval.report.content import collect
from flipped_eval.run_files import FORMAT
from mixtures import suites

from .conftest import HashScorer, evaluate

SECONDS = 5.0  # of processor time, most for one trial: others may use the machine
ODD: list[Any] = [
    None, True, False, 0, -1, 2, 1.5, -0.5, 1e300, 10**30, "", "x", "\n", "a|b", "<script>", "\u202e", "é" * 5000,
    [], {}, [1], ["a", "b"], {"a": 1}, [[[[[]]]]], "original", "accuracy", "direct",
]  # fmt: skip
ODD_YAML = [
    "!!timestamp x", "!!bool x", "!!int ''", "!!float a", "!!binary '*'", "!!set {a, b}", "!!python/name:os.system",
    "&a [*a]", "*nowhere", "{<<: 3}", "? [a]\n: b", "2020-13-45", "1:99", "9" * 5000, "[" * 3000, "{a: " * 3000,
    "\ud800", "'\\ud800'", '"\\ud800"', '"\\0"', "- - - -", "|\n x", "---", "...", "%TAG ! x", "\t", "\x07", "no",
    "~", "0x", "0b", ".nan",
]  # fmt: skip
JOB = {
    "suites": ["super_glue/rte:MNLI crowdsource", "labels"], "exclude_datasets": ["imdb", "paws/labeled_final"],
    "methods": ["direct", "flipped"], "max_examples": 4, "resamples": 5,
}  # fmt: skip
# File -> trials.
FILES = {
    "results.json": 500,
    "examples.json": 150,
    "predictions.jsonl": 150,
    "run.json": 250,
    "plan.json": 250,
    "train/metrics.jsonl": 100,
    "train/run.json": 100,
}
LABEL_SETS = 500


def mutated_bytes(draw: random.Random, data: bytes) -> bytes:
    """One to four changes of bytes."""
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(data) + 1)
        end = place + draw.randrange(1, 60)
        data = draw.choice(
            [
                data[:place],
                data[:place] + data[end:],
                data[:place] + draw.randbytes(draw.randrange(1, 20)) + data[place:],
                data[:end] + data[place:],
                data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :],
                data[:place] + draw.choice([b"[", b"{", b'"', b"NaN", b"1e999", b"-", b"0", b"\n"]) + data[place:],
                b"\xef\xbb\xbf" + data,
            ]
        )  # fmt: skip
    return data


def mutated_value(draw: random.Random, value: Any) -> Any:
    """One to three changes of a JSON-like value."""
    value = {"": copy.deepcopy(value)}
    for _ in range(draw.randrange(1, 4)):
        containers = list(_containers(value))
        here = draw.choice(containers)
        place = draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
        how = draw.randrange(5)
        if how == 0:
            del here[place]
        elif how == 1 and isinstance(here, dict):
            here[draw.choice(["x", "", "é", "__class__", "0"])] = here.pop(place)
        elif how == 1:
            here.append(copy.deepcopy(here[place]))
        elif how == 2:
            other = draw.choice(containers)
            here[place] = copy.deepcopy(
                draw.choice(list(other.values()) if isinstance(other, dict) else other)
            )
        else:
            here[place] = draw.choice(ODD)
        if not value or not list(_containers(value)):
            return draw.choice(ODD)
    return value.get("")


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)) and value:
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _containers(each)


def mutated_json(draw: random.Random, data: bytes, sealed: bool) -> bytes:
    """A file of one JSON object, or of one a line, mutated; sealed again in many of the trials.

    Bytes that change under a seal are refused, or say the same.
    """
    if draw.randrange(2):
        mutated = mutated_bytes(draw, data)
        if sealed:
            try:
                expected = {n: v for n, v in json.loads(data).items() if n != CHECKSUM}
                assert sealed_value(mutated, expected) == expected, "changed in silence"
            except UserError:
                pass
        return mutated
    lines = [data] if sealed else data.splitlines()
    place = draw.randrange(len(lines))
    value = json.loads(lines[place])
    if sealed:
        value.pop(CHECKSUM, None)
    value = mutated_value(draw, value)
    if isinstance(value, dict) and sealed and draw.randrange(4):
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        value = value | {CHECKSUM: checksum(text.encode())}
    lines[place] = json.dumps(value, indent=1 if sealed else None, ensure_ascii=False).encode()
    return b"\n".join(lines)


def sealed_value(data: bytes, expected: dict[str, Any]) -> Any:
    """What `read_sealed` makes of a file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.json"
        path.write_bytes(data)
        return read_sealed(path, FORMAT, set(expected) - {"format"})


def mutated_yaml(draw: random.Random, text: str) -> bytes:
    """A file of label sets, mutated as bytes, as a value, or with what YAML alone knows."""
    how = draw.randrange(3)
    if how == 0:
        return mutated_bytes(draw, text.encode())
    if how == 1:
        value = mutated_value(draw, yaml.safe_load(text))
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    words = text.split(" ")
    for _ in range(draw.randrange(1, 4)):
        words[draw.randrange(len(words))] = draw.choice(ODD_YAML)
    return " ".join(words).encode("utf-8", "surrogatepass")


def trial(seed: int, what: str, act: Callable[[], object], data: bytes, seen: Counter[str]) -> None:
    """`act` must succeed or say in one line what is wrong, soon."""
    began = time.process_time()
    try:
        act()
        seen["accepted"] += 1
    except UserError as error:
        assert "\n" not in str(error).strip() and len(str(error)) < 2000, (what, seed, str(error))
        seen["refused"] += 1
    except Exception as error:
        raise AssertionError(f"{what}, seed {seed}: {error!r}\n{data[:3000]!r}") from error
    taken = time.process_time() - began
    seen["slowest ms"] = max(seen["slowest ms"], round(1000 * taken))
    assert taken < SECONDS, f"{what}, seed {seed}: {taken:.1f} s"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_vocab_path) -> pathlib.Path:
    """A finished evaluation beside its training's log."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder, small_vocab_path, **JOB)
    train = folder / "train"
    train.mkdir()
    rows = [{"step": step, "loss": 1 / step, "loss_lm": 0.5} for step in range(1, 9)]
    (train / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (train / "run.json").write_text(json.dumps({"recipe": {"steps": 8}, "versions": {"jax": "1"}}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_mutated_files_of_an_evaluation(tmp_path, whole, small_vocab_path, name):
    seen: Counter[str] = Counter()
    data = (whole / name).read_bytes()
    for seed in range(FILES[name]):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        draw = random.Random(seed)
        sealed = name in ("results.json", "examples.json", "run.json", "plan.json")
        mutated = mutated_json(draw, data, sealed)
        (folder / name).write_bytes(mutated)
        if name in ("run.json", "plan.json"):
            again = HashScorer()

            def act(folder=folder, again=again) -> None:
                evaluate(folder, small_vocab_path, scorer=again, announce=lambda line: None, **JOB)
        elif name == "predictions.jsonl":
            old = json.loads((folder / "results.json").read_text())
            old = {n: v for n, v in old.items() if "crc32" not in n} | {"format": 2}
            (folder / "results.json").write_text(json.dumps(old))

            def act(folder=folder) -> None:
                units = [one.to_unit() for one in results.predictions_of(folder) if one.examples]
                significance.compare(units, units, 0, 5)
        else:
            training = {"direct": folder / "train"} if name.startswith("train") else {}

            def act(folder=folder, training=training, page=seed % 4 == 0) -> None:
                if page:
                    write_report([folder], tmp_path, training)
                else:  # all but the page, whose pictures take a second
                    report = collect([folder], training)
                    to_json(report.to_json())
                    markdown.render(report)
                    report.summary()

        trial(seed, name, act, mutated, seen)
    print(f"\n{name}, seeds 0 to {FILES[name] - 1}: {dict(seen)}")


@pytest.mark.slow
def test_mutated_label_sets(tmp_path):
    seen: Counter[str] = Counter()
    text = suites.LABEL_SETS_FILE.read_text()
    path = tmp_path / "labels.yaml"
    for seed in range(LABEL_SETS):
        mutated = mutated_yaml(random.Random(seed), text)
        path.write_bytes(mutated)

        def act() -> None:
            for task in suites.labels(path):
                words = [*(task.label_words or {}).values(), task.label_set]
                assert all(isinstance(word, str) and word.encode() for word in words)

        trial(seed, "labels.yaml", act, mutated, seen)
    print(f"\nlabel sets, seeds 0 to {LABEL_SETS - 1}: {dict(seen)}")
