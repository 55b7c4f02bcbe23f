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
@click.option(
    "--title", default="Flipped Learning: results", show_default=True, help="The heading."
)
@click.option(
    "--compare",
    nargs=2,
    metavar="A B",
    help="Two runs: show the differences B minus A [default: each run minus the first].",
)
def report(
    results: tuple[str, ...], output: str | None, title: str, compare: tuple[str, str] | None
) -> None:
    """Write report.html, report.md and report.json of one or several evaluations.

    RESULTS are output folders of `flipped eval` or eval.py. The page is one file that needs nothing else. Where a
    training's folder is still there, its curves are shown.

    \b
    flipped report out
    flipped report out --compare direct flipped
    """
    from flipped_eval.report import published, write_report

    folders = [_folder(to_path(source, "results")) for source in results]
    output_dir = to_path(output, "--output") if output else folders[0]
    if not output:
        check_bucket(output_dir, "results", write=True)
    written = write_report(folders, output_dir, title=title, compare=compare)
    click.echo(written.summary())
    for line in published.reproductions(written):
        click.echo(line.sentence())
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
