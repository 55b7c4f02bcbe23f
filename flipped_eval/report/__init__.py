"""The report of an evaluation, in three forms with the same numbers: a page, Markdown and JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from flipped_core.files import to_json, write_atomically
from flipped_core.paths import to_path
from flipped_eval.report.content import Report, collect


def write_report(
    results: Iterable[str | os.PathLike[str] | Mapping[str, Any]],
    output: str | os.PathLike[str],
    training_runs: Mapping[str, str | os.PathLike[str]] | None = None,
    title: str = "Flipped Learning: results",
    extra: Mapping[str, Any] | None = None,
    compare: tuple[str, str] | None = None,
) -> Report:
    """Writes `report.html` (one file, complete in itself), `report.md` and `report.json` into `output`.

    Args:
      results: folders of `flipped_eval.jobs.evaluate`, or what it returned; their labels are the columns.
      output: a folder; made where missing.
      training_runs: name -> folder of that training, for the loss curves and the configuration.
      title: the heading.
      extra: further facts for the configuration, such as versions, seeds, wall time; JSON-like.
      compare: two labels, whose difference is shown; see `content.collect`.

    Raises:
      UserError: nothing to report, or a file that cannot be read.
    """
    from flipped_eval.report import markdown, page  # here, because matplotlib takes long to import

    report = collect(results, training_runs, title, extra, compare)
    folder = to_path(output, "output")
    write_atomically(folder / "report.json", to_json(report.to_json()))
    write_atomically(folder / "report.md", markdown.render(report))
    write_atomically(folder / "report.html", page.render(report))
    return report
