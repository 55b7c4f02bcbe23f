"""The picture of a study: macro F1 before and after renaming the labels, DIRECT next to FLIPPED, all seeds."""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

from flipped_cli import study_table

COLOURS = {study_table.DIRECT: "#2a66b8", study_table.FLIPPED: "#c2541b"}
INK, MUTED, RULE, PAPER = "#1d1b19", "#6a645d", "#ddd7ce", "#ffffff"


def draw(study: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a PNG: for DIRECT and FLIPPED a line a seed, and the mean in bold with its numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [method for method in COLOURS if method in study["methods"]]
    if not methods:
        return
    figure, panels = pyplot.subplots(
        1, len(methods), figsize=(3.9 * len(methods), 3.9), sharey=True, layout="constrained"
    )
    for axes, method in zip([panels] if len(methods) == 1 else panels, methods, strict=True):
        _panel(axes, study, method)
    figure.suptitle(
        "Labels renamed: what is left of macro F1 (percent, made-up data)", color=INK, fontsize=12
    )
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150, facecolor=PAPER, metadata={"Software": None})
    partial.replace(path)
    pyplot.close(figure)


def _panel(axes: Any, study: dict[str, Any], method: str) -> None:
    values = study["values"]
    before, after = values[study_table.ORIGINAL][method], values[study_table.RENAMED][method]
    colour = COLOURS[method]
    for pair in zip(before, after, strict=True):
        axes.plot((0, 1), pair, color=colour, alpha=0.3, linewidth=1.4, marker="o", markersize=4)
    means = statistics.mean(before), statistics.mean(after)
    axes.plot((0, 1), means, color=colour, linewidth=3.2, marker="o", markersize=9)
    for place, mean, side in ((0, means[0], "right"), (1, means[1], "left")):
        shift = -12 if side == "right" else 12
        axes.annotate(
            f"{mean:.1f}",
            (place, mean),
            xytext=(shift, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            color=colour,
            weight="bold",
            fontsize=12,
        )
    chance = study["chance"][study_table.RENAMED]
    axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(0.5, chance - 1.5, f"chance {chance:.1f}", ha="center", va="top", color=MUTED)
    change = f"{means[1] - means[0]:+.1f}".replace("-", "−")
    axes.set_title(f"{method.upper()}: {change} points", color=INK, fontsize=12)
    axes.set_xticks((0, 1), ("original words", "renamed"))
    axes.set_xlim(-0.45, 1.45)
    axes.set_ylim(0, 100)
    axes.tick_params(length=0, colors=MUTED, labelsize=10)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
