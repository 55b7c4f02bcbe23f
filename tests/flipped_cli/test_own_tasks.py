"""`flipped tasks new|render|lint` and `flipped mixtures show`, as a user types them."""

import collections
import json
import pathlib
import re

import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from mixtures import catalog
from mixtures.rates import dataset_rates

pytestmark = pytest.mark.usefixtures("own_datasets")
EXAMPLE = str(pathlib.Path(__file__).resolve().parents[2] / "examples/own_dataset/kettle_tasks.py")


def call(*words):
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def test_the_skeleton_works_at_once(tmp_path):
    made = call("tasks", "new", "my_reviews", "--folder", str(tmp_path))
    assert made.exit_code == 0, made.stderr
    module = tmp_path / "my_reviews.py"
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 20
    for words in (line.split()[1:] for line in made.stdout.splitlines()[1:]):
        result = call(*words)
        assert result.exit_code == 0, result.stderr
    rendered = call("tasks", "render", "--module", str(module), "--dataset", "my_reviews", "--all")
    cases = [json.loads(line) for line in rendered.stdout.splitlines()]
    assert [case["direct_target"] for case in cases] == ["yes", "no", "yes", "no"]
    assert all(case["flipped_target"] for case in cases)
    again = call("tasks", "new", "my_reviews", "--folder", str(tmp_path))
    assert again.exit_code == 2 and "exists already" in again.stderr
    bad = call("tasks", "new", "My-Reviews")
    assert bad.exit_code == 2 and "expected small letters" in bad.stderr


