"""Evaluation tasks as lm-evaluation-harness reads them: a YAML file and a JSON Lines file for each.

The harness then scores the same pairs of texts as our scorer, through the tokenizer of an exported Hugging Face
folder. Its `multiple_choice` tasks put a context into the encoder and score a continuation in the decoder:

| method           | contexts            | continuations        | form                                   |
|------------------|---------------------|----------------------|----------------------------------------|
| direct           | the prompt          | each choice          | one context, several continuations     |
| channel, flipped | one for each choice | the prompt, or spans | "multiple inputs": several contexts    |

The harness encodes a continuation without special tokens, so `</s>` is written at its end. A context gets the
tokenizer's `</s>`, or none with the model argument `add_bos_token=False`. The harness cuts long contexts at their
beginning, where we shorten the instance: texts that are too long are therefore written as they are after our
cut. Source: lm-eval 0.4.13, `docs/task_guide.md`, `docs/new_task_guide.md` and `models/huggingface.py`.
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from flipped_core.errors import UserError
from flipped_core.files import Json, write_atomically
from flipped_eval.examples import Case, CaseBuilder, Row, TaskCases
from flipped_eval.planning import ordered_rows
from flipped_eval.request import Request
from flipped_tasks.datasets import get_dataset
from flipped_tasks.methods import Formatted, to_text
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import compile_template
from flipped_tasks.sources import load_numbered
from flipped_tasks.tokens import Vocabulary
from mixtures.suites import ORIGINAL, EvalTask

EOS = "</s>"
FORMAT = 1
DIFFERENCES = "differences.jsonl"
SUMMARY = "export.json"
_ROWS = "rows"  # the folder of the JSON Lines files
_SPECIAL = re.compile(r"<extra_id_(0|[1-9]\d?)>|</s>|<pad>|<unk>")
_SPECIAL_IDS = {EOS: Vocabulary.eos, "<pad>": Vocabulary.pad, "<unk>": Vocabulary.unk}


@dataclass(frozen=True)
class Format:
    """How a checkpoint is queried.

    Attributes:
      method: "direct", "channel" or "flipped".
      vocabulary: the tokenizer.
      lengths: most tokens of "inputs" and "targets".
      input_eos: whether encoder inputs end with the end-of-sequence id.
    """

    method: str
    vocabulary: Vocabulary
    lengths: Mapping[str, int]
    input_eos: bool


@dataclass
class Exported:
    """What was written.

    Attributes:
      tasks: the harness's name of each task -> number of examples.
      groups: the names of the groups of a whole suite, for `--tasks`.
      failed: (suite and task, reason) of what could not be written.
      dropped: reason -> rows that our evaluation drops too.
      inputs_cut, targets_cut: examples of which a text was longer than the lengths allow.
      several_correct: examples with several correct choices of which the harness counts the first only.
      differences: texts of which the Hugging Face tokenizer makes other ids; see `differences.jsonl`.
    """

    tasks: dict[str, int] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    dropped: collections.Counter[str] = field(default_factory=collections.Counter)
    inputs_cut: int = 0
    targets_cut: int = 0
    several_correct: int = 0
    differences: list[Json] = field(default_factory=list)


def export(
    tasks: Sequence[EvalTask], formats: Sequence[Format], request: Request, folder: pathlib.Path
) -> Exported:
    """Writes tasks for the harness into an empty folder.

    Args:
      tasks: what `planning.select_tasks` gives.
      formats: one for each method.
      request: rows, splits and seed, as in our evaluation.
      folder: gets a YAML file for each task and group, `rows/`, `differences.jsonl` and `export.json`.

    Returns:
      What was written; a task whose rows cannot be read is in `failed`.

    Raises:
      UserError: no task has an example, or a file cannot be written.
    """
    exported = Exported()
    names = _Names()
    for form in formats:
        # suite -> (task, label set) -> names of the templates
        written: dict[str, dict[tuple[str, ...], list[str]]] = {}
        for task in tasks:
            parts = (task.task,) if task.label_set == ORIGINAL else (task.task, task.label_set)
            name = names.new(task.suite, form.method, *parts, task.template)
            try:
                _write_task(name, task, form, request, folder, exported)
            except UserError as error:
                exported.failed.append((f"{task.suite} {task.task} {task.template!r}", str(error)))
            else:
                written.setdefault(task.suite, {}).setdefault(parts, []).append(name)
        for suite, found in written.items():
            groups = {names.new(suite, form.method, *parts): found[parts] for parts in found}
            exported.groups.append(names.new(suite, form.method))
            _write_groups(exported.groups[-1], groups, folder)
    if not exported.tasks:
        raise UserError(exported.failed[0][1])
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in exported.differences)
    write_atomically(folder / DIFFERENCES, "".join(lines))
    return exported


def tokenizer_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """The ids that the tokenizer of an exported folder makes of a text, without the `</s>` that it may append.

    It finds special tokens anywhere, also where an example contains one as text, and encodes what is between
    them by itself.
    """
    ids: list[int] = []
    start = 0
    for found in _SPECIAL.finditer(text):
        ids += vocabulary.encode_text(text[start : found.start()])
        ids.append(vocabulary.sentinel(int(found[1])) if found[1] else _SPECIAL_IDS[found[0]])
        start = found.end()
    return [*ids, *vocabulary.encode_text(text[start:])]


def model_args(form: Format, pretrained: str) -> str:
    """The harness's `--model_args` that query a checkpoint as our evaluation does.

    transformers 5 declares every T5 as tied and leaves T5 v1.1 untied only until someone calls `tie_weights()`, which
    the harness does: its output layer would then be the embedding.
    """
    longest = max(form.lengths.values())
    eos = "" if form.input_eos else ",add_bos_token=False"
    return (
        f"pretrained={pretrained},dtype=float32,max_length={longest},tie_word_embeddings=False{eos}"
    )


def _write_task(
    name: str,
    task: EvalTask,
    form: Format,
    request: Request,
    folder: pathlib.Path,
    exported: Exported,
) -> None:
    """Writes one task; `UserError` where it has no example."""
    builder = CaseBuilder(
        task=task,
        template=compile_template(load_template(task.dataset, task.template)),
        method=form.method,
        vocabulary=form.vocabulary,
        lengths=form.lengths,
        seed=request.seed,
        input_eos=form.input_eos,
        check_row=get_dataset(task.dataset).check_row,
    )
    rows = load_numbered(task.dataset, task.split, request.data_dir)
    ordered = ordered_rows(rows, task.dataset, task.split, request)
    built = TaskCases()
    documents = list(_documents(name, builder, ordered, request.max_examples, built, exported))
    exported.dropped += built.dropped
    exported.inputs_cut += built.inputs_cut
    exported.targets_cut += built.targets_cut
    if not documents:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(built.dropped.items()))
        raise UserError(f"no example can be used ({reasons or 'no rows'})")
    several = any(isinstance(document["gold"], list) for document in documents)
    if several:
        for (
            document
        ) in documents:  # the harness looks at the first example to see whether golds are lists
            gold = document["gold"]
            document["gold"] = gold if isinstance(gold, list) else [gold]
    lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    write_atomically(folder / _ROWS / f"{name}.jsonl", "".join(lines))
    _write_yaml(folder, name, _task_config(name, task, form.method, several))
    exported.tasks[name] = len(documents)


def _documents(
    name: str,
    builder: CaseBuilder,
    rows: Iterable[Row],
    most: int | None,
    built: TaskCases,
    exported: Exported,
) -> Iterator[Json]:
    """The lines of a task's file; counts in `built` and `exported`."""
    made = 0
    for row in rows:
        if most is not None and made >= most:
            return
        case = builder.add(built, *row)
        if case is None:
            continue
        made += 1
        texts = _Texts(name, builder, case, exported)
        forms = builder.forms(*row)
        if builder.method == "direct":
            gold: int | list[int] = case.correct
            if case.also_correct:
                gold = sorted({case.correct, *case.also_correct})
            yield {
                "example": case.example,
                "prompt": texts.inputs(forms[0], 0, shared=True),
                "choices": [texts.targets(form, i) for i, form in enumerate(forms)],
                "gold": gold,
            }
            continue
        exported.several_correct += bool(case.also_correct)
        yield {
            "example": case.example,
            "choices": list(case.choices),
            "contexts": [texts.inputs(form, i) for i, form in enumerate(forms)],
            "target": texts.targets(forms[0], 0, shared=True),
            "gold": case.correct,
        }


