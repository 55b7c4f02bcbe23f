"""`eval.py`, `flipped eval` and `flipped report` on a tiny model: as a user types them."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from flipped_cli import evaluation, gin_config
from flipped_cli.main import main
from flipped_cli.runs import EvalRun
from flipped_core.errors import UserError
from flipped_eval import results
from flipped_tasks.embedded import warmup_texts
from flipped_tasks.embedded.vocabulary import train_vocabulary
from mixtures import modules, own

RTE = "super_glue/rte:MNLI crowdsource"
KETTLES = str(pathlib.Path(__file__).resolve().parents[2] / "examples/own_dataset/kettle_tasks.py")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(modules, "_loaded", set())
    yield
    for name in own.own_datasets():
        own.forget(name)


@pytest.fixture(scope="module")
def vocab_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(warmup_texts(0, 400), path, size=400)
    return str(path)


def save(folder: pathlib.Path, vocabulary: str, seed: int, **recipe: Any) -> str:
    """A checkpoint with random weights, with the `run.json` that training would leave."""
    import jax

    from flipped_tasks.tokens import Vocabulary
    from t5_engine import checkpoints, model
    from t5_engine.config import T5Config

    config = T5Config(
        vocab_size=Vocabulary.from_file(vocabulary).size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    params = jax.jit(lambda key: model.init_params(config, key))(jax.random.key(seed))
    saved = checkpoints.Checkpoints(folder)
    saved.save(3, params, {"count": np.zeros(())}, config, "none")
    saved.close()
    if recipe:
        (folder / "run.json").write_text(json.dumps({"recipe": recipe}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n')
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vocab_path) -> list[str]:
    """Two runs of ours, DIRECT and FLIPPED."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = {"vocab_path": vocab_path, "lengths": {"inputs": 96, "targets": 32}}
    return [
        save(folder / method, vocab_path, seed, mixture=f"{method}_train", **recipe)
        for seed, method in enumerate(("direct", "flipped"))
    ]


