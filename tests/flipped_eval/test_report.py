"""The report: its JSON's rows, its page's safety and self-containment, its text."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import re
import shutil

import pytest
import scipy.stats
from markdown_it import MarkdownIt

from flipped_cli.report_command import report as report_command
from flipped_core.errors import UserError
from flipped_eval import results as stored
from flipped_eval.report import answer, published, tables, write_report
from flipped_eval.report.content import collect, read_training
from flipped_eval.report.tables import points

EVIL = '<script>alert("x")</script> & {{ 7917*7 }} | `x`'


def row(
    method="direct", task="cb", template=None, value=0.5, metric="accuracy", suite="nlp14", **more
):
    base = {
        "method": method, "form": "direct", "suite": suite, "task": task, "template": template,
        "label_set": "original", "metric": metric, "value": value, "chance": 0.4, "majority": 0.45,
        "low": value - 0.1, "high": value + 0.1, "n": 20,
    }  # fmt: skip
    if template is None:
        base |= {"median": value, "min": value, "max": value, "std": 0.0}
        base |= {"templates": 1} if task else {"tasks": 1}
    return base | more


def results(method="direct", rows=None, data="files", dropped=None):
    return {
        "format": 2,
        "request": {"data": data, "seed": 0},
        "runs": [{"label": method, "method": "direct", "weights": method}],
        "bootstrap": {"confidence": 0.95, "resamples": 100},
        "results": rows or [row(method, template="a"), row(method), row(method, task=None)],
        "counts": [
            {"method": method, "suite": "nlp14", "task": "cb", "template": "a", "label_set": "original",
             "dataset": "super_glue/cb", "split": "validation", "data": "1", "rows": 25, "scored": 20,
             "dropped": dropped or {"unlabelled": 5}, "inputs_cut": 1, "targets_cut": 0, "ties": 2,
             "several_correct": 0, "duplicate_choices": 0, "same_ids": 3,
             "confusion": {"words": ["yes", "no"], "matrix": [[7, 3], [1, 9]]}}
        ],
        "dropped": dropped or {"unlabelled": 5},
        "comparisons": [],
        "not_run": [],
    }  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory, small_vocab_path):
    """The report of two short jobs on the embedded world, with a log of training."""
    from .conftest import evaluate

    folder = tmp_path_factory.mktemp("report")
    job = {"suites": ["labels", "nlp14"], "max_examples": 8, "resamples": 50}
    evaluate(folder / "direct", small_vocab_path, weights=0, method="direct", **job)
    evaluate(folder / "flipped", small_vocab_path, weights=1, method="flipped", **job)
    (folder / "train").mkdir()
    lines = [
        {
            "step": step,
            "loss": 3 / step,
            "loss_lm": 2 / step,
            "loss_ul": 1 / step,
            "examples_by_dataset": {"imdb": 3, "kettles": 1},
        }
        for step in range(1, 100)
    ]
    (folder / "train" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "train" / "run.json").write_text('{"optimizer": "adafactor"}')
    write_report(
        [folder / "direct", folder / "flipped"], folder / "out", {"flipped": folder / "train"}
    )
    return folder / "out"


class Page(html.parser.HTMLParser):
    """Collects tags and addresses, and whether every tag that is opened is closed."""

    void = {"meta", "link", "br", "wbr", "hr", "img", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "action", "data") and value
        ]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()


def test_json_has_the_rows_of_every_run_and_their_aggregates(real):
    report = json.loads((real / "report.json").read_text())
    needed = {
        "method",
        "suite",
        "task",
        "template",
        "metric",
        "value",
        "chance",
        "n",
        "low",
        "high",
    }
    assert all(needed <= set(each) for each in report["results"])
    assert report["methods"] == ["direct", "flipped"] and report["made_up_data"] is True
    for method in report["methods"]:
        of_suite = [
            each for each in report["results"]
            if (each["method"], each["suite"], each["metric"], each["task"]) == (method, "nlp14", "accuracy", None)
        ]  # fmt: skip
        assert [each["tasks"] for each in of_suite] == [14]
    tasks = [
        each for each in report["results"]
        if each["suite"] == "nlp14" and each["metric"] == "accuracy" and each["method"] == "direct"
        and each["task"] and not each["template"]
    ]  # fmt: skip
    assert sum(each["value"] for each in tasks) / 14 == pytest.approx(
        next(
            each["value"] for each in report["results"]
            if each["suite"] == "nlp14" and each["task"] is None and each["metric"] == "accuracy"
        ), abs=1e-5,
    )  # fmt: skip
    assert report["configuration"]["training"] == {
        "flipped": {"run.json": {"optimizer": "adafactor"}}
    }
    assert report["counts"] and len(report["training"]["flipped"]) == 99
    assert all(0 <= each["value"] <= 1 for each in report["results"])


def test_training_examples_are_summed_by_dataset(real):
    assert "| imdb | 297 | 75.0% |\n| kettles | 99 | 25.0% |" in (real / "report.md").read_text()
    page = (real / "report.html").read_text()
    assert "Examples of each dataset: flipped" in page and '<td data-sort="297">297</td>' in page


def test_page_is_complete_in_itself(real):
    text = (real / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert "://" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1 and "img" not in page.tags


def test_pictures_have_titles_and_take_their_colours_from_the_page(real):
    text = (real / "report.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) >= 10
    for picture in pictures:
        assert 'role="img"' in picture and re.search(r"<title id=[^>]+>[^<]{20,}</title>", picture)
        assert re.search(r"<desc id=[^>]+>[^<]*\d\.\d[^<]*</desc>", picture)
        stated = set(re.findall(r"#[0-9a-f]{6}\b", picture))
        assert not stated, f"colours that do not follow light and dark: {stated}"


def test_page_says_that_the_data_is_made_up(real):
    for name in ("report.html", "report.md"):
        assert "Made-up data" in (real / name).read_text()


def test_page_of_real_data_does_not_say_so(tmp_path):
    write_report([results()], tmp_path)
    for name in ("report.html", "report.md"):
        assert "Made-up data" not in (tmp_path / name).read_text()
    assert json.loads((tmp_path / "report.json").read_text())["made_up_data"] is False


def test_the_same_results_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_report([results()], tmp_path / name)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_text_from_outside_is_escaped_everywhere(tmp_path):
    shown = {
        "method": EVIL, "suite": "nlp14", "task": EVIL, "template": EVIL, "inputs": EVIL, "targets": EVIL,
        "choices": [EVIL, "no"], "correct": 0,
    }  # fmt: skip
    wrong = shown | {"example": EVIL, "scores": [-2.0, -1.0], "predicted": 1, "lead": 1.0}
    missing = {
        "method": EVIL,
        "suite": EVIL,
        "task": EVIL,
        "template": EVIL,
        "label_set": "original",
    }
    missing |= {"why": EVIL, "whole_task": True}
    difference = {
        "first": EVIL, "second": EVIL, "suite": "nlp14", "task": None, "template": None, "label_set": "original",
        "metric": "accuracy", "n": 3, "difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.5,
    }  # fmt: skip
    rows = [
        row(EVIL, EVIL, EVIL), row(EVIL, EVIL), row(EVIL, None),
        row(EVIL, EVIL, EVIL, metric="macro_f1", suite="labels", label_set=EVIL),
        row(EVIL, EVIL, metric="macro_f1", suite="labels", label_set=EVIL),
        row(EVIL, EVIL, metric="macro_f1", suite="labels", label_set="all substitutes", label_sets=1),
        row(EVIL, None, metric="macro_f1", suite="labels", label_set="all substitutes", label_sets=1),
    ]  # fmt: skip
    one = results(EVIL, rows, dropped={EVIL: 3})
    one["counts"][0]["task"] = EVIL
    one["counts"][0]["confusion"]["words"] = [EVIL, "no"]
    one["comparisons"] = [difference, difference | {"task": EVIL, "p_adjusted": 1.0}]
    one["not_run"] = [missing]
    (tmp_path / "results.json").write_text(json.dumps(one))
    (tmp_path / "examples.json").write_text(json.dumps({"shown": [shown], "worst": [wrong]}))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    )
    write_report([tmp_path], tmp_path, {EVIL: tmp_path / "train"}, title=EVIL, extra={"note": EVIL})
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1 and not page.open
    assert '<script>alert("x")' not in text and "55419" not in text
    assert "&lt;script&gt;alert" in text and "{{ 7917*7 }}" in text
    prose, *_ = (tmp_path / "report.md").read_text().split("## Configuration")
    assert "<script>" not in prose
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(prose)
    kinds = {one.type for block in blocks for one in (block, *(block.children or ()))}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "code_inline", "s_open"}
    for table in re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE):
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines


def test_runs_with_one_name_are_averaged_and_their_range_is_given(tmp_path):
    report = write_report(
        [results(rows=[row(value=0.4, template="a"), row(value=0.4), row(task=None, value=0.4)]),
         results(rows=[row(value=0.7, template="a"), row(value=0.7), row(task=None, value=0.7)])],
        tmp_path,
    )  # fmt: skip
    found = report.row("direct", "nlp14", None, "accuracy")
    assert (found["value"], found["runs"], found["run_min"], found["run_max"]) == (
        0.55,
        2,
        0.4,
        0.7,
    )
    assert "2 runs" in (tmp_path / "report.html").read_text()


def test_methods_stand_in_the_order_of_the_recipe():
    names = ["flipped_no_ul", "flipped", "zebra", "untrained", "direct"]
    found = collect([results(name) for name in names]).methods
    assert found == ("untrained", "direct", "flipped", "flipped_no_ul", "zebra")


def test_mean_over_fewer_tasks_says_so(tmp_path):
    write_report([results()], tmp_path)
    assert "Mean accuracy over 1 of the 14 unseen tasks" in (tmp_path / "report.html").read_text()


def test_runs_that_differ_in_more_than_the_method_are_pointed_out(tmp_path):
    one, other = results("direct"), results("flipped")
    other["request"]["seed"] = 1
    write_report([one, other], tmp_path)
    assert "The runs differ in seed" in (tmp_path / "report.md").read_text()


PUBLISHED = "Published figures, not measured here"


def test_published_figures_stand_folded_beside_their_suite(tmp_path):
    write_report([results()], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count(PUBLISHED) == 1
    section = text[text.index('<section id="nlp14">') :]
    section = section[: section.index("</section>")]
    assert f"<details><summary>{PUBLISHED}" in section
    assert "+6.38 points" in section and "+1.19" not in text  # that is BIG-bench's
    assert (
        "T0-3B, published" in section and "48.81" in section and "75.13" not in section
    )  # cb, not copa
    assert "arXiv 2305.14045" in section and "arXiv 2210.02969" in section
    assert PUBLISHED in (tmp_path / "report.md").read_text()


def test_made_up_data_stand_beside_no_published_figures(tmp_path):
    write_report([results(data="embedded")], tmp_path)
    for name in ("report.html", "report.md"):
        assert PUBLISHED not in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("label", "form", "reproduced"),
    [
        ("FLIPPED-3B", "flipped", True),
        ("flipped_3B", "flipped", True),
        ("FLIPPED-3B", "direct", False),
        ("mine", "flipped", False),
    ],
)
def test_a_published_model_is_compared_with_its_figures(tmp_path, label, form, reproduced):
    rows = [
        row(label, "cb", value=0.60, low=0.55, high=0.65),
        row(label, "rte", value=0.50, low=0.45, high=0.55),
        row(label, "piqa", value=0.9),  # without a published figure
        row(label, None, value=0.6667),
    ]
    found = results(label, rows)
    found["runs"][0]["method"] = form
    report = collect([found])
    sentences = [one.sentence() for one in published.reproductions(report)]
    expected = (
        f"{label} against the published FLIPPED-3B, mean over 2 tasks: 55.0 measured, 64.4 published, difference "
        "−9.4 points; the published figure lies in the 95% interval of 1 of 2 tasks."
    )
    assert sentences == ([expected] if reproduced else [])
    write_report([found], tmp_path)
    for name in ("report.html", "report.md"):
        assert (expected in (tmp_path / name).read_text().replace("\\", "")) == reproduced


def test_a_published_model_is_known_by_the_name_of_its_checkpoint():
    report = collect([results("a", [row("a", "cb"), row("a", None)])])
    known = {"a": {"checkpoint": "hf://bigscience/T0_3B@0123456789abcdef0123456789abcdef01234567"}}
    report = dataclasses.replace(report, checkpoints=known)
    assert [one.model for one in published.reproductions(report)] == ["T0-3B"]


def test_bold_marks_nothing_that_is_not_above_chance():
    rows = [row(method, "cb", value=value) for method, value in (("a", 0.45), ("b", 0.3))]
    means = [
        dict(one, task=None, tasks=1) for one in rows
    ]  # the best interval is 0.35 to 0.55, chance 0.4
    report = collect([results("a", [rows[0], means[0]]), results("b", [rows[1], means[1]])])
    cells = [cell for line in tables.tasks_table(report, "nlp14") for cell in line.cells]
    assert not any(cell.best for cell in cells)
    rows[0] |= {"low": 0.41}
    means[0] |= {"low": 0.41}
    report = collect([results("a", [rows[0], means[0]]), results("b", [rows[1], means[1]])])
    assert [cell.best for cell in tables.tasks_table(report, "nlp14")[1].cells] == [True, False]


@pytest.mark.parametrize(("low", "bold"), [(0.3, False), (0.45, True)])
def test_a_small_drop_is_not_bold_where_there_was_nothing_to_lose(low, bold):
    def rows(method, drop):
        found = []
        for task, label_set in itertools.product(("cb", None), ("original", "all substitutes")):
            one = row(
                method,
                task,
                value=0.5,
                low=low,
                metric="macro_f1",
                suite="labels",
                label_set=label_set,
            )
            if label_set != "original":
                one |= {"drop": drop, "drop_low": drop - 0.1, "drop_high": drop + 0.1}
            found.append(one)
        return found

    both = [results("a", rows("a", 0.0)), results("b", rows("b", 0.2))]
    drops = tables.drops_table(collect(both))
    assert [cell.best for cell in drops[0].cells] == [bold, False]


def test_a_number_without_interval_is_shown_without_one(tmp_path):
    rows = [
        row(template="a", low=None, high=None),
        row(low=None, high=None),
        row(task=None, low=None, high=None),
    ]
    write_report([results(rows=rows)], tmp_path)
    assert "95% interval None" not in (tmp_path / "report.html").read_text()


def test_training_log_may_end_in_a_line_that_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 1, "loss": 3}\n{"st')
    assert [record["loss"] for record in read_training(tmp_path)["records"]] == [3, 1]
    path.write_text('{"st\n{"step": 2, "loss": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        read_training(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        write_report([], tmp_path)
    with pytest.raises(UserError, match="results.json"):
        write_report([tmp_path / "nothing"], tmp_path)
    with pytest.raises(UserError, match="metrics.jsonl"):
        write_report([results()], tmp_path, {"direct": tmp_path / "nothing"})
    assert not (tmp_path / "report.html").exists()


def test_summary_is_a_line_for_chance_and_for_each_method():
    found = collect(
        [
            results("direct"),
            results("untrained", rows=[row("untrained", task=None, low=None, high=None)]),
        ]
    )
    assert found.summary().splitlines() == [
        "mean, %    Unseen tasks, accuracy",
        "chance     40.0",
        "untrained  50.0",
        "direct     50.0 (40.0 to 60.0)",
    ]


def test_differences_between_folders_are_paired(real):
    report = json.loads((real / "report.json").read_text())
    suites = {row["suite"] for row in report["comparisons"] if row["task"] is None}
    assert suites == {"labels", "nlp14"}
    mean = next(
        row for row in report["comparisons"]
        if (row["suite"], row["task"], row["metric"]) == ("nlp14", None, "accuracy")
    )  # fmt: skip
    values = {
        row["method"]: row["value"] for row in report["results"]
        if (row["suite"], row["task"], row["metric"]) == ("nlp14", None, "accuracy")
    }  # fmt: skip
    assert (mean["first"], mean["second"]) == ("direct", "flipped")
    assert mean["difference"] == pytest.approx(values["flipped"] - values["direct"], abs=1e-5)
    assert "Do the methods differ?" in (real / "report.html").read_text()
    assert "## Differences" in (real / "report.md").read_text()


def test_the_answer_about_renamed_labels_comes_first(real):
    page, text = (real / "report.html").read_text(), (real / "report.md").read_text()
    assert page.index('id="answer"') < page.index('id="headline"')
    assert text.index(answer.QUESTION) < text.index("## Means")
    report = json.loads((real / "report.json").read_text())
    drops = {
        row["method"]: row["drop"] for row in report["results"]
        if (row["suite"], row["task"], row["metric"]) == ("labels", None, "macro_f1") and "drop" in row
    }  # fmt: skip
    less = (
        "FLIPPED loses less than DIRECT"
        if drops["flipped"] < drops["direct"]
        else "FLIPPED loses no less"
    )
    assert less in page
    for drop in drops.values():
        assert points(-drop) in page


def test_without_renamed_labels_there_is_no_such_question(tmp_path):
    write_report([results()], tmp_path)
    assert 'id="answer"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("compare", "shown"),
    [
        (None, [("untrained", "direct"), ("untrained", "flipped"), ("untrained", "flipped_no_ul")]),
        (("direct", "flipped"), [("direct", "flipped")]),
    ],
)
def test_asked_pairs_or_those_with_the_first_run_are_shown_and_the_others_folded(compare, shown):
    labels = ("untrained", "direct", "flipped", "flipped_no_ul")
    both = [results(label) for label in labels]
    both[0]["comparisons"] = []
    report = collect(both)
    pairs = list(itertools.combinations(labels, 2))
    comparisons = [
        {"first": first, "second": second, "suite": "nlp14", "task": None, "template": None, "metric": "accuracy",
         "label_set": "original", "difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.01 * number, "n": 20}
        for number, (first, second) in enumerate(pairs, 1)
    ]  # fmt: skip
    report = dataclasses.replace(report, comparisons=comparisons, compare=compare)
    main = [(one.first, one.second) for one in tables.main_differences(report)]
    other = [(one.first, one.second) for one in tables.other_differences(report)]
    assert main == shown
    assert sorted(main + other) == sorted(pairs)
    ps = [one.p_value for one in tables.main_differences(report)]
    corrected = scipy.stats.false_discovery_control(ps)
    assert [one.adjusted for one in tables.main_differences(report)] == [
        f"{p:.3f}" for p in corrected
    ]


def test_the_page_shows_confusion_drops_and_the_worst_examples(real):
    text = (real / "report.html").read_text()
    for part in ('id="confusion"', 'id="worst"', "Drop from the original words", "example "):
        assert part in text
    report = json.loads((real / "report.json").read_text())
    assert {one["method"] for one in report["worst"]} == {"direct", "flipped"}
    drops = [row for row in report["results"] if row["suite"] == "labels" and "drop" in row]
    assert {row["label_set"] for row in drops} > {"all substitutes", "true_false"}


def test_two_versions_of_a_dataset_are_not_put_side_by_side(tmp_path):
    one, other = results("direct"), results("flipped")
    other["counts"][0]["data"] = "2"
    with pytest.raises(
        UserError, match="'flipped' was evaluated on another version of super_glue/cb"
    ) as error:
        write_report([one, other], tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


def test_what_could_not_be_run_is_said_at_the_top(tmp_path):
    one = results()
    missing = {"method": "direct", "suite": "nlp14", "task": "super_glue/wic", "template": "a"}
    one["not_run"] = [missing | {"label_set": "original", "why": "no rows", "whole_task": True}]
    one["results"][2]["tasks_missing"] = ["super_glue/wic"]
    write_report([one], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Not complete." in text and "wic (direct: no rows)" in text
    assert "1 task, 20 examples; without wic" in text
    assert "## Not run" in (tmp_path / "report.md").read_text()


def test_training_is_found_where_the_checkpoint_was_read(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "results.json").write_text(json.dumps(results()))
    run = {
        "request": {},
        "models": [],
        "checkpoints": {"direct": str(tmp_path / "train"), "other": "gone"},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert list(collect([tmp_path]).training) == ["train"]


def test_two_evaluations_of_one_training_run_share_its_curve(tmp_path):
    (tmp_path / "train" / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "results.json").write_text(json.dumps(results()))
    places = {"direct": tmp_path / "train", "flipped": tmp_path / "train" / "checkpoints" / "1"}
    checkpoints = {label: str(place) for label, place in places.items()}
    run = {"request": {}, "models": [], "checkpoints": checkpoints}
    (tmp_path / "run.json").write_text(json.dumps(run))
    report = collect([tmp_path])
    assert {name: run["labels"] for name, run in report.training.items()} == {
        "train": ["direct", "flipped"]
    }
    named = collect([tmp_path], {"mine": tmp_path / "train"})
    assert list(named.training) == ["mine"]


def test_points_have_a_sign():
    assert [points(value) for value in (0.0123, -0.05, 0.0, -0.0001)] == [
        "+1.2",
        "−5.0",
        "0.0",
        "0.0",
    ]


@pytest.mark.parametrize(
    "suite", ['x" onload="alert(1)"><script>', r"\1\g<0>", "a" * 5000, "(", "\n"]
)
def test_a_suite_from_outside_is_no_markup_in_the_pictures(tmp_path, suite):
    """Its name goes into the ids of the drawings, which are not made by the page's template."""
    rows = [row(suite=suite, template="a"), row(suite=suite), row(suite=suite, task=None)]
    write_report([results(rows=rows)], tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("script") == 1 and not page.open
    assert not re.search(r"<[^>]*onload=[^>]*>", re.sub(r'"[^"]*"', "", page_text(tmp_path)))


def page_text(folder):
    return (folder / "report.html").read_text()


def test_one_task_with_one_set_of_words_has_a_page(tmp_path, run_job):
    """The mean over all pairs is then one number, without a spread."""
    labels = tmp_path / "labels.yaml"
    labels.write_text(
        '[{dataset: super_glue/rte, template: MNLI crowdsource, words: ["Yes", "No"], sets: {x: ["A", "B"]}}]'
    )
    run_job(tmp_path / "out", suites=["labels"], label_sets=str(labels), resamples=20)
    write_report([tmp_path / "out"], tmp_path)
    assert "macro F1, mean over all 1 pairs" in page_text(tmp_path)


DAMAGED = {
    "nothing": b"", "garbage behind": None, "bytes": b"\xff\xfe", "deep": b"[" * 100_000, "a list": b"[]",
    "a number": b"7", "NaN": b'{"format": NaN}',
}  # fmt: skip


@pytest.mark.parametrize("name", ["results.json", "examples.json", "run.json"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_the_command_names_a_damaged_file_in_one_line(tmp_path, run_job, evaluated, name, damage):
    folder = shutil.copytree(evaluated, tmp_path / "out.v1")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data + b"{}" if DAMAGED[damage] is None else DAMAGED[damage])
    with pytest.raises(UserError, match=name) as told:
        report_command.callback((str(folder),), None, "title", None)
    assert "\n" not in str(told.value) and not (folder / "report.html").exists()


def test_a_changed_digit_in_results_is_no_new_number(tmp_path, evaluated):
    folder = shutil.copytree(evaluated, tmp_path / "out")
    data = (folder / "results.json").read_bytes()
    assert re.search(rb'"value": 0\.[1-8]', data)
    (folder / "results.json").write_bytes(
        re.sub(rb'("value": 0\.)[1-8]', rb"\g<1>9", data, count=1)
    )
    with pytest.raises(UserError, match="results.json: not what was written there: its content"):
        collect([folder])


def test_predictions_of_other_results_are_refused(tmp_path, evaluated):
    folder = shutil.copytree(evaluated, tmp_path / "out")
    path = folder / "predictions.jsonl"
    path.write_bytes(re.sub(rb'("predicted": \[.*?)0', rb"\g<1>1", path.read_bytes(), count=1))
    with pytest.raises(UserError, match="predictions.jsonl: not what was written there"):
        stored.predictions_of(folder)


@pytest.mark.parametrize(
    "field, value",
    [("value", 1.5), ("value", "x"), ("value", True), ("metric", "f1"), ("method", "nobody"), ("low", None), ("n", -1)],
)  # fmt: skip
def test_results_with_numbers_that_cannot_be_are_refused(tmp_path, field, value):
    """Whoever writes such a file by hand, in the older format without a checksum, gets field and value."""
    one = results()
    one["results"][1][field] = value
    (tmp_path / "results.json").write_text(json.dumps(one))
    with pytest.raises(UserError, match=r"results.json: .*results\[1\]"):
        collect([tmp_path])


def test_a_damaged_training_log_leaves_the_curves_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": "x"}\n{"step": 2, "loss": NaN}\n')
    (tmp_path / "results.json").write_text(json.dumps(results()))
    run = {"request": {}, "models": [], "checkpoints": {"direct": str(tmp_path / "train")}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert collect([tmp_path]).training == {}
    assert "without the training of train" in caplog.text and "metrics.jsonl, line 1" in caplog.text
    with pytest.raises(UserError, match="line 1"):
        collect([tmp_path], {"direct": tmp_path / "train"})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, small_vocab_path):
    """The folder of a small job."""
    from .conftest import evaluate

    folder = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate(folder, small_vocab_path, suites=["super_glue/rte:MNLI crowdsource"], resamples=20)
    return folder
