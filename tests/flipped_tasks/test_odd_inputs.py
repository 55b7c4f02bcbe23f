"""Odd rows, files, templates and YAML by the thousand: a value, a drop or one line; no traceback, no hang.

    python -m pytest -m slow -s tests/flipped_tasks/test_odd_inputs.py      # FLIPPED_SEED=n, FLIPPED_COUNT=n

Each test prints its seed and what became of its inputs.
"""

import collections
import contextlib
import copy
import csv
import datetime
import decimal
import gzip
import importlib
import io
import json
import os
import random
import resource
import signal
import traceback

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from flipped_core.errors import UserError
from flipped_tasks import promptsource
from flipped_tasks.datasets import get_dataset
from flipped_tasks.lint import lint_template
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.rendering import compile_template, template_rng
from flipped_tasks.sources import labelled_payloads, load_rows
from mixtures import catalog, own
from mixtures.own import Template, add_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_datasets")]
COUNT = int(os.environ.get("FLIPPED_COUNT", "2000"))
SECONDS = 5
SEED = int(os.environ.get("FLIPPED_SEED", "20260"))
ANSWER = "{{answer_choices[label]}}"
TEMPLATES = (
    Template("index", "{{text}} ok?", ANSWER, ("no", "yes")),
    Template("int", "{{text}} ok?", "{{answer_choices[label | int]}}", ("no", "yes")),
    Template("list", "{{text}}: {{opts | join(', ')}}?", "{{label}}", "{{opts | join('|||')}}"),
    Template("nested", "{{d.k}} {% for o in opts %}{{o}} {% endfor %}?", ANSWER, "no|||yes"),
    Template("if", "{% if label == 1 %}a{% else %}b{% endif %} {{text}}", "{{label}}", "0|||1"),
)

# ruff: noqa: E501 - the tables of values
VALUES = (
    None, True, False, 0, 1, -1, 2, 0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), 1e308, -(2**63), 2**63, 2**64,
    10**400, "", " ", "a", "a|||b", "|||", "1", "-1", "0.0", "1\n", "NaN", "null", "\ud83d", "\ude00x", "\u2028", "\x85", "\r",
    "\x00", "\ufeff", "é" * 10, "{{ x }}", "{% if %}", "}}", "<extra_id_0>", "3ed2dface8203c4c9dfb1a5dc58e41e0", "x" * 5000,
    [], {}, [None], ["no", "yes"], ["no", None], ["a|||b", "c"], [["a"], {"b": 1}], {"k": "v"}, {"k": None}, {"k": {"k": 1}},
    {"": 1}, {"k": [1, "2", None]}, [float("nan")], ["\ud83d"], [10**30],
)  # fmt: skip
PYTHON_VALUES = (
    np.float32(1), np.int64(1), np.bool_(True), np.arange(3), np.array("x"), np.float64("nan"), np.datetime64("2020-01-01"),
    datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.timedelta(1), decimal.Decimal("1.0"),
    decimal.Decimal("NaN"), decimal.Decimal("1E+999"), b"x", b"\xff", (1, 2), {1, 2}, object(), 1j, {1: 2}, range(3), iter([1]),
)  # fmt: skip
COLUMNS = ("text", "label", "opts", "d", "more", "answer_choices", "", "a b", "range", "é")


@contextlib.contextmanager
def limit(seconds):
    """Ends what takes so much CPU time with an error; other work on the machine does not count."""

    def late(*_):
        raise TimeoutError(f"longer than {seconds} s")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Tally:
    """What became of the inputs of a test; any error but a `UserError` in one line is kept with its input."""

    def __init__(self, name):
        self.name, self.counts, self.failures = name, collections.Counter(), []

    def run(self, shown, action):
        try:
            with limit(SECONDS):
                outcome = action()
        except UserError as error:
            outcome = "refused"
            if len(str(error)) > 2000 or not str(error).strip():
                self.failures.append(f"{shown}: {len(str(error))} characters: {str(error)[:200]}")
        except BaseException:
            outcome = "failed"
            self.failures.append(f"{shown}: {traceback.format_exc(limit=-3)}")
        self.counts[outcome] += 1

    def check(self):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        shown = ", ".join(f"{count} {word}" for word, count in sorted(self.counts.items()))
        print(f"\n{self.name}, seed {SEED}: {shown}; peak {peak} MiB")
        assert not self.failures, "\n".join([f"{len(self.failures)} failures", *self.failures[:5]])


