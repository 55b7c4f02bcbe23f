"""What an evaluation's folder was asked for: `run.json`, and `plan.json` with the units and what could not be run.

Both carry a checksum of their content (`flipped_core.sealed`); one that is damaged is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import Json
from flipped_core.sealed import read_sealed, write_sealed
from flipped_eval import records
from mixtures.catalog import BIGBENCH, TRAINING
from mixtures.suites import NLP14, ORIGINAL

if TYPE_CHECKING:
    from flipped_eval.planning import Plan

FORMAT = 3  # of all files of the folder; 2 had no checksums
RUN, PLAN = "run.json", "plan.json"
NAMES = ("suite", "task", "template", "label_set", "dataset", "split")
# Fields of `run.json` that files without a checksum do not have.
ADDED_SINCE_CHECKSUMS = {"sources", "provenance"}
KEPT = "scores that are whole are not scored again"


def check_run(output_dir: epath.Path, request: Json, models: Sequence[Json]) -> list[Json]:
    """The models that `output_dir` is known to hold; nothing is written.

    Args:
      request: what all models have in common.
      models: `planning.Model.describe` of each.

    Raises:
      UserError: the folder holds results of another request, or of another model with the same label; names
        the first field that differs. Or its `run.json` is damaged.
    """
    found = read_run(output_dir)
    if found is None:
        return []
    _refuse_other(output_dir, found["request"], request, "")
    known: dict[str, Json] = {model["label"]: model for model in found["models"]}
    for model in models:
        if model["label"] in known:
            _refuse_other(output_dir, known[model["label"]], model, f" of {model['label']!r}")
    return list(known.values())


def open_run(
    output_dir: epath.Path,
    request: Json,
    models: Sequence[Json],
    checkpoints: Mapping[str, str],
    sources: Mapping[str, Mapping[str, str]] | None = None,
    provenance: Mapping[str, Json] | None = None,
) -> None:
    """Takes `output_dir` for a request, or goes on with it; models that it does not know are added to it.

    Args:
      request, models: as for `check_run`.
      checkpoints: label -> where the weights were read; the report looks there for the log of the training.
      sources: label -> for method, lengths, input_eos and vocab_path, the file that says it, or "given".
      provenance: label -> step, number of parameters and public size of the checkpoint, and the commit of this code.

    Raises:
      UserError: as `check_run`.
    """
    known = check_run(output_dir, request, models)
    labels = {model["label"] for model in known}
    new = [model for model in models if model["label"] not in labels]
    if new:
        found = read_run(output_dir)
        before = found or {}
        run = {
            "request": request,
            "models": known + new,
            "checkpoints": {**before.get("checkpoints", {}), **checkpoints},
            "sources": {**before.get("sources", {}), **(sources or {})},
            "provenance": {**(provenance or {}), **before.get("provenance", {})},
        }
        write_sealed(output_dir / RUN, {"format": FORMAT, **run})


def read_run(output_dir: epath.Path) -> Json | None:
    """The content of `run.json`; None where there is none."""
    path = output_dir / RUN
    if not path.exists():
        return None
    return _read(path, records.RunFile, f"remove it to begin anew; {KEPT}")


def _read(path: epath.Path, kind: type, remedy: str) -> Json:
    """A sealed file with the types of `kind`; what is wrong with it is told with the remedy."""
    try:
        older = set(kind.__annotations__) - ADDED_SINCE_CHECKSUMS
        return records.checked(read_sealed(path, FORMAT, older), kind, path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def _refuse_other(output_dir: epath.Path, found: Json, asked: Json, of: str) -> None:
    for name in sorted(set(found) | set(asked)):
        if found.get(name) != asked.get(name):
            raise UserError(
                f"output_dir {output_dir} holds results of another run: {name}{of} was "
                f"{_short(found.get(name))}, now {_short(asked.get(name))}; name another output_dir or "
                "remove that one"
            )


def write_plan(output_dir: epath.Path, plan: Plan) -> None:
    """Writes which units there are; those of other models and suites, planned earlier, stay.

    Raises:
      UserError: those were planned with another version of a dataset.
    """
    broken = {tuple(one[name] for name in ("method", *NAMES)) for one in plan.failed}
    units = [
        {name: getattr(unit.task, name) for name in NAMES}
        | {
            "method": unit.model.label,
            "key": unit.key,
            "data": unit.data,
            "split_rows": unit.split_rows,
        }
        for unit in plan.units()
        if (unit.model.label, *(getattr(unit.task, name) for name in NAMES)) not in broken
    ]
    now = {(one["method"], one["suite"]) for one in (*units, *plan.failed)}
    before = read_plan(output_dir)
    refuse_unlisted(output_dir, before)
    kept = {
        name: [one for one in before[name] if (one["method"], one["suite"]) not in now]
        for name in ("units", "failed")
    }
    refuse_versions([*kept["units"], *units], f"output_dir {output_dir}")
    found = {"units": kept["units"] + units, "failed": kept["failed"] + plan.failed}
    ordered = {name: in_order(lines) for name, lines in found.items()}
    write_sealed(output_dir / PLAN, {"format": FORMAT, **ordered})


def read_plan(output_dir: epath.Path) -> Json:
    """The content of `plan.json`; nothing is planned where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = output_dir / PLAN
    if not path.exists():
        return {"units": [], "failed": []}
    return _read(path, records.PlanFile, f"remove it and {_RUN_AGAIN}")


