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

    folders = [_folder(pathlib.Path(source)) for source in results]
    output_dir = pathlib.Path(output) if output else folders[0]
    written = write_report(folders, output_dir, title=title)
    click.echo(written.summary())
    click.echo(f"report: {output_dir / 'report.html'}, report.md, report.json")


def _folder(source: pathlib.Path) -> pathlib.Path:
    """The folder of some results, which may be given by its `results.json` too."""
    from flipped_eval.results import RESULTS

    if source.name == RESULTS and source.is_file():
        return source.parent
    if not (source / RESULTS).is_file():
        below = sorted(str(path.parent) for path in source.glob(f"*/{RESULTS}"))
        hint = f"; there are results in {' '.join(below)}" if below else ""
        raise UserError(f"results: expected a folder with {RESULTS}, got {source}{hint}")
    return source
