"""The report's pictures: matplotlib drawings as SVG text that goes straight into the page.

A picture takes its colours from the page (CSS variables), so that it follows light and dark; its text
stays text. Each is drawn twice, for wide and for narrow screens, and the page shows one of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDE, NARROW = 8.4, 3.9
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "h")
_INK, _MUTED, _RULE, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_METHOD_COLOURS = tuple(f"#fe{index:02x}01" for index in range(len(MARKERS)))
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule", _PAPER: "--paper"} | {
    colour: f"--m{index}" for index, colour in enumerate(_METHOD_COLOURS)
}


@dataclass(frozen=True)
class Point:
    """A number with its interval, all in percent; `low` and `high` may be None."""

    value: float
    low: float | None = None
    high: float | None = None


def dots(
    name: str,
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Point | None]],
    chance: Sequence[float | None],
    axis: str,
) -> Markup:
    """A row for each label, in it a dot with whiskers for each method, and a tick where chance is.

    Args:
      name: unique within the page; goes into element ids.
      title: what a reader who does not see the picture is told.
      labels: the rows, top to bottom.
      series: method -> one point per row.
      chance: percent, one per row.
      axis: the name of the horizontal axis.
    """
    count = len(series)

    def draw(axes: Axes, narrow: bool) -> None:
        _chance(axes, chance)
        for index, (method, points) in enumerate(series.items()):
            shift = (index - (count - 1) / 2) * min(0.2, 0.8 / max(count, 1))
            places = [(row + shift, point) for row, point in enumerate(points) if point is not None]
            for place, point in places:
                if point.low is not None and point.high is not None:
                    axes.plot(
                        [point.low, point.high],
                        [place] * 2,
                        color=method_colour(index),
                        linewidth=1.6,
                    )
            axes.scatter(
                [point.value for _, point in places],
                [place for place, _ in places],
                s=30,
                marker=MARKERS[index % len(MARKERS)],
                color=method_colour(index),
                edgecolors=_PAPER,
                linewidths=0.8,
                zorder=3,
                label=method,
            )
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel(axis)
        axes.grid(axis="x", color=_RULE, linewidth=0.8)

    per_row = 0.14 + 0.105 * max(count, 1)
    return _twice(name, title, draw, height=0.95 + per_row * len(labels), legend=count + 1)


def strips(
    name: str,
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[Point | None, Sequence[float]]]],
    chance: Sequence[float | None],
    axis: str,
) -> Markup:
    """For each group and method the mean with its interval, over a faint dot for each single value."""
    count = len(series)

    def draw(axes: Axes, narrow: bool) -> None:
        _chance(axes, chance)
        for index, (method, cells) in enumerate(series.items()):
            shift = (index - (count - 1) / 2) * min(0.24, 0.84 / max(count, 1))
            for row, (point, singles) in enumerate(cells):
                axes.scatter(
                    singles,
                    [row + shift] * len(singles),
                    s=14,
                    color=method_colour(index),
                    alpha=0.3,
                    linewidths=0,
                )
                if point is None:
                    continue
                if point.low is not None and point.high is not None:
                    axes.plot(
                        [point.low, point.high],
                        [row + shift] * 2,
                        color=method_colour(index),
                        linewidth=2,
                    )
                axes.scatter(
                    [point.value],
                    [row + shift],
                    s=44,
                    marker=MARKERS[index % len(MARKERS)],
                    color=method_colour(index),
                    edgecolors=_PAPER,
                    linewidths=0.9,
                    zorder=3,
                )
            axes.scatter(
                [],
                [],
                s=40,
                marker=MARKERS[index % len(MARKERS)],
                color=method_colour(index),
                label=method,
            )
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_yticks(range(len(groups)), groups)
        axes.set_xlabel(axis)
        axes.grid(axis="x", color=_RULE, linewidth=0.8)

    return _twice(
        name, title, draw, height=1.0 + (0.16 + 0.15 * count) * len(groups), legend=count + 1
    )


def curves(
    name: str,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    axis: str,
    colours: Mapping[str, int],
) -> Markup:
    """Lines over training steps: label -> (steps, values)."""

    def draw(axes: Axes, narrow: bool) -> None:
        for label, (steps, values) in series.items():
            colour = method_colour(colours[label])
            if len(steps) > 60:
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
            axes.plot(
                steps,
                _smooth(values) if len(steps) > 60 else values,
                color=colour,
                linewidth=1.7,
                label=label,
            )
        axes.set_xlabel("training step")
        axes.set_ylabel(axis)
        axes.set_ylim(bottom=0)
        axes.grid(color=_RULE, linewidth=0.8)
        if narrow:
            axes.locator_params(axis="x", nbins=4)

    return _twice(name, title, draw, height=2.9, legend=len(series))


def _chance(axes: Axes, chance: Sequence[float | None]) -> None:
    """An upright line in each row where chance is, and a shade behind every other row."""
    for row, expected in enumerate(chance):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color=_RULE, alpha=0.35, linewidth=0)
        if expected is not None:
            axes.plot([expected] * 2, [row - 0.42, row + 0.42], color=_INK, linewidth=1.4, zorder=2)
    axes.plot([], [], color=_INK, linewidth=1.4, label="chance")


def method_colour(index: int) -> str:
    """The stand-in for the page's colour of the method at `index`; `_page_colours` replaces it."""
    return _METHOD_COLOURS[index % len(_METHOD_COLOURS)]


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred moving mean over a twentieth of the points."""
    reach = max(1, len(values) // 40)
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    smoothed = []
    for index in range(len(values)):
        first, last = max(0, index - reach), min(len(values), index + reach + 1)
        smoothed.append((total[last] - total[first]) / (last - first))
    return smoothed


def _twice(
    name: str, title: str, draw: Callable[[Axes, bool], None], height: float, legend: int
) -> Markup:
    wide = _svg(f"{name}-w", title, draw, WIDE, height, legend, narrow=False)
    narrow = _svg(f"{name}-n", title, draw, NARROW, height, legend, narrow=True)
    return Markup('<div class="plot wide">%s</div><div class="plot narrow">%s</div>') % (
        wide,
        narrow,
    )


def _svg(
    name: str,
    title: str,
    draw: Callable[[Axes, bool], None],
    width: float,
    height: float,
    legend: int,
    narrow: bool,
) -> Markup:
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9.5,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _RULE,
        "xtick.color": _MUTED,
        "ytick.color": _RULE,
        "ytick.labelcolor": _INK,
        "axes.axisbelow": True,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(style):
        columns = min(legend, 2 if narrow else 6)
        extra = 0.22 * -(-legend // columns)
        figure = Figure(figsize=(width, height + extra), layout="constrained")
        axes = figure.add_subplot()
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        draw(axes, narrow)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(
                loc="outside upper left",
                ncols=columns,
                frameon=False,
                handletextpad=0.4,
                columnspacing=1.2,
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> Markup:
    """The `<svg>` element alone: no addresses, ids of its own, the page's colours and fonts, a title."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(re.escape(colour), f"var({variable})", svg, flags=re.IGNORECASE)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    heading = f'<title id="{name}-title">{escape(title)}</title>'
    return Markup(f'{opening} role="img" aria-labelledby="{name}-title">{heading}{rest}'.strip())
