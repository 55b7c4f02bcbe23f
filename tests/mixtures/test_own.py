"""A dataset of one's own: the worked example through all methods, other sources, entry points, mistakes."""

import importlib.metadata
import itertools
import json
import pathlib
import re
import sys

import pytest
import seqio

from flipped_core.errors import UserError
from flipped_tasks import datasets, seqio_tasks
from flipped_tasks.batches import batches
from flipped_tasks.methods import METHODS
from mixtures import modules, own
from mixtures.own import Template, add_dataset, add_to_mixture, forget
from mixtures.registration import mixture_rates, register, register_named

pytestmark = pytest.mark.usefixtures("own_datasets")
EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "own_dataset"
LENGTHS = {"inputs": 64, "targets": 64}
ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(8)]
ASK = Template("ask", "{{text}} Is it odd?", "{{answer_choices[label]}}", ("no", "yes"))


def ids_of(name, count=3, **how):
    found = batches(name, LENGTHS, 8, 1, **how)
    return [i.decode() for batch in itertools.islice(found, count) for i in batch["example_ids"]]


def test_the_worked_example_has_at_most_20_lines_and_serves_all_methods(small_vocab_path):
    file = EXAMPLE / "kettle_tasks.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 20
    modules.load([str(file)])
    assert own.added() == {"kettles": 2000.0}
    for method in METHODS:
        name = register_named(f"{method}.kettles", vocab_path=small_vocab_path)
        found = ids_of(name)
        assert {i.split("/")[3] for i in found} == {"content", "keep"}
        assert {int(i.split("/")[2]) for i in found} == set(range(8))
        one = register_named(f"{method}.kettles.keep", vocab_path=small_vocab_path)
        assert {i.split("/")[3] for i in ids_of(one, split="validation")} == {"keep"}
    (found,) = seqio_tasks.mixture_counts("direct.kettles")
    assert (found.rows, found.unlabelled, found.is_warned) == (9, {"unlabelled": 1}, True)


def test_it_is_mixed_into_the_recipe_at_its_rate(small_vocab_path):
    modules.load([str(EXAMPLE / "kettle_tasks.py")])
    register_named("flipped_train", vocab_path=small_vocab_path)
    mixture = seqio.get_mixture_or_task("flipped_train")
    assert len(mixture.tasks) == 21
    assert mixture.get_rate(seqio.TaskRegistry.get("flipped.kettles")) == 2000


def test_other_sources_other_templates_and_a_mixture_of_ones_own(small_vocab_path):
    modules.load([str(EXAMPLE / "kitchen_tasks.py")])
    for method in METHODS:
        name = register_named(f"{method}_kitchen", vocab_path=small_vocab_path)
        found = ids_of(name, 40)
        share = {n: sum(i.startswith(n + "/") for i in found) / 320 for n in own.added("kitchen")}
        for dataset, expected in {"kettle_pairs": 0.3, "kettle_parts": 0.2, "sums": 0.5}.items():
            assert abs(share[dataset] - expected) < 4 * (0.25 / 320) ** 0.5, share
    templates = {i.split("/")[3] for i in found if i.startswith("kettle_pairs/")}
    assert templates == set(datasets.usable_templates("glue/mrpc", "flipped"))
    by_template = register_named("direct_kitchen_by_template", vocab_path=small_vocab_path)
    assert len(seqio.get_mixture_or_task(by_template).tasks) == 5 + 1 + 1


def test_csv_is_a_source(tmp_path, small_vocab_path):
    """The label column is a number where it looks like one; other cells are text unless `columns` says else."""
    lines = ["text,count,label", '"one, and ""two""",007,1', "three,8,", "four,9,0", "five,10,1"]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    ask = Template(
        "ask", "{{text}} {{count}} Is it odd?", "{{answer_choices[label]}}", ("no", "yes")
    )
    add("mine", tmp_path, templates=[ask])
    rows = [json.loads(row) for row in datasets.get_dataset("mine").rows.payloads("train")]
    assert rows[0] == {"text": 'one, and "two"', "count": "007", "label": 1}
    assert [row["label"] for row in rows] == [1, None, 0, 1]
    found = ids_of(register_named("flipped.mine", vocab_path=small_vocab_path))
    assert {i.split("/")[2] for i in found} == {"0", "2", "3"}
    columns = {"text": "string", "count": "int", "label": "int"}
    add("typed", {"train": tmp_path / "train.csv"}, templates=[ask], columns=columns)
    payloads = datasets.get_dataset("typed").rows.payloads("train")
    assert json.loads(payloads[0])["count"] == 7
    (tmp_path / "train.csv").write_text("text,count,label\na,b,1\n")
    with pytest.raises(UserError, match="line 2: column 'count': expected a whole number, got 'b'"):
        datasets.get_dataset("typed").rows.payloads("train")