_RUN_AGAIN = f"run the evaluations of this folder again: {KEPT}"


def refuse_unlisted(output_dir: epath.Path, plan: Json) -> None:
    """Refuses a plan with units of runs that `run.json` does not list, as when that was removed."""
    run = read_run(output_dir)
    labels = {model["label"] for model in run["models"]} if run else set()
    for one in (*plan["units"], *plan["failed"]):
        if one["method"] not in labels:
            raise UserError(
                f"{output_dir / PLAN}: it has units of {one['method']!r}, which {RUN} does not list; "
                f"remove it and {_RUN_AGAIN}"
            )


def refuse_versions(lines: Iterable[Json], where: str) -> None:
    """Refuses lines that were made with different rows of the same split: their numbers cannot be compared.

    Args:
      lines: with "dataset", "split", "data" and "method".
      where: what the message begins with.
    """
    seen: dict[tuple[str, str], Json] = {}
    for line in lines:
        first = seen.setdefault((line["dataset"], line["split"]), line)
        if first["data"] != line["data"]:
            raise UserError(
                f"{where}: {line['method']!r} was evaluated on another version of {line['dataset']}, split "
                f"{line['split']!r}, than {first['method']!r} (hashes of the rows {line['data'][:8]} and "
                f"{first['data'][:8]}); evaluate both on the same rows"
            )


def in_order(lines: Iterable[Json]) -> list[Json]:
    """Suites by name, tasks as the recipe lists them, then by names; of each, the methods as they came."""
    places = {task: place for place, task in enumerate((*NLP14, *BIGBENCH, *TRAINING))}

    def order(line: Json) -> tuple[Any, ...]:
        task = line["task"]
        label_set = line["label_set"]
        return (
            line["suite"], places.get(task, len(places)), task, line["template"], label_set != ORIGINAL, label_set,
        )  # fmt: skip

    return sorted(lines, key=order)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "…"


def provenance_of(folder: epath.Path) -> dict[str, Json]:
    """label -> `records.CheckpointInfo`; nothing in folders of older versions."""
    run = read_run(folder)
    return run.get("provenance", {}) if run else {}


def checkpoints_of(folder: epath.Path) -> dict[str, str]:
    """label -> where its weights were read; {} where the folder has no `run.json`."""
    run = read_run(folder)
    return run["checkpoints"] if run else {}
