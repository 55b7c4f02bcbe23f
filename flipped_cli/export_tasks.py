"""`flipped tasks export`: evaluation suites as tasks of another tool."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flipped_cli import offline
from flipped_cli.options import module_option, settings_options, values_of
from flipped_cli.path_options import READ, WRITTEN
from flipped_cli.questions import RECORDED
from flipped_cli.runs import METHODS, EvalRun
from flipped_core import hub
from flipped_core.errors import UserError, unknown

if TYPE_CHECKING:
    from flipped_eval.lm_eval_tasks import Exported, Format
    from flipped_eval.recipes import Recipe
    from flipped_eval.request import Request

TOOLS = ("lm-eval",)
REQUESTED = (
    "templates",
    "splits",
    "exclude_datasets",
    "max_examples",
    "seed",
    "data_dir",
    "label_sets",
)
_HOW = {
    "method": "--method NAME",
    "lengths": "--inputs_length NUMBER --targets_length NUMBER",
    "input_eos": "--eos or --no_eos",
    "vocab_path": "--vocab PATH",
}


@click.command("export")
@click.argument("suites", nargs=-1, required=True, metavar="SUITE…")
@click.argument("out", type=WRITTEN, metavar="OUT")
@click.option("--to", "tool", required=True, metavar="TOOL", help="lm-eval.")
@click.option(
    "--checkpoint",
    type=READ,
    required=True,
    metavar="PATH",
    help="The Hugging Face folder to evaluate (flipped ckpt export --to hf), or its run.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="direct, channel or flipped; repeat it for several [default: that of the checkpoint]",
)
@settings_options(EvalRun, RECORDED)
@settings_options(EvalRun, REQUESTED)
@module_option
@offline.option
def export(
    suites: Sequence[str],
    out: str,
    tool: str,
    checkpoint: str,
    methods: Sequence[str],
    modules: Sequence[str],
    **given: Any,
) -> None:
    """Write SUITEs to the new folder OUT as tasks that lm-evaluation-harness reads.

    The harness then evaluates an exported checkpoint (flipped ckpt export --to hf) on the same
    texts as flipped eval. A suite is nlp14, bigbench14, labels, seen, DATASET or DATASET:TEMPLATE.
    Texts of which the Hugging Face tokenizer makes other ids than ours are counted, and listed in
    OUT/differences.jsonl. The exit code is 2 where a task has no rows; the others are written.

    \b
    flipped ckpt export runs/flipped flipped_hf --to hf
    flipped tasks export --to lm-eval --checkpoint flipped_hf --data_dir data nlp14 out
    """
    if tool not in TOOLS:
        raise unknown("tool in --to", tool, TOOLS)
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    from flipped_cli import quiet
    from flipped_cli.checks import check_data_dir
    from flipped_eval.request import Request
    from mixtures.modules import load

    requested = values_of(EvalRun, given, REQUESTED)
    request = Request(suites=tuple(suites), **requested)
    check_data_dir(request.data_dir)
    load(modules)
    quiet.import_for_rows(request.data_dir)
    from flipped_eval import lm_eval_tasks, planning
    from t5_engine import manifest

    tasks = planning.select_tasks(request)
    recipe, formats = _formats(checkpoint, methods, values_of(EvalRun, given, RECORDED))
    with manifest.new_folder(out) as folder:
        exported = lm_eval_tasks.export(tasks, formats, request, folder)
        _write_summary(folder, recipe, formats, request, exported)
    _print(exported, formats[0], checkpoint, out)


def _formats(
    checkpoint: str, methods: Sequence[str], given: Mapping[str, Any]
) -> tuple[Recipe, list[Format]]:
    """How the checkpoint is queried, for each method; refuses what is neither recorded nor given."""
    from flipped_eval import recipes
    from flipped_eval.lm_eval_tasks import Format
    from flipped_tasks.tokens import Vocabulary

    found, config = recipes.of(hub.pin(checkpoint))
    recipe = found.given(method=", ".join(methods) or None, **given)
    recipe.require(_HOW)
    vocabulary = Vocabulary.from_file(str(recipe.vocab_path))
    if vocabulary.num_ids > config.vocab_size:
        raise UserError(
            f"vocabulary: {recipe.vocab_path} has {vocabulary.num_ids} ids, {checkpoint} has {config.vocab_size}: "
            "expected the vocabulary that it was trained with"
        )
    for line in recipe.lines():
        click.echo(line, err=True)
    lengths, eos = dict(recipe.lengths or {}), bool(recipe.input_eos)
    names = methods or (str(recipe.method),)
    return recipe, [Format(name, vocabulary, lengths, eos) for name in dict.fromkeys(names)]


def _write_summary(
    folder: pathlib.Path,
    recipe: Recipe,
    formats: Sequence[Format],
    request: Request,
    exported: Exported,
) -> None:
    from flipped_core.files import to_json, write_atomically
    from flipped_core.settings import plain
    from flipped_eval import lm_eval_tasks
    from flipped_eval.recipes import sha256

    fields = [field.name for field in dataclasses.fields(request) if field.name != "data_dir"]
    content = {
        "format": lm_eval_tasks.FORMAT,
        "methods": [form.method for form in formats],
        "lengths": dict(formats[0].lengths),
        "input_eos": formats[0].input_eos,
        "vocabulary_sha256": sha256(str(recipe.vocab_path)),
        "request": {name: plain(getattr(request, name)) for name in fields},
        "examples": exported.tasks,
        "dropped": dict(exported.dropped),
        "inputs_truncated": exported.inputs_cut,
        "targets_truncated": exported.targets_cut,
        "several_correct": exported.several_correct,
        "other_ids": len(exported.differences),
        "not_exported": [{"task": task, "why": why} for task, why in exported.failed],
    }
    write_atomically(folder / lm_eval_tasks.SUMMARY, to_json(content))


def _print(exported: Exported, form: Format, checkpoint: str, out: str) -> None:
    """What was written, and the command that evaluates it; then `UserError` where something is missing."""
    from flipped_eval import lm_eval_tasks
    from t5_engine import huggingface
    from t5_engine.huggingface_folder import HuggingFaceWeights

    examples = sum(exported.tasks.values())
    click.echo(f"{out}: {len(exported.tasks)} tasks, {examples:,} examples")
    if exported.dropped:
        listed = ", ".join(f"{n} {reason}" for reason, n in sorted(exported.dropped.items()))
        click.echo(f"dropped, as in flipped eval: {listed}")
    if exported.inputs_cut or exported.targets_cut:
        click.echo(f"truncated: {exported.inputs_cut} inputs, {exported.targets_cut} targets")
    if exported.several_correct:
        click.echo(
            f"{exported.several_correct} examples have several correct choices, of which lm-eval counts the first"
        )
    if exported.differences:
        click.echo(
            f"the Hugging Face tokenizer gives other ids for {len(exported.differences)} texts: see "
            f"{pathlib.PurePath(out, lm_eval_tasks.DIFFERENCES)}"
        )
    else:
        click.echo("the Hugging Face tokenizer gives the same ids for all texts")
    folder = pathlib.Path(checkpoint).expanduser()
    is_folder = (folder / "config.json").is_file()
    if is_folder and len(HuggingFaceWeights(folder).copies) < len(huggingface.COPIES):
        click.echo(
            f"warning: {checkpoint} lacks {' and '.join(huggingface.COPIES)}, which lm-eval would draw at random; "
            "write it again with flipped ckpt export --to hf"
        )
    pretrained = str(folder.resolve()) if is_folder else "HUGGING_FACE_FOLDER"
    words = ["lm_eval", "--model", "hf", "--model_args", lm_eval_tasks.model_args(form, pretrained)]
    words += ["--include_path", ".", "--tasks", ",".join(exported.groups), "--batch_size", "8"]
    words += ["--output_path", "results", "--log_samples"]
    click.echo(f"next: cd {shlex.quote(out)} && {shlex.join(words)}")
    if exported.failed:
        lines = [f"{task}: {why}" for task, why in exported.failed[:5]]
        more = len(exported.failed) - len(lines)
        rest = [f"and {more} more in {lm_eval_tasks.SUMMARY}"] if more else []
        raise UserError("; ".join([f"not exported: {lines[0]}", *lines[1:], *rest]))