def call(*words: str) -> Any:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory, trained) -> pathlib.Path:
    """Both runs by both methods, in one job from the command line."""
    folder = tmp_path_factory.mktemp("done") / "out"
    told = call(
        "eval", "--checkpoint", *trained, "--method", "direct", "flipped", "--suite", RTE, "kettles",
        "--module", KETTLES, "--max_examples", "4", "--output", str(folder),
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    (folder / "told.txt").write_text(told.output)
    return folder


def test_several_checkpoints_methods_and_datasets_in_one_job(done):
    found = results.results_of(done)
    labels = [
        f"{folder} {method}" for folder in ("direct", "flipped") for method in ("direct", "flipped")
    ]
    assert [run["label"] for run in found["runs"]] == labels
    rows = [row for row in found["results"] if row["task"] and not row["template"]]
    assert {row["task"] for row in rows} == {"super_glue/rte", "kettles"}
    assert len({run["weights"] for run in found["runs"]}) == 2
    assert {run["lengths"]["inputs"] for run in found["runs"]} == {96}
    assert found["not_run"] == []
    told = (done / "told.txt").read_text()
    lines = told.splitlines()
    assert "mean, %" in lines[-6]
    # A small job says how the checkpoints are queried, and in one line what is left to do.
    [left] = [
        line for line in lines[:-6] if not re.match(r".*(checkpoints/|method |vocabulary)", line)
    ]
    assert re.fullmatch(
        r"left to score: 12 templates, \d+ choices, [\d,]+ tokens, about \d+ s", left
    )


def test_a_larger_job_has_a_table_and_a_line_for_each_task(tmp_path, trained, monkeypatch):
    from flipped_eval import scoring

    monkeypatch.setattr(scoring, "SMALL_JOB", 10)
    told = call(
        "eval", "--checkpoint", trained[1], "--suite", "kettles", "--module", KETTLES,
        "--max_examples", "4", "--output", str(tmp_path / "out"),
    ).output  # fmt: skip
    assert re.search(r"\[ *\d+%.*\] flipped: chosen kettles: 2 templates, \d examples", told)
    assert re.search(r"chosen +kettles +2 ", told)


def test_a_suite_of_the_trainings_module_suggests_the_module(tmp_path, vocab_path):
    recipe = {"vocab_path": vocab_path, "lengths": {"inputs": 96, "targets": 32}}
    run = save(
        tmp_path / "run", vocab_path, 0, mixture="direct_train", task_modules=[KETTLES], **recipe
    )
    told = call(
        "eval", "--checkpoint", run, "--suite", "kettles", "--output", str(tmp_path / "out")
    )
    assert told.exit_code == 2 and "kettles" not in own.own_datasets()
    assert told.output.splitlines()[-1] == (
        "error: unknown suite or dataset 'kettles': the checkpoint was trained with a module that may register it; "
        f"give --module {KETTLES} (gin: TASK_MODULES)"
    )


def test_the_report_opens_with_provenance(done, tmp_path):
    told = call("report", str(done), "--output", str(tmp_path))
    assert told.exit_code == 0, told.output
    page = (tmp_path / "report.html").read_text()
    opening = page[: page.index("<nav")]
    head, _, *lines = (tmp_path / "report.md").read_text().split("\n\n")[1].split("\n")
    assert head == "| run | checkpoint | step | size | vocabulary | method | suites | commit |"
    first = dict(zip(head.strip("| ").split(" | "), lines[0].strip("| ").split(" | "), strict=True))
    assert first["run"] == "direct direct" and first["method"] == "DIRECT" and first["step"] == "3"
    assert re.fullmatch(r"[\d,]+ parameters", first["size"])
    assert re.fullmatch(r"512 rows, hash [0-9a-f]{8}", first["vocabulary"])
    assert re.fullmatch(r"Chosen datasets: 8 of \d+ examples", first["suites"])
    assert first["checkpoint"].endswith("/direct")
    for text in (first["size"], first["suites"], "flipped flipped"):
        assert text in opening
    assert "4 of " in page[page.index('id="chosen"') :]


def test_a_chosen_comparison_of_a_report(done, tmp_path):
    words = ("report", str(done), "--output", str(tmp_path), "--compare")
    told = call(*words, "flipped flipped", "direct direct")
    assert told.exit_code == 0, told.output
    text = (tmp_path / "report.md").read_text()
    shown = text[text.index("## Differences") : text.index("### Other pairs")]
    rows = [
        line for line in shown.split("\n") if line.startswith("| flipped flipped | direct direct |")
    ]
    assert rows and shown.count("\n| ") == len(rows) + 2  # and the heading, with its rule
    assert call(*words, "flipped flipped", "direct").output.startswith(
        "error: unknown run to compare 'direct'"
    )


def test_scores_are_those_of_the_scorer_one_pair_at_a_time(done, trained, vocab_path):
    from flipped_eval import jobs, planning
    from flipped_eval.examples import build_cases
    from flipped_tasks.rendering import compile_template
    from flipped_tasks.tokens import Vocabulary
    from t5_engine import checkpoints
    from t5_engine.scorer import Scorer

    lines = [
        json.loads(line)
        for path in (done / "scores").iterdir()
        for line in path.read_text().splitlines()
    ]
    plan = json.loads((done / "plan.json").read_text())["units"]
    [unit] = [
        u for u in plan if u["method"] == "flipped flipped" and u["dataset"] == "super_glue/rte"
    ]
    got = {
        (x["example"], x["choice"]): x["logprob"]
        for x in lines
        if x.get("unit") == unit["key"] and "choice" in x
    }
    [task] = planning.select_tasks(planning.Request((RTE,)))
    rows = {
        str(n): (n, row) for n, row in planning.load_numbered("super_glue/rte", "validation", None)
    }
    cases = build_cases(
        task, [rows[example] for example in dict.fromkeys(e for e, _ in got)], method="flipped",
        template=compile_template(planning.load_template(task.dataset, task.template)),
        vocabulary=Vocabulary.from_file(vocab_path), lengths={"inputs": 96, "targets": 32}, seed=0,
    ).cases  # fmt: skip
    params, config, _ = checkpoints.load(trained[1])
    alone = Scorer(config, params, batch_size=1)
    expected = {
        (c.example, i): float(alone.score([pair])[0])
        for c in cases
        for i, pair in enumerate(c.pairs)
    }
    assert got.keys() == expected.keys() and len(got) == 8
    np.testing.assert_allclose([got[key] for key in expected], list(expected.values()), atol=1e-4)
    assert jobs.PAIRS_TOGETHER > 8


def test_the_job_goes_on_from_gin_with_what_was_scored(done, trained):
    before = {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()}
    bindings = {
        "CHECKPOINT_PATH": trained, "EVAL_OUTPUT_DIR": str(done), "METHOD": ["direct", "flipped"],
        "SUITES": [RTE, "kettles"], "TASK_MODULES": [KETTLES], "MAX_EXAMPLES": 4,
    }  # fmt: skip
    given = tuple((name, repr(value)) for name, value in bindings.items())
    gin_config.load(gin_config.Arguments(("gin/runs/eval.gin",), given), EvalRun)
    summary = evaluation.evaluate(gin_config.make(EvalRun))
    assert summary == json.loads(before["results.json"])
    assert {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()} == before
    assert len(list((done / "scores").iterdir())) == 1


def test_results_name_where_the_recipe_was_read(done, trained):
    [run] = [run for run in results.results_of(done)["runs"] if run["label"] == "direct flipped"]
    assert run["sources"] == {
        "method": "given",
        "lengths": "run.json",
        "input_eos": "run.json",
        "vocab_path": "run.json",
    }
    told = (done / "told.txt").read_text()
    assert f"{trained[0]}: method direct, flipped (given); at most 96 inputs and 32 targets" in told


def cut_to(source: pathlib.Path, out: pathlib.Path, rows: int) -> str:
    """A Hugging Face folder with fewer rows, as `resize_token_embeddings` leaves it."""
    import safetensors.numpy

    from t5_engine import huggingface

    out.mkdir()
    (out / "spiece.model").write_bytes((source / "spiece.model").read_bytes())
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    for name in ("shared.weight", "lm_head.weight", *huggingface.COPIES):
        tensors[name] = tensors[name][:rows].copy()
    safetensors.numpy.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return str(out)


def test_an_export_is_asked_as_it_was_trained(tmp_path, trained, vocab_path, monkeypatch):
    """From any folder, by all commands, and with the rows that the vocabulary's ids need."""
    monkeypatch.chdir(tmp_path)
    assert (
        call("ckpt", "export", "--to", "hf", trained[1], "hf", "--vocab", vocab_path).exit_code == 0
    )
    told = call("eval", "--checkpoint", "hf", "--suite", RTE, "--output", "out", "--plan")
    assert told.exit_code == 0, told.output
    said = r"hf: method flipped, at most 96 inputs and 32 targets tokens, inputs with </s> \(.*/hf/recipe.json\)"
    assert re.search(said, told.output), told.output
    assert "recipe: hf: method flipped" in call("ckpt", "info", "hf").output
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "- flipped\n" in card and "at most 96 tokens" in card
    asked = ("--template", "{{input}} Good or bad?", "--input", "Fine.", "--choices", "good", "bad")
    assert '"logprobs"' in call("score", "--checkpoint", "hf", *asked).output

    ids = 500  # 400 pieces and 100 sentinels; 512 rows
    resized = cut_to(tmp_path / "hf", tmp_path / "resized", ids)
    words = ("eval", "--checkpoint", resized, "--suite", RTE, "--output", "out", "--plan")
    told = call(*words)
    assert told.exit_code == 2
    assert "resized does not record its method, lengths, end of inputs" in told.output
    told = call(
        *words, "--method", "direct", "--inputs_length", "96", "--targets_length", "32", "--eos"
    )
    assert told.exit_code == 0, told.output
    assert call("ckpt", "import", "--from", "hf", resized, "ours").exit_code == 0
    short = cut_to(tmp_path / "hf", tmp_path / "short", ids - 1)
    told = call("ckpt", "import", "--from", "hf", short, "theirs")
    assert (
        told.exit_code == 2 and "needs 500 rows of the embedding, the model has 499" in told.output
    )


def test_the_report_command(done, trained, tmp_path):
    told = call("report", str(done), "--output", str(tmp_path), "--title", "Kettles & co.")
    assert told.exit_code == 0, told.output
    assert "report.html" in told.output and "mean, %" in told.output
    page = (tmp_path / "report.html").read_text()
    assert "Kettles &amp; co." in page and 'id="training"' in page and "Chosen datasets" in page
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["training"]) == {"direct", "flipped"}  # runs, not evaluations
    assert (tmp_path / "report.md").read_text().startswith("# Kettles")
    assert "left to score: nothing" in call(
        "eval", "--checkpoint", *trained, "--method", "direct", "flipped", "--suite", RTE, "kettles",
        "--module", KETTLES, "--max_examples", "4", "--output", str(done), "--plan",
    ).output  # fmt: skip
    nothing = call("report", str(done.parent))
    assert nothing.exit_code == 2 and f"there are results in {done}" in nothing.output