def odd_row(rng, values):
    row = {"text": "a kettle", "label": rng.choice((0, 1)), "opts": ["no", "yes"], "d": {"k": "v"}}
    for _ in range(rng.choice((0, 1, 1, 2))):
        row[rng.choice(COLUMNS)] = rng.choice(values)
    if rng.random() < 0.1:
        row.pop(rng.choice(list(row)))
    return row


def written(rng, folder, kind, rows):
    """The source of a dataset: what `kind` says, damaged now and then."""
    if kind == "rows":
        return {"train": rows}
    if kind == "function":
        return {"train": lambda: iter(rows)}
    path = folder / f"train.{kind}"
    if kind == "parquet":
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
            return {"train": rows}
        data = path.read_bytes()
    elif kind == "csv":
        table = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(table, names, restval="", lineterminator=rng.choice(("\n", "\r\n")))
        writer.writeheader()
        writer.writerows(rows)
        text = table.getvalue()
        data = text.encode("utf-8", "surrogatepass")
    else:
        end = rng.choice(("\n", "\r\n", "\n\n", "\r"))
        text = end.join(json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows) + end
        code = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
        errors = "surrogatepass" if code.startswith("utf") else "replace"
        data = text.encode(code, errors)
        data = gzip.compress(data) if kind.endswith("gz") else data
    if rng.random() < 0.3:
        data = damaged(rng, data)
    path.write_bytes(data)
    return str(folder)


def damaged(rng, data):
    """A byte changed, a part cut out, doubled or put in."""
    place = rng.randrange(len(data) + 1)
    other = rng.randrange(len(data) + 1)
    how = rng.randrange(5)
    if how == 0:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if how == 1:
        return data[:place]
    if how == 2:
        return data[: min(place, other)] + data[max(place, other) :]
    if how == 3:
        return data[:place] + data[min(place, other) : max(place, other)] + data[place:]
    odd = (b"[" * 5000, b"\x00", b"\xff\xfe", b'"', b"\xef\xbb\xbf", b"9" * 5000, b"{}", b"\x1a")
    return data[:place] + rng.choice(odd) + data[place:]


def use(name):
    """What lint and training do with a dataset's rows; the number of drops decides how it counts."""
    spec = get_dataset(name)
    rows = [json.loads(row) for row in labelled_payloads(name, "train", None).rows]
    dropped = 0
    for template in promptsource.load_templates(name).values():
        compiled = compile_template(template)
        for number, row in enumerate(rows):
            found = compiled.render(row, template_rng(0, template.name, number))
            dropped += not hasattr(found, "prompt")
        lint_template(spec, compiled, rows)
    return "used, with drops" if dropped else "used"


def test_rows_of_all_sources(tmp_path):
    rng = random.Random(SEED)
    tally = Tally("rows of all sources")
    for case in range(COUNT):
        kind = rng.choice(("jsonl", "jsonl.gz", "csv", "parquet", "rows", "function"))
        values = VALUES + PYTHON_VALUES if kind in ("rows", "function") else VALUES
        rows = [odd_row(rng, values) for _ in range(rng.choice((1, 2, 5)))]
        folder = tmp_path / str(case)
        folder.mkdir()
        how = rng.choice(
            ({}, {}, {"label_values": (0, 1)}, {"unlabelled": (-1,)}, {"label_in": "opts"})
        )
        chosen = rng.sample(TEMPLATES, 2)

        def action(folder=folder, kind=kind, rows=rows, how=how, chosen=chosen):
            source = written(rng, folder, kind, rows)
            add_dataset("odd", source, "label", chosen, **how)
            return use("odd")

        tally.run(f"case {case}, {kind}", action)
        own.forget("odd")
    tally.check()