@dataclass(frozen=True)
class _Texts:
    """The texts of one case, compared with the ids that our scorer gets."""

    task: str
    builder: CaseBuilder
    case: Case
    exported: Exported

    def inputs(self, form: Formatted, choice: int, shared: bool = False) -> str:
        """The context of a choice."""
        ids = list(self.case.pairs[choice][0])
        if self.builder.input_eos:
            ids.pop()
        return self._text(to_text(form.inputs), ids, "inputs", None if shared else choice)

    def targets(self, form: Formatted, choice: int, shared: bool = False) -> str:
        """The continuation of a choice, with `</s>`."""
        ids = list(self.case.pairs[choice][1])[:-1]
        return self._text(to_text(form.targets), ids, "targets", None if shared else choice) + EOS

    def _text(self, text: str, ids: list[int], side: str, choice: int | None) -> str:
        vocabulary = self.builder.vocabulary
        if (found := tokenizer_ids(text, vocabulary)) == ids:
            return text
        if (found_cut := tokenizer_ids(cut := vocabulary.decode(ids), vocabulary)) == ids:
            return cut
        if len(found) > len(ids):  # too long as it is: the harness would cut another part
            text, found = cut, found_cut
        self.exported.differences.append(
            {
                "task": self.task,
                "example": self.case.example,
                "choice": choice,
                "side": side,
                "text": text,
                "ids": ids,
                "tokenizer_ids": found,
            }
        )
        return text


