"""`flipped report`: results of evaluations as a page, as Markdown and as JSON."""

from __future__ import annotations

import pathlib

import click

from flipped_core.errors import UserError


@click.command("report")
@click.argument("results", nargs=-1, required=True, metavar="RESULTS…")
@click.option("--output", metavar="DIR", help="Folder of the report; else the first RESULTS.")
@click.option("--title", default="Flipped Learning: results", help="The heading.")
def report(results: tuple[str, ...], output: str | None, title: str) -> None:
    """Write report.html, report.md and report.json of one or several evaluations.

    RESULTS are output folders of `flipped eval` or eval.py. The page is one file that needs nothing else. Where a
    training's folder is still there, its curves are shown.
    """
    from flipped_eval.report import write_report
    from flipped_eval.results import RESULTS

    first = pathlib.Path(results[0])
    folder = pathlib.Path(output) if output else first if first.is_dir() else first.parent
    for source in map(pathlib.Path, results):
        if not (source if source.suffix else source / RESULTS).is_file():
            below = sorted(str(path.parent) for path in source.glob(f"*/{RESULTS}"))
            hint = f"; there are results in {' '.join(below)}" if below else ""
            raise UserError(f"results: expected a folder with {RESULTS}, got {source}{hint}")
    written = write_report(results, folder, title=title)
    click.echo(written.summary())
    click.echo(f"report: {folder / 'report.html'}, report.md, report.json")