def test_a_name_that_is_given_again_has_its_new_rows(small_vocab_path):
    sizes = []
    for count in (8, 4):
        add(source={"train": ROWS[:count]})
        name = register_named("direct.mine", vocab_path=small_vocab_path)
        sizes.append(len({i.split("/")[2] for i in ids_of(name)}))
        own.forget("mine")
    assert sizes == [8, 4]


def test_words_are_labels_in_csv_too(tmp_path, small_vocab_path):
    (tmp_path / "train.csv").write_text("text,kind\na film,good\nb film,bad\n")
    plain = Template("kind", "{{text}} Good or bad?", "{{kind}}", ("good", "bad"))
    add("mine", tmp_path, label="kind", templates=[plain], label_values=("good", "bad"))
    assert len(ids_of(register_named("direct.mine", vocab_path=small_vocab_path))) == 24


def test_templates_are_left_out_on_demand(small_vocab_path):
    own.exclude_templates({"qasc": ["is_correct_2"], "imdb": ["Movie Expressed Sentiment"]})
    for method in METHODS:
        assert "is_correct_2" not in datasets.usable_templates("qasc", method)
    assert len(datasets.usable_templates("imdb", "direct")) == 9
    name = register_named("direct.qasc", vocab_path=small_vocab_path)
    assert len({i.split("/")[3] for i in ids_of(name, 12)}) == 7
    with pytest.raises(UserError, match="is not used for direct: left out"):
        datasets.check_template("qasc", "is_correct_2", "direct")
    own.forget_all()
    assert "is_correct_2" in datasets.usable_templates("qasc", "direct")


@pytest.mark.parametrize(
    "templates, told",
    [
        ({"qacs": ["x"]}, "unknown dataset 'qacs'; nearest: 'qasc'"),
        (
            {"qasc": ["is_correct_3"]},
            "unknown template of qasc 'is_correct_3'; nearest: 'is_correct_",
        ),
        ({"qasc": "is_correct_2"}, "'qasc': expected a list, got 'is_correct_2'"),
        (["qasc"], r"expected {dataset: \[template, …\]}, got \['qasc'\]"),
    ],
)
def test_mistakes_in_what_is_left_out(templates, told):
    with pytest.raises(UserError, match=told):
        own.exclude_templates(templates)


@pytest.mark.parametrize("name", ["flipped.mine", "direct_mix_by_template"])
def test_a_dataset_without_a_template_left_is_an_error(small_vocab_path, name):
    add()
    add_to_mixture("mix", "mine", 1)
    own.exclude_templates({"mine": ["ask"]})
    with pytest.raises(UserError, match="'mine' has no template left that (flipped|direct) can"):
        register_named(name, vocab_path=small_vocab_path)


def test_a_module_runs_once_and_the_current_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "lone_tasks.py").write_text(
        "from mixtures.own import Template, add_dataset\n"
        "add_dataset('lone', {'train': [{'a': 1}]}, 'a', [Template('t', '{{a}}?', 'x', ('x', 'y'))])\n"
    )
    monkeypatch.chdir(tmp_path)
    modules.load(["lone_tasks"])
    modules.load(["lone_tasks"])
    assert own.own_datasets() == ["lone"]


def test_an_installed_package_brings_tasks_by_its_entry_point(monkeypatch):
    calls = []

    class Point:
        name, value = "mine", "mine.tasks:register"

        def load(self):
            return lambda: calls.append(add_dataset("brought", {"train": ROWS}, "label", [ASK]))

    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [Point()] if group == modules.GROUP else [],
    )
    modules.load()
    modules.load()
    assert len(calls) == 1 and own.own_datasets() == ["brought"]


def test_a_real_entry_point_is_found(tmp_path, monkeypatch):
    about = tmp_path / "kettle_package-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kettle-package\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[flipped_learning.tasks]\nk = kettle_package_tasks\n")
    (tmp_path / "kettle_package_tasks.py").write_text(
        "from mixtures.own import Template, add_dataset\n"
        "add_dataset('packed', {'train': [{'a': 1}]}, 'a', [Template('t', '{{a}}?', 'x', ('x', 'y'))])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    modules.load()
    assert "packed" in own.own_datasets()


@pytest.mark.parametrize(
    "text, told",
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*broken.py, line 1\)"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_module_that_fails_is_told_in_a_line(tmp_path, text, told):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        modules.load([str(tmp_path / "broken.py")])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is none at"):
        modules.load([str(tmp_path / "absent.py")])