def test_the_plan_alone_writes_nothing(tmp_path, trained):
    told = call(
        "eval", "--checkpoint", trained[1], "--suite", "nlp14", "--max_examples", "2", "--plan",
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert re.search(r"all +14 tasks, 1 runs +133 +266 +\d+ +[\d,]+", told.output)
    assert not (tmp_path / "out").exists()


def test_another_split_and_a_dataset_without_rows(tmp_path, trained):
    """A task without rows takes one line for all templates, methods and label sets."""
    data = tmp_path / "data"
    (data / "super_glue__rte").mkdir(parents=True)
    row = {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0, "label": 1}
    (data / "super_glue__rte" / "train.jsonl").write_text(json.dumps(row) + "\n")
    told = call(
        "eval", "--checkpoint", trained[0], "--method", "direct", "flipped", "--suite", "labels", "--plan",
        "--split", "super_glue/rte=train", "--data_dir", str(data), "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert told.exit_code == 2, told.output  # as of the job itself, and of `flipped data prepare`
    assert (
        "error: tasks that cannot be run: labels wsc, labels cb, labels imdb, labels paws"
        in told.output
    )
    assert re.search(r"labels +rte +12 +12 +24 ", told.output)
    not_run = [line for line in told.output.splitlines() if line.startswith("not run: ")]
    assert len(not_run) == 4 and all("(direct, flipped)" in line for line in not_run)
    assert any(
        re.fullmatch(
            "not run: labels imdb, '.*': no rows of imdb: the data folder has no imdb; .*", line
        )
        for line in (line.replace(" (direct, flipped)", "") for line in not_run)
    )


def test_a_task_that_cannot_be_run_is_named_and_the_exit_code_is_not_zero(
    tmp_path, trained, monkeypatch
):
    from flipped_eval import planning

    load = planning.load_numbered

    def some(dataset, split, data_dir=None):
        if dataset == "super_glue/wic":
            raise UserError("cannot read wic")
        return load(dataset, split, data_dir)

    monkeypatch.setattr(planning, "load_numbered", some)
    told = call(
        "eval", "--checkpoint", trained[0], "--suite", RTE, "super_glue/wic", "--max_examples", "2",
        "--output", str(tmp_path),
    )  # fmt: skip
    assert told.exit_code == 2
    last = told.output.splitlines()[-1]
    assert (
        last
        == "error: tasks that could not be run and are in no mean: chosen super_glue/wic: cannot read wic"
    )
    assert results.results_of(tmp_path)["results"]


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path, trained, vocab_path):
    other = tmp_path / "other.model"
    train_vocabulary(warmup_texts(0, 600), other, size=700)
    small = tmp_path / "small.model"
    train_vocabulary(warmup_texts(0, 300), small, size=250)
    bare = save(tmp_path / "bare", vocab_path, 0)
    out = ["--suite", RTE, "--output", str(tmp_path / "out")]
    rest = ["--inputs_length", "96", "--targets_length", "32", "--eos"]
    for words, message in (
        (
            ["--checkpoint", trained[0], "--vocab", str(other)],
            "was trained with .*small.model, and .*other.model is",
        ),
        (
            ["--checkpoint", bare, "--method", "direct", "--vocab", str(other), *rest],
            "other.model has 800 ids .* has 512",
        ),
        (
            ["--checkpoint", bare, "--method", "direct", "--vocab", str(small), *rest],
            "small.model has 350 ids .* has 512",
        ),
        (
            ["--checkpoint", bare, "--method", "direct", *rest],
            "bare does not record its vocabulary: give --gin.VOCAB_PATH=… .flipped eval: --vocab",
        ),
        (
            ["--checkpoint", bare, "--vocab", vocab_path],
            "bare does not record its method, lengths, end of inputs .*: give --gin.METHOD=… .*--method",
        ),
    ):
        told = call("eval", *words, *out)
        assert told.exit_code == 2 and re.search(f"^error: .*{message}", told.output), told.output
        assert len(told.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_fit_its_model_is_refused(tmp_path, vocab_path):
    """Its `about` tells another width than its arrays have; or a part of an array is gone."""
    from t5_engine import checksums

    folder = pathlib.Path(
        save(
            tmp_path / "wide", vocab_path, 0, mixture="direct_train", vocab_path=vocab_path,
            lengths={"inputs": 96, "targets": 32},
        )
    )  # fmt: skip
    [about] = folder.glob("checkpoints/3/about/metadata")
    description = json.loads(about.read_text())
    description["model"]["emb_dim"] = 32
    about.write_text(json.dumps(description, separators=(",", ":")))
    checksums.write(about.parents[1])  # as if it had been saved like that
    words = ["eval", "--checkpoint", str(folder), "--suite", RTE, "--output", str(tmp_path / "out")]
    told = call(*words)
    message = r"error: checkpoint .*wide/checkpoints/3 does not fit its model config: .*: expected .*32.*, got .*16.*\n"
    assert told.exit_code == 2 and re.fullmatch(message, told.output), told.output
    description["model"]["emb_dim"] = 16
    about.write_text(json.dumps(description))
    for file in folder.glob("checkpoints/3/params/**/d/*"):
        file.write_bytes(file.read_bytes()[:-64])
    checksums.write(about.parents[1])
    told = call(*words)
    assert told.exit_code == 2 and re.fullmatch("error: .*cannot be read: .*\n", told.output), (
        told.output
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "nlp15"], "unknown suite or dataset 'nlp15'; nearest: 'nlp14'"),
        (
            ["--suite", "kettels", "--module", KETTLES],
            "unknown suite or dataset 'kettels'; nearest: 'kettles'",
        ),
        (
            ["--suite", "kettles:contant", "--module", KETTLES],
            "unknown template of 'kettles' 'contant'; .*'content'",
        ),
        (
            ["--method", "direct", "fliped"],
            "--method: expected 'direct' or .*; nearest: 'flipped'",
        ),
        (["--suite", "rte"], "unknown suite or dataset 'rte'; nearest: 'super_glue/rte'"),
        (
            ["--suite", "bigbench14"],
            "no rows of bigbench/.*: the made-up world has none; .*--data_dir",
        ),
        (
            ["--batch_size", "0"],
            "--batch_size: expected a whole number of at least 1 or None, got 0",
        ),
        (["--output", __file__], "output_dir: expected a folder, or nothing yet, got the file"),
        (["--model_parallelism", "3"], "model_parallelism: expected a divisor"),
        (["--label", "a", "b"], "label: expected 1 names, .* got 2"),
        (["--split", "rte"], "--split: expected DATASET=SPLIT, got 'rte'"),
        (["--split", "super_glue/rte=trian"], "unknown split .*'trian'; nearest: 'train'"),
        (
            ["--inputs_length", "64"],
            "--inputs_length and --targets_length: expected both or neither",
        ),
        (["--data_dir", "nowhere"], "data_dir: expected a folder, there is none at .*nowhere"),
        (["--label_sets", "nowhere.yaml"], "cannot read label sets"),
        (["--output", "SAME"], "output_dir: expected another folder than checkpoint_path"),
        (
            ["--checkpoint", "nowhere"],
            "checkpoint_path: expected a folder, there is none at .*nowhere",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, trained, words, message):
    words = [trained[0] if word == "SAME" else word for word in words]
    given = {"--checkpoint": [trained[0]], "--output": [str(tmp_path / "out")]}
    spread = [part for name, value in given.items() if name not in words for part in (name, *value)]
    told = call("eval", *spread, *words)
    assert told.exit_code == 2 and re.search(f"^error: .*{message}", told.output), told.output
    assert len(told.output.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_options_take_several_words():
    """Also given one by one, and a word that looks like a number."""
    import click

    from flipped_cli.words import SeveralWords

    @click.command(cls=SeveralWords)
    @click.option("--a", multiple=True)
    @click.option("--b")
    @click.argument("rest", nargs=-1)
    def command(**given):
        click.echo(json.dumps(given))

    def of(*words):
        return json.loads(CliRunner().invoke(command, list(words)).output)

    assert of("--a", "x", "y", "--b", "z") == {"a": ["x", "y"], "b": "z", "rest": []}
    assert of("--a", "x", "--a", "y") == {"a": ["x", "y"], "b": None, "rest": []}
    assert of("r", "--b", "z", "s", "--a", "1") == {"a": ["1"], "b": "z", "rest": ["r", "s"]}
    assert of("--a=x", "r") == {"a": ["x"], "b": None, "rest": ["r"]}


def test_a_file_of_unlabelled_rows_gives_predictions_as_json_lines(trained, tmp_path):
    """With --dataset a line is a row itself, of the catalog's or of a custom dataset, with or without a label."""
    rows = [
        {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0},
        {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 1, "label": -1},
        {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 2, "label": 1},
    ]
    (tmp_path / "rte.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": "It leaks."}, {"text": "It boils at once.", "label": None}]
    (tmp_path / "kettles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    rte = ("--dataset", "super_glue/rte", "--template", "GPT-3 style")
    kettles = ("--module", KETTLES, "--dataset", "kettles", "--template", "content")
    for name, number, choices, words in (
        ("rte", 3, ["True", "False"], rte),
        ("kettles", 2, ["no", "yes"], kettles),
    ):
        jsonl = str(tmp_path / f"{name}.jsonl")
        told = call("score", "--checkpoint", trained[0], "--jsonl", jsonl, *words)
        assert told.exit_code == 0, told.output
        scored = [json.loads(line) for line in told.stdout.splitlines()]
        assert len(scored) == number
        for one in scored:
            assert list(one) == ["choices", "logprobs", "prediction", "prediction_text"]
            assert one["choices"] == choices and len(one["logprobs"]) == 2
            assert one["prediction_text"] == choices[one["prediction"]]
            assert max(one["logprobs"]) == one["logprobs"][one["prediction"]]
        if name == "rte":  # the label plays no part
            assert scored[0] == scored[1] == scored[2]