def test_rows_of_the_catalogs_datasets(tmp_path):
    rng = random.Random(SEED + 1)
    tally = Tally("rows of the catalog's datasets in files")
    names = [*catalog.TRAINING, *catalog.EVALUATION]
    good = dict.fromkeys(names)
    for case in range(COUNT):
        name = rng.choice(names)
        split = next(iter(get_dataset(name).splits))
        if good[name] is None:
            good[name] = load_rows(name, split)[:20]
        row = json.loads(json.dumps(rng.choice(good[name])))
        for _ in range(rng.choice((0, 1, 2))):
            inside = row
            while rng.random() < 0.5:
                below = [v for v in inside.values() if isinstance(v, dict)]
                inside = rng.choice(below) if below else inside
            inside[rng.choice(list(inside) or ["x"])] = copy.deepcopy(rng.choice(VALUES))
        folder = tmp_path / str(case) / name.replace("/", "__")
        folder.mkdir(parents=True)

        def action(folder=folder, row=row, name=name, split=split):
            text = json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n"
            data = text.encode("utf-8", "surrogatepass")
            data = damaged(rng, data) if rng.random() < 0.2 else data
            (folder / f"{split}.jsonl").write_bytes(data)
            rows = labelled_payloads(name, split, str(folder.parent)).rows
            for template in promptsource.load_templates(name).values():
                if template.answer_choices:
                    compile_template(template).render(json.loads(rows[0]), template_rng(0, "t", 0))
            return "used"

        tally.run(f"case {case}, {name}", action)
    tally.check()


NUMBERS = ("0", "1", "-1", "2", "label", "10**9", "10**400", "999999", "1.5", "(text | length)")
TEXTS = (
    "text",
    "long",
    "'x'",
    "'%9999999d'",
    "'%s%s'",
    "'<!--'",
    "'\\ud800'",
    "''",
    "label | string",
    "' '",
)
LISTS = (
    "items",
    "numbers",
    "range(99999)",
    "range(10**9)",
    "[text, long]",
    "d",
    "zip(items, numbers)",
    "text",
)
METHODS = (
    "ljust", "center", "zfill", "expandtabs", "split", "rsplit", "strip", "replace", "join", "format", "count", "rfind",
    "index", "upper", "title", "encode", "translate", "splitlines", "partition", "casefold", "startswith", "items", "get",
    "__class__", "mro", "format_map", "pop", "append", "to_bytes", "copy", "keys",
)  # fmt: skip


def expression(rng, depth=0):
    deeper = depth < 3

    def any_one():
        return expression(rng, depth + 1) if deeper else rng.choice(NUMBERS + TEXTS + LISTS)

    kind = rng.randrange(10)
    if not deeper or kind < 2:
        return rng.choice(NUMBERS + TEXTS + LISTS)
    if kind < 4:
        operator = rng.choice(
            ("+", "*", "**", "%", "~", "-", "/", "//", "==", "in", "<", "and", "or")
        )
        return f"({any_one()} {operator} {any_one()})"
    if kind < 6:
        name = rng.choice(sorted(_filters()))
        arguments = ", ".join(any_one() for _ in range(rng.choice((0, 0, 1, 1, 2))))
        return f"({any_one()} | {name}({arguments}))"
    if kind < 8:
        arguments = ", ".join(any_one() for _ in range(rng.choice((0, 1, 1, 2))))
        return f"({any_one()}).{rng.choice(METHODS)}({arguments})"
    if kind == 8:
        return f"({any_one()})[{any_one()}]"
    return rng.choice((f"[{any_one()}, x]", f"{{'k': x, 'l': {any_one()}}}", f"(x, {any_one()})"))


def _filters():
    from flipped_tasks.rendering import _ENVIRONMENT

    return [name for name in _ENVIRONMENT.filters if " " not in name]


def hostile(rng):
    parts = ["{% set x = items %}{% set ns = namespace(x=text) %}"]
    for _ in range(rng.randrange(1, 5)):
        e = expression(rng)
        parts.append(
            rng.choice(
                (
                    f"{{% set x = {e} %}}",
                    f"{{% set x = {e} %}}" * 30,
                    f"{{% set x = [x, x] %}}{{% set ns.x = {e} %}}" * rng.choice((1, 30)),
                    f"{{% for a in {e} %}}{{{{ a }}}}{{% set ns.x = ns.x ~ a %}}{{% endfor %}}",
                    f"{{% for a in {e} %}}{{% for b in {e} %}}{{{{ b }}}}{{% endfor %}}{{% endfor %}}",
                    f"{{% if {e} %}}{{{{ {e} }}}}{{% endif %}}",
                    f"{{{{ {e} }}}}",
                )
            )
        )
    return "".join(parts) + " {{ x }} {{ ns.x }} {{text}} ?"