def add(name="mine", source=None, label="label", templates=(ASK,), **more):
    return add_dataset(
        name, {"train": ROWS} if source is None else source, label, templates, **more
    )


def test_registering_twice_is_an_error():
    add()
    with pytest.raises(
        UserError, match="'mine' cannot be registered: 'mine' is registered already"
    ):
        add()
    for taken in ("imdb", "super_glue/rte", "super glue rte"):
        with pytest.raises(UserError, match="is registered already; expected another name"):
            add(taken)


@pytest.mark.parametrize(
    "templates, told",
    [
        ([Template("t", "{{text}}?", "x", ())], "template 't' of mine has no choices"),
        ([Template("t", "{{text}}?", "x", "")], "template 't' of mine has no choices"),
        ([], "expected at least one, got none"),
        ([ASK, ASK], "template 'ask' of mine: expected names that differ"),
        ([Template("t", "{% if %}", "x", ("a", "b"))], "template 't' of mine, line 1"),
        (["text"], r"expected Template\(…\), got 'text'"),
        ("glue/mrcp", "nearest: 'glue/mrpc'"),
        ("xsum", "no template of 'xsum' has choices"),
        ("absent.yaml", "cannot read 'absent.yaml'"),
        ([Template("t", "{{text}}?", "x", (1, 2))], r"template 't' of mine: choices: .*\(1, 2\)"),
        ([Template("t", "{{text}}?", "x", {"a", "b"})], "template 't' of mine: choices"),
        ([Template("t", "{{text}}?", "x", True)], "template 't' of mine: choices: .*got True"),
        ([Template("t", "{{text}}?", "x", ("a",))], "template 't' of mine: choices: expected at"),
        ([Template("t", "{{text}}?", "x", ("a", "a "))], "none empty and no two alike"),
        ([Template("t", "{{text}}?", "x", "a ||| ")], "none empty and no two alike"),
        ([Template(1, "{{text}}?", "x", ("a", "b"))], "template 1 of mine: name: expected a text"),
        ([Template("t", None, "x", ("a", "b"))], "template 't' of mine: prompt: expected a text"),
        ([Template("t", "{{text}}?", 1, ("a", "b"))], "template 't' of mine: target: expected a"),
        ([Template(" ", "{{text}}?", "x", ("a", "b"))], "template ' ' of mine: name: expected"),
        ([Template("\ud83d", "{{text}}?", "x", ("a", "b"))], r"'\\ud83d' of mine: name: expected"),
        ({"t": "x"}, r"templates: expected a list of Template\(…\)"),
    ],
)
def test_bad_templates_are_refused(templates, told):
    with pytest.raises(UserError, match=told) as caught:
        add(templates=templates)
    assert "\n" not in str(caught.value) and "mine" not in datasets.dataset_names()


def test_a_yaml_template_without_choices_is_refused(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("templates:\n  1:\n    name: open\n    jinja: '{{text}} ||| {{label}}'\n")
    with pytest.raises(UserError, match="template 'open' of mine has no choices"):
        add(templates=file)


def test_a_label_column_that_does_not_exist_is_named_with_the_nearest(small_vocab_path):
    with pytest.raises(UserError, match="label_column: .* got 'lable'; nearest: 'label'"):
        add(label="lable", columns={"text": "string", "label": "int"})
    add(label="lable")
    with pytest.raises(UserError, match="row 1: missing column 'lable'.*nearest: 'label'"):
        ids_of(register_named("direct.mine", vocab_path=small_vocab_path))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "3", True])
def test_a_rate_is_above_0(rate):
    add()
    with pytest.raises(UserError, match="dataset 'mine': rate: expected a number above 0"):
        add_to_mixture("train", "mine", rate)
    assert own.added() == {}


def test_mistakes_with_mixtures_and_names(small_vocab_path):
    add()
    add_to_mixture("train", "mine", 3)
    with pytest.raises(UserError, match="mixture 'train' has dataset 'mine' already"):
        add_to_mixture("train", "mine", 3)
    with pytest.raises(UserError, match="mixture 'train' has dataset 'imdb' already"):
        add_to_mixture("train", "imdb", 3)
    with pytest.raises(UserError, match="unknown dataset 'mime'; nearest: 'mine'"):
        add_to_mixture("train", "mime", 3)
    with pytest.raises(UserError, match="mixture: expected letters"):
        add_to_mixture("my mix", "mine", 3)
    with pytest.raises(UserError, match="nearest: 'direct.mine'"):
        register_named("direct.mime", vocab_path=small_vocab_path)
    with pytest.raises(UserError, match="nearest: 'direct.mine.ask'"):
        register_named("direct.mine.aks", vocab_path=small_vocab_path)
    with pytest.raises(UserError, match="unknown mixture 'nome'"):
        register(vocab_path=small_vocab_path, mixture="nome")


