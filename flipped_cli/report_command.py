"""`flipped report`: results of evaluations as a page, as Markdown and as JSON."""

from __future__ import annotations

import click
from etils import epath

from flipped_cli.path_options import READ, WRITTEN
from flipped_core.errors import UserError
from flipped_core.paths import check_bucket, to_path


@click.command("report")
@click.argument("results", nargs=-1, type=READ, required=True, metavar="RESULTS…")
@click.option(
    "--output", type=WRITTEN, metavar="DIR", help="Folder of the report; else the first RESULTS."
)
@click.option("--title", default="Flipped Learning: results", help="The heading.")
def report(results: tuple[str, ...], output: str | None, title: str) -> None:
    """Write report.html, report.md and report.json of one or several evaluations.

    RESULTS are output folders of `flipped eval` or eval.py. The page is one file that needs nothing else. Where a
    training's folder is still there, its curves are shown.
    """
    from flipped_eval.report import write_report

    folders = [_folder(to_path(source, "results")) for source in results]
    output_dir = to_path(output, "--output") if output else folders[0]
    if not output:
        check_bucket(output_dir, "results", write=True)
    written = write_report(folders, output_dir, title=title)
    click.echo(written.summary())
    click.echo(f"report: {output_dir / 'report.html'}, report.md, report.json")


def _folder(source: epath.Path) -> epath.Path:
    """The folder of some results, which may be given by its `results.json` too."""
    from flipped_eval.results import RESULTS

    if source.name == RESULTS and source.is_file():
        return source.parent
    if not (source / RESULTS).is_file():
        below = sorted(str(path.parent) for path in source.glob(f"*/{RESULTS}"))
        hint = f"; there are results in {' '.join(below)}" if below else ""
        raise UserError(f"results: expected a folder with {RESULTS}, got {source}{hint}")
    return source
