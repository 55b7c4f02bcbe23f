"""`flipped data prepare|list|verify`: datasets stored once, as TFDS datasets that training reads offline."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from flipped_cli import offline as network
from flipped_cli.path_options import READ, WRITTEN
from flipped_cli.quiet import import_tensorflow
from flipped_core import interrupts, locks
from flipped_core.errors import UserError, unknown
from flipped_core.paths import to_local_path, to_path

if TYPE_CHECKING:
    from flipped_tasks.datasets import DatasetSpec
    from flipped_tasks.prepared.reading import Prepared

MANY_DROPPED = 0.05  # a larger share of dropped rows is worth a warning
DEFAULT_DIR = "data"


def _data_dir(kind: click.ParamType) -> Any:
    return click.option(
        "--data_dir",
        type=kind,
        default=DEFAULT_DIR,
        envvar="FLIPPED_DATA_DIR",
        show_default=True,
        help="The folder of all datasets, local or gs://.",
    )


_offline = click.option("--offline", is_flag=True, help="Open no network connection.")


@click.group()
def data() -> None:
    """Store datasets once, as TFDS datasets; list and check what is stored."""


@data.command("prepare")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET…")
@click.option(
    "--from", "source", required=True, help="hub, files:DIR or embedded.", metavar="SOURCE"
)
@_data_dir(WRITTEN)
@click.option("--revision", help="A commit of the hub [default: the newest Parquet conversion].")
@click.option("--force", is_flag=True, help="Replace what was prepared from another source.")
@_offline
def prepare_datasets(
    datasets: Sequence[str],
    source: str,
    data_dir: str,
    revision: str | None,
    force: bool,
    offline: bool,
) -> None:
    """Read each DATASET from SOURCE and store it as a TFDS dataset, with a manifest.

    DATASET is a name such as super_glue/rte, or training, nlp14 or bigbench14 for all of these. A run
    that was stopped goes on where it stopped; what is stored already is left as it is.

    \b
    flipped data prepare nlp14 --from hub --data_dir data
    flipped data prepare super_glue/rte --from files:rows --data_dir data
    """
    kind, _, folder = source.partition(":")
    if kind == "files":  # refused before anything slow
        to_local_path(folder, "--from")
    if offline:
        network.go_offline()
    from flipped_tasks.datasets import get_dataset
    from flipped_tasks.prepared import reading

    specs = [get_dataset(name) for name in _expand(datasets)]
    failed = []
    kept = f"the whole shards in {data_dir} are kept, and the same command resumes behind them"
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupts.at_once(lambda: kept))
        # All of them before the first: a second command for one of them is refused at once, and not half-way.
        held = {
            spec.name: stack.enter_context(reading.hold(spec.name, data_dir))
            for spec in specs
            if force or reading.find(spec.name, data_dir) is None
        }
        import_tensorflow()
        for spec in specs:
            try:
                lock = held.get(spec.name)
                _prepare(spec, source, data_dir, revision, force, offline, lock)
            except UserError as error:
                if len(specs) == 1:
                    raise
                failed.append(spec.name)
                click.echo(f"error: {error}", err=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(specs)} datasets not prepared: {', '.join(failed)}")


def _prepare(
    spec: DatasetSpec, source: str, data_dir: str, revision: str | None, force: bool, offline: bool,
    lock: locks.Lock | None,
) -> None:  # fmt: skip
    from flipped_tasks.prepared import origins, reading, writing

    there = reading.find(spec.name, data_dir)
    if offline and source == "hub" and there is not None and _is_from_hub(there, revision):
        written, manifest = False, there.manifest
    else:
        origin = origins.open_origin(spec, source, revision, offline)
        with _progress(spec.name) as progress:
            manifest, written = writing.prepare(spec, origin, data_dir, progress, force, lock=lock)
    there = reading.find(spec.name, data_dir)
    assert there is not None, spec.name
    counts = ", ".join(
        f"{split} {info['examples']:,}" for split, info in manifest["splits"].items()
    )
    word = "stored in" if written else "is already in"
    click.echo(f"{spec.name}: {counts}; {word} {os.fspath(there.folder)}")
    for line in _remarks(manifest):
        click.echo(f"  {line}")


def _is_from_hub(there: Prepared, revision: str | None) -> bool:
    source = there.manifest["source"]
    return source["kind"] == "hub" and revision in (None, source["revision"], source["asked"])


def _remarks(manifest: dict[str, Any]) -> Iterator[str]:
    """What was dropped of each split and why, with a warning where it is much, and what else was counted."""
    for split, info in manifest["splits"].items():
        for reason, count in info["dropped"].items():
            share = count / info["rows"]
            much = f"warning, {share:.0%}: " if MANY_DROPPED < share < 1 else ""
            yield f"{split}: {much}{count:,} of {info['rows']:,} rows dropped: {reason}"
        for note, count in info["notes"].items():
            yield f"{split}: {count:,} examples: {note}"
        if info["columns_left_out"]:
            yield f"{split}: columns left out: {', '.join(info['columns_left_out'])}"


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[str, int], None]]:
    """A bar of rows on a terminal."""
    import tqdm

    with tqdm.tqdm(desc=name, unit=" rows", disable=None, leave=False, dynamic_ncols=True) as bar:

        def update(split: str, rows: int) -> None:
            bar.set_postfix_str(split, refresh=False)
            bar.update(rows)

        yield update


def _expand(names: Sequence[str]) -> list[str]:
    """Names of datasets, groups of them resolved, each once."""
    from flipped_tasks.datasets import dataset_names
    from mixtures import catalog, suites

    groups: dict[str, Callable[[], Sequence[str]]] = {
        "training": lambda: catalog.TRAINING,
        "nlp14": lambda: catalog.EVALUATION,
        "bigbench14": lambda: [task.dataset for task in suites.bigbench14()],
    }
    known = dataset_names()
    found: list[str] = []
    for name in names:
        parts = [
            one for one in known if one.startswith(f"bigbench/{name.removeprefix('bigbench/')}/")
        ]
        if name in groups:
            found += groups[name]()
        elif name in known:
            found.append(name)
        elif name.startswith("bigbench/") and parts:
            found += parts
        else:
            raise unknown("dataset", name, [*known, *groups])
    return list(dict.fromkeys(found))


@data.command("list")
@_data_dir(READ)
@click.option("--json", "as_json", is_flag=True, help="One manifest a line instead of a table.")
@_offline
def list_datasets(data_dir: str, as_json: bool, offline: bool) -> None:
    """List what is stored in the data folder: version, source, examples of each split.

    \b
    flipped data list --data_dir data
    """
    if offline:
        network.go_offline()
    import_tensorflow()
    stored = list(_stored(data_dir))
    if as_json:
        for one in stored:
            click.echo(json.dumps(one.manifest, sort_keys=True, ensure_ascii=False))
        return
    from rich.table import Table

    from flipped_cli import tables

    table = Table(title=f"{len(stored)} prepared datasets in {data_dir}")
    for column in ("dataset", "version", "source", "examples of the published number", "dropped"):
        table.add_column(column)
    for one in stored:
        splits = one.manifest["splits"]
        counts = [f"{split} {_of(info)}" for split, info in splits.items()]
        dropped = [
            f"{split} {count:,} {reason}"
            for split, info in splits.items()
            for reason, count in info["dropped"].items()
        ]
        table.add_row(
            one.dataset, one.manifest["version"], _source(one), ", ".join(counts), ", ".join(dropped)
        )  # fmt: skip
    tables.show(table)


def _of(info: dict[str, Any]) -> str:
    if info["published"] in (None, info["rows"]):
        return f"{info['examples']:,}"
    return f"{info['examples']:,} of {info['published']:,}"


def _source(one: Prepared) -> str:
    source = one.manifest["source"]
    return (
        f"hub {source['id']} @{source['revision'][:7]}"
        if source["kind"] == "hub"
        else source["kind"]
    )


def _stored(data_dir: str) -> Iterator[Prepared]:
    """All datasets of the catalog that are prepared in a folder."""
    from flipped_tasks.datasets import dataset_names
    from flipped_tasks.prepared import reading
    from mixtures import catalog

    assert catalog.TRAINING, "importing the catalog registers its datasets"
    root = to_path(data_dir, "data_dir")
    if not root.is_dir():
        raise UserError(f"data_dir: expected a folder, there is none at {data_dir}")
    here = {path.name for path in root.iterdir()}
    for name in dataset_names():
        if name.replace("/", "__") in here and (one := reading.find(name, data_dir)) is not None:
            yield one


@data.command("verify")
@click.argument("datasets", nargs=-1, metavar="[DATASET…]")
@_data_dir(READ)
@_offline
@click.pass_context
def verify_datasets(
    context: click.Context, datasets: Sequence[str], data_dir: str, offline: bool
) -> None:
    """Check the files of stored datasets against their manifests, and every row against the catalog.

    Without DATASET all that is stored is checked. The exit code is 1 where something is wrong.

    \b
    flipped data verify --data_dir data
    """
    if offline:
        network.go_offline()
    import_tensorflow()
    from flipped_tasks.prepared import reading

    stored = {one.dataset: one for one in _stored(data_dir)}
    names = _expand(datasets) if datasets else list(stored)
    if not names:
        raise UserError(f"data_dir: nothing is prepared in {data_dir}")
    bad = 0
    for name in names:
        if name not in stored:
            raise unknown(f"prepared dataset in {data_dir}", name, stored)
        with _progress(name) as progress:
            wrong = reading.verify(stored[name], progress)
        bad += bool(wrong)
        click.echo(f"{name}: {'; '.join(wrong) or 'good'}")
    if bad:
        click.echo(f"{bad} of {len(names)} datasets are damaged; prepare them anew with --force")
        context.exit(1)