@pytest.mark.parametrize(
    "source, told",
    [
        ("absent_folder", "source: expected a folder"),
        ({"train": "absent.jsonl"}, "source: expected a .*file, got 'absent.jsonl'"),
        ({"train": [3]}, "row 1: expected a dict of columns, got int"),
        ({"train": [{"label": object()}]}, "row 1: expected text, numbers"),
        ({"test": ROWS}, "unknown split"),
        ({"train": lambda: sys.exit(0)}, "source: after 0 rows: SystemExit: 0"),
    ],
)
def test_bad_sources_are_told_when_they_are_read(small_vocab_path, source, told):
    add(source=source)
    with pytest.raises(UserError, match=told):
        ids_of(register_named("direct.mine", vocab_path=small_vocab_path))


def test_the_readme_shows_the_worked_example():
    readme = (EXAMPLE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert (EXAMPLE / "kettle_tasks.py").read_text(encoding="utf-8") in readme


@pytest.mark.parametrize(
    "how, told",
    [
        ({"label_values": 2}, "label_values: expected a list, got 2"),
        ({"label_values": {0, 1}}, "label_values: expected a list"),
        ({"unlabelled": -1}, "unlabelled: expected a list, got -1"),
        ({"label": 3}, "label_column: expected the name of a column, got 3"),
        ({"label_values": [[0], [1]]}, r"label_values: expected texts and numbers, got \[0\]"),
        ({"unlabelled": None}, "unlabelled: expected a list, got None"),
        ({"label_in": 3}, "label_in: expected the name of a column, got 3"),
        ({"source": {}}, "source: expected at least one split, got none"),
        ({"columns": 3}, "columns: expected {column: type}, got 3"),
        ({"name": "a\ud83d"}, "dataset name: expected letters or digits"),
        ({"source": {"\ud83d": ROWS}}, "source: expected names of splits"),
        ({"columns": {"text": "float", "label": "int"}}, "column 'text': expected one of string,"),
    ],
)
def test_mistyped_arguments(how, told):
    with pytest.raises(UserError, match=told):
        add(**how)


def test_labels_in_csv_follow_the_values_that_may_occur(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1.0\nc,True\n")
    add(source=tmp_path, label_values=("0", "1.0", "True"))
    rows = [json.loads(row)["label"] for row in datasets.get_dataset("mine").rows.payloads("train")]
    assert rows == ["0", "1.0", "True"]
    add("other", tmp_path)
    rows = [
        json.loads(row)["label"] for row in datasets.get_dataset("other").rows.payloads("train")
    ]
    assert rows == [0, 1, True]


def test_shares_are_of_all_examples_and_rates_divide_the_rest():
    for name in ("a", "b"):
        rows = [{"text": "x", "label": 0}]
        template = Template("t", "{{text}} Good?", "{{answer_choices[label]}}", ("no", "yes"))
        add_dataset(name, {"train": rows}, "label", [template])
    before = mixture_rates("train")
    add_to_mixture("train", "a", share=0.1)
    add_to_mixture("train", "b", share=0.3)
    rates = mixture_rates("train")
    total = sum(rates.values())
    assert rates["a"] / total == pytest.approx(0.1) and rates["b"] / total == pytest.approx(0.3)
    assert {name: rates[name] for name in before} == before
    forget("a")
    assert "a" not in mixture_rates("train")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "expected either rate or share, got neither"),
        ({"rate": 1, "share": 0.1}, "expected either rate or share, got both"),
        ({"share": 0}, "share: expected a number between 0 and 1, got 0"),
        ({"share": 1}, "share: expected a number between 0 and 1, got 1"),
        ({"share": True}, "share: expected a number between 0 and 1, got True"),
        (
            {"share": 0.5},
            "share: expected shares whose sum is below 1, got 1.1 with those of the other",
        ),
    ],
)
def test_shares_that_cannot_be_meant(how, message):
    add_to_mixture("mine", "imdb", share=0.6)
    with pytest.raises(UserError, match=re.escape(message)):
        add_to_mixture("mine", "rotten_tomatoes", **how)


def test_a_mixture_of_shares_only_has_nobody_for_the_rest():
    add_to_mixture("mine", "imdb", share=0.6)
    with pytest.raises(UserError, match="expected at least one dataset with a rate"):
        mixture_rates("mine")
    add_to_mixture("mine", "rotten_tomatoes", rate=7)
    assert mixture_rates("mine") == {"rotten_tomatoes": 7, "imdb": pytest.approx(10.5)}