def test_hostile_templates():
    rng = random.Random(SEED + 2)
    tally = Tally("hostile templates")
    row = {
        "text": "a kettle", "label": 1, "items": ["red", "green"], "d": {"k": "v"}, "long": "ab <(" * 20_000,
        "numbers": list(range(1000)),
    }  # fmt: skip
    for case in range(COUNT):
        text = hostile(rng)
        in_choices = rng.random() < 0.2

        def action(text=text, in_choices=in_choices, case=case):
            body = "{{text}}?" if in_choices else text
            choices = f"no|||{text}" if in_choices else "no|||yes"
            spec = TemplateSpec(
                "hostile", str(case), f"{body} ||| {ANSWER}", choices, True, None, (), ""
            )
            found = compile_template.__wrapped__(spec).render(row, template_rng(0, "t", 0))
            return "rendered" if hasattr(found, "prompt") else "dropped"

        tally.run(text[:500], action)
    tally.check()


def test_odd_yaml():
    rng = random.Random(SEED + 3)
    tally = Tally("YAML of templates")
    values = (
        "true", "[no, yes]", "1", "null", "{a: b}", "2001-99-99", "!!int x", "&a [*a]", "*b", "0x" + "f" * 5000, "'x'", "[" * 999,
        "|\n   x", "!!python/name:os.system", "\ud83d", "\x00", "~", "{{text}} ||| {{label}}", "<<", "? x",
    )  # fmt: skip
    good = (
        "dataset: d\ntemplates:\n  k1: !Template\n    name: first\n    answer_choices: no ||| yes\n"
        '    jinja: "{{text}}? ||| {{answer_choices[label]}}"\n    metadata: !TemplateMetadata\n'
        "      metrics:\n      - Accuracy\n      original_task: true\n      choices_in_prompt: false\n    reference: ''\n"
    )
    lines = good.splitlines()
    for case in range(COUNT):
        changed = list(lines)
        for _ in range(rng.choice((0, 1, 2))):
            place = rng.randrange(len(changed))
            key = changed[place].partition(":")[0]
            changed[place] = (
                f"{key}: {rng.choice(values)}" if rng.random() < 0.7 else changed[place - 1]
            )
        text = "\n".join(changed)
        if rng.random() < 0.5:
            text = damaged(rng, text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")

        def action(text=text):
            for spec in promptsource.parse_templates(text, "d").values():
                compile_template.__wrapped__(spec)
            return "read"

        tally.run(f"case {case}", action)
    tally.check()


def test_commands_on_odd_rows(tmp_path, small_vocab_path):
    """`flipped tasks render` with and without token ids, `tasks lint` and `data prepare` on the same kind of files."""
    rng = random.Random(SEED + 4)
    tally = Tally("commands on odd files")
    for module in ("flipped_tasks.prepared.writing", "flipped_tasks.seqio_tasks"):
        importlib.import_module(module)  # importing TensorFlow is no work on an input
    for case in range(COUNT // 10):
        name = rng.choice(("imdb", "super_glue/rte", "quail", "qasc", "openbookqa/main"))
        split = "train"
        row = json.loads(json.dumps(load_rows(name, split)[case]))
        row[rng.choice(list(row))] = rng.choice(VALUES)
        data = json.dumps(row).encode() + b"\n"
        data = damaged(rng, data) if rng.random() < 0.2 else data
        folder = tmp_path / str(case) / name.replace("/", "__")
        folder.mkdir(parents=True)
        file = folder / f"{split}.jsonl"
        file.write_bytes(data)
        render = ["tasks", "render", "--dataset", name, "--all", "--rows", str(file)]
        commands = (
            render, [*render, "--vocab", small_vocab_path],
            ["tasks", "lint", name, "--data_dir", str(folder.parent)],
            ["data", "prepare", name, "--from", f"files:{folder.parent}", "--data_dir", str(tmp_path / f"out{case}")],
        )  # fmt: skip
        for command in commands:

            def action(command=command):
                found = CliRunner().invoke(main, command, catch_exceptions=False)
                assert found.exit_code in (0, 1, 2), found.output
                assert found.exit_code != 2 or found.output.count("error: ") == 1, found.output
                return f"exit code {found.exit_code}"

            tally.run(f"case {case}: {command}", action)
    tally.check()