def _task_config(name: str, task: EvalTask, method: str, several: bool) -> Json:
    multiple_inputs = method != "direct"
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{_ROWS}/{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "gold" if multiple_inputs else "prompt",
        "doc_to_choice": "contexts" if multiple_inputs else "choices",
        "doc_to_target": "target" if multiple_inputs else "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {
            "version": FORMAT,
            "suite": task.suite,
            "dataset": task.dataset,
            "split": task.split,
            "template": task.template,
            "label_set": task.label_set,
            "method": method,
        }
        | ({"several_correct": True} if several else {}),
    }


def _write_groups(suite: str, groups: Mapping[str, Sequence[str]], folder: pathlib.Path) -> None:
    """A group for each of our tasks, whose accuracy is the mean over templates, and one of them all.

    The latter has no accuracy: the harness would take its mean over all templates, and ours is over the tasks.
    """
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": False}
    for group, names in groups.items():
        config = {"group": group, "task": list(names), "aggregate_metric_list": [mean]}
        _write_yaml(folder, group, config)
    _write_yaml(folder, suite, {"group": suite, "task": list(groups)})


def _write_yaml(folder: pathlib.Path, name: str, config: Json) -> None:
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    write_atomically(folder / f"{name}.yaml", text)


class _Names:
    """Names for the harness, each used once; it reads `,`, `*` and spaces in names as its own."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def new(self, *parts: str) -> str:
        """A name of small letters, digits and `_`."""
        words = (re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in parts)
        name = unique = "_".join(word for word in words if word)
        number = 1
        while unique in self._used:
            number += 1
            unique = f"{name}_{number}"
        self._used.add(unique)
        return unique
