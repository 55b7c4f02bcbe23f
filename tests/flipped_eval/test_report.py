"""The report: its JSON's rows, its page's safety and self-containment, its text."""

from __future__ import annotations

import html.parser
import json
import re

import pytest

from flipped_errors import UserError
from flipped_eval.report import write_report
from flipped_eval.report.content import collect, read_training

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


def results(method="direct", rows=None, data="files", shown=(), dropped=None):
    return {
        "format": 1,
        "run": {"label": method, "method": "direct", "data": data, "seed": 0, "weights": method},
        "bootstrap": {"confidence": 0.95, "resamples": 100, "unit": "example"},
        "results": rows or [row(method, template="a"), row(method), row(method, task=None)],
        "counts": [
            {"suite": "nlp14", "task": "cb", "template": "a", "label_set": "original", "dataset": "super_glue/cb",
             "split": "validation", "rows": 25, "scored": 20, "dropped": dropped or {"unlabelled": 5},
             "inputs_cut": 1, "targets_cut": 0, "ties": 2}
        ],
        "dropped": dropped or {"unlabelled": 5},
        "shown": list(shown),
    }  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory, small_vocab_path):
    """The report of two short jobs on the embedded world, with a log of training."""
    from flipped_eval import jobs

    from .conftest import HashScorer

    folder = tmp_path_factory.mktemp("report")
    for number, method in enumerate(("direct", "flipped")):
        jobs.evaluate(
            method=method, suites=["labels", "nlp14"], output_dir=str(folder / method), vocab_path=small_vocab_path,
            params={"w": number * 1.0}, scorer=HashScorer(number), max_examples_per_task=8, resamples=50,
            announce=lambda line: None,
        )  # fmt: skip
    (folder / "train").mkdir()
    lines = [
        {"step": step, "loss": 3 / step, "loss_lm": 2 / step, "loss_ul": 1 / step}
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

    void = {"meta", "link", "br", "hr", "img", "input"}

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
        "suite": "nlp14", "task": EVIL, "template": EVIL, "inputs": EVIL, "targets": EVIL,
        "choices": [EVIL, "no"], "correct": 0,
    }  # fmt: skip
    rows = [
        row(EVIL, EVIL, EVIL), row(EVIL, EVIL), row(EVIL, None),
        row(EVIL, EVIL, EVIL, metric="macro_f1", suite="labels", label_set=EVIL),
        row(EVIL, EVIL, metric="macro_f1", suite="labels", label_set=EVIL),
        row(EVIL, EVIL, metric="macro_f1", suite="labels", label_set="all substitutes", label_sets=1),
        row(EVIL, None, metric="macro_f1", suite="labels", label_set="all substitutes", label_sets=1),
    ]  # fmt: skip
    one = results(EVIL, rows, shown=[shown], dropped={EVIL: 3})
    one["counts"][0]["task"] = EVIL
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    )
    write_report([one], tmp_path, {EVIL: tmp_path / "train"}, title=EVIL, extra={"note": EVIL})
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1 and not page.open
    assert '<script>alert("x")' not in text and "55419" not in text
    assert "&lt;script&gt;alert" in text and "{{ 7917*7 }}" in text
    prose, *_ = (tmp_path / "report.md").read_text().split("## Configuration")
    assert "<script>" not in prose
    lines = [line for line in prose.splitlines() if line.startswith("|")]
    assert (
        len({line.count(" | ") for line in lines if "alert" in line and "direct" not in line}) <= 3
    )


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
    other["run"]["seed"] = 1
    write_report([one, other], tmp_path)
    assert "The runs differ in seed" in (tmp_path / "report.md").read_text()


def test_published_figures_are_marked_as_published(tmp_path):
    write_report([results()], tmp_path)
    assert "Published figures, not measured here" in (tmp_path / "report.html").read_text()
    published = json.loads((tmp_path / "report.json").read_text())["published"]
    assert "+6.38 points" in {figure["value"] for figure in published["figures"]}


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