def test_a_training_run_on_a_mixture_with_ones_own_dataset(
    tmp_path, monkeypatch, capsys, small_vocab_path
):
    """`train.py`, two steps: modules are loaded, rates kept, a template left out; `eval.py` then reads that run."""
    import eval as evaluation
    import train
    from flipped_tasks import batches

    mix = tmp_path / "mix.py"
    mix.write_text(
        "from mixtures.own import add_to_mixture\n"
        "add_to_mixture('mine', 'kettles', 3)\nadd_to_mixture('mine', 'rotten_tomatoes', 1)\n"
    )
    met, read = [], batches.batches

    def noted(*args, **how):
        for batch in read(*args, **how):
            met.extend(i.decode() for i in batch["example_ids"])
            yield batch

    monkeypatch.setattr(batches, "batches", noted)
    model_dir = tmp_path / "run"
    words = {
        "MODEL_DIR": model_dir, "VOCAB_PATH": small_vocab_path, "MIXTURE_OR_TASK_NAME": "flipped_mine",
        "TASK_MODULES": [EXAMPLE, str(mix)], "EXCLUDE_TEMPLATES": {"kettles": ["keep"]},
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 32}, "BATCH_SIZE": 64, "TRAIN_STEPS": 2,
        "LOG_PERIOD": 1,
    }  # fmt: skip
    files = ("gin/models/demo.gin", "gin/recipes/flipped.gin", "gin/runs/train.gin")
    train.main(
        [f"--gin_file={file}" for file in files] + [f"--gin.{n}={v}" for n, v in words.items()]
    )
    lines = (model_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    recipe = json.loads((model_dir / "run.json").read_text(encoding="utf-8"))["recipe"]
    assert recipe["task_modules"] == [EXAMPLE, str(mix)]
    assert recipe["exclude_templates"] == {"kettles": ["keep"]}
    ours = [i for i in met[:128] if i.startswith("kettles/train/")]
    assert {i.split("/")[3] for i in ours} == {"content"}
    assert abs(len(ours) / 128 - 3 / 4) < 4 * (3 / 16 / 128) ** 0.5
    assert all(i.startswith("rotten_tomatoes/train/") for i in set(met[:128]) - set(ours))
    told = capsys.readouterr().out
    words_of_header = (
        "flipped_mine: 1 device (cpu), mesh data 1 × model 1", "64 examples per step, 2 steps: 128 examples",
        "starting from random parameters (seed 0)", "flipped_mine: complete: step 2 of 2",
        f"next: flipped eval --checkpoint {model_dir} --suite seen --output {model_dir}/eval --module {EXAMPLE}",
    )  # fmt: skip
    places = [told.index(text) for text in words_of_header]
    assert places == sorted(places), told
    assert re.search(r"kettles +8 +75.00% +96 +12\b", told), told
    by_dataset = collections.Counter()
    for line in lines:
        by_dataset.update(json.loads(line)["examples_by_dataset"])
    assert by_dataset == collections.Counter(i.split("/")[0] for i in met[:128])
    assert re.search(r"flipped.kettles ! +│ +9 │ +1 │ +\d+ │ +0 │ 1 unlabelled", told), told
    words = {
        "CHECKPOINT_PATH": str(model_dir), "SUITES": ["kettles"], "TASK_MODULES": [EXAMPLE],
        "EVAL_OUTPUT_DIR": str(tmp_path / "results"),
    }  # fmt: skip
    evaluation.main(
        ["--gin_file=gin/runs/eval.gin"] + [f"--gin.{n}={v!r}" for n, v in words.items()]
    )
    results = json.loads((tmp_path / "results/results.json").read_text(encoding="utf-8"))
    assert not results["not_run"]
    assert "left to score: 1 templates, 8 choices" in capsys.readouterr().out


def test_lint_is_a_table_and_its_exit_code_tells_what_is_wrong(tmp_path):
    good = call("tasks", "lint", "--module", EXAMPLE)
    assert good.exit_code == 0 and "1 of 9 rows are unlabelled" in good.stdout.replace("\n", " ")
    assert "kettles" in good.stdout and "imdb" not in good.stdout
    wrong = call("tasks", "lint", "qasc")
    assert wrong.exit_code == 1 and "is_correct_2" in wrong.stdout
    lines = call("tasks", "lint", "qasc", "--json").stdout.splitlines()
    reports = {line["template"]: line for line in map(json.loads, lines)}
    assert [n for n, line in reports.items() if line["verdict"] == "wrong"] == ["is_correct_2"]
    unknown = call("tasks", "lint", "qacs")
    assert unknown.exit_code == 2 and "nearest: 'qasc'" in unknown.stderr


@pytest.mark.parametrize(
    "words", [("lint", "kettles"), ("render", "--dataset", "kettles", "--all")]
)
def test_a_forgotten_module_is_named(words):
    result = call("tasks", *words)
    assert result.exit_code == 2 and "one of your own is known after --module" in result.stderr


def test_lint_json_of_rows_that_are_dropped():
    result = call("tasks", "lint", "super_glue/copa", "--json")
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and any(sum(r["dropped"].values()) for r in reports)


def test_a_mixture_is_shown_with_shares_and_passes():
    table = call("mixtures", "show", "flipped_train")
    assert table.exit_code == 0 and "2,497,543" in table.stdout and "132" in table.stdout
    lines = call("mixtures", "show", "flipped_train", "--json").stdout.splitlines()
    rows = {row["dataset"]: row for row in map(json.loads, lines)}
    rates = dataset_rates(catalog.TRAINING)
    assert {name: row["rate"] for name, row in rows.items()} == rates
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert rows["dbpedia_14"]["n"] == 500_000
    for row in rows.values():
        assert row["epochs"] == pytest.approx(5000 * 240 / 2_497_543)
        assert row["examples"] == pytest.approx(row["n"] * row["epochs"])
    fewer = call(
        "mixtures", "show", "flipped_train", "--json", "--steps", "10", "--batch_size", "8"
    )
    assert json.loads(fewer.stdout.splitlines()[0])["epochs"] == pytest.approx(80 / 2_497_543)


def test_a_mixture_with_ones_own_dataset():
    lines = call(
        "mixtures", "show", "direct_train", "--json", "--module", EXAMPLE
    ).stdout.splitlines()
    (row,) = [row for row in map(json.loads, lines) if row["dataset"] == "kettles"]
    assert (row["rate"], row["templates"], row["n"]) == (2000, 2, 8)
    few = call(
        "mixtures",
        "show",
        "direct_train",
        "--module",
        EXAMPLE,
        "--steps",
        "30",
        "--batch_size",
        "4",
    ).stdout
    assert "kettles" in few and " 0.096 " in few  # examples that are expected in the whole run
    warning = few.splitlines()[-1]
    assert warning.startswith("warning: 21 of 21 datasets get less than one epoch: ")
    assert warning.endswith("; a custom dataset gets more with add_to_mixture(…, share=0.1)")
    wrong = call("mixtures", "show", "flipped_trian")
    assert wrong.exit_code == 2 and "nearest: 'flipped_train'" in wrong.stderr
    rates = call("mixtures", "show", "flipped_train", "--rates", "equals")
    assert rates.exit_code == 2 and "'equal'" in rates.stderr
