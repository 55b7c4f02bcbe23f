"""The report's pictures: matplotlib drawings as SVG text that goes straight into the page.

A picture takes its colours from the page (CSS variables), so that it follows light and dark; its text
stays text. Each is drawn twice, for wide and for narrow screens, and the page shows one of them.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDE, NARROW = 8.4, 3.9
LONGEST_NAME = 40  # characters of a line in a picture
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


@dataclass(frozen=True)
class Mark:
    """What one method has in one row of a picture: a number with its interval, and the single values behind it."""

    point: Point | None
    singles: Sequence[float] = ()


def marks(
    name: str,
    title: str,
    rows: Sequence[str],
    series: Mapping[str, Sequence[Mark]],
    chance: Sequence[float | None],
    axis: str,
) -> Markup:
    """For each row and method a mark with whiskers over a faint dot for each single value, and a line where chance is.

    Args:
      name: unique within the page; goes into element ids.
      title: what the picture shows, for a reader who does not see it; its numbers are added.
      rows: the names of the rows, top to bottom.
      series: method -> one mark per row.
      chance: percent, one per row.
      axis: the name of the horizontal axis.
    """
    count = max(len(series), 1)

    def draw(axes: Axes, narrow: bool) -> None:
        _chance(axes, chance)
        for index, (method, cells) in enumerate(series.items()):
            marker, colour = MARKERS[index % len(MARKERS)], method_colour(index)
            shift = (index - (count - 1) / 2) * min(0.24, 0.84 / count)
            for row, cell in enumerate(cells):
                place = row + shift
                axes.scatter(
                    cell.singles,
                    [place] * len(cell.singles),
                    s=14,
                    color=colour,
                    alpha=0.3,
                    linewidths=0,
                )
                if cell.point is None:
                    continue
                if cell.point.low is not None and cell.point.high is not None:
                    ends = [cell.point.low, cell.point.high]
                    axes.plot(ends, [place] * 2, color=colour, linewidth=1.8)
                axes.scatter(
                    [cell.point.value],
                    [place],
                    s=38,
                    marker=marker,
                    color=colour,
                    edgecolors=_PAPER,
                    linewidths=0.9,
                    zorder=3,
                )
            axes.scatter([], [], s=38, label=_short(method), marker=marker, color=colour)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axes.set_xlabel(axis)
        axes.grid(axis="x", color=_RULE, linewidth=0.8)

    words = _in_words(rows, series, chance)
    height = 0.95 + (0.16 + 0.12 * count) * len(rows)
    return _twice(name, title, words, draw, height=height, legend=count + 1)


def drops(
    name: str,
    title: str,
    series: Mapping[str, tuple[Point, Point]],
    colours: Mapping[str, int],
    chance: float,
    axis: str,
) -> Markup:
    """For each method an arrow from one number to another, and how far it goes.

    Args:
      name, title: as in `marks`.
      series: method -> (before, after), in percent; the interval of the second is drawn.
      colours: method -> the index of its colour.
      chance: percent.
      axis: the name of the horizontal axis.
    """

    def draw(axes: Axes, narrow: bool) -> None:
        axes.axvline(chance, color=_INK, linewidth=1.2, label="chance")
        for row, (method, (before, after)) in enumerate(series.items()):
            colour = method_colour(colours[method])
            axes.annotate(
                "",
                xy=(after.value, row),
                xytext=(before.value, row),
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 4, "alpha": 0.45},
            )
            if after.low is not None and after.high is not None:
                axes.plot([after.low, after.high], [row + 0.24] * 2, color=colour, linewidth=1.4)
            axes.scatter(
                [before.value],
                [row],
                s=62,
                color=_PAPER,
                edgecolors=colour,
                linewidths=1.8,
                zorder=3,
            )
            axes.scatter([after.value], [row], s=62, color=colour, linewidths=1.8, zorder=4)
            text = f"{after.value - before.value:+.1f}".replace("-", "−")
            middle = (before.value + after.value) / 2
            axes.annotate(
                text, (middle, row - 0.14), ha="center", va="bottom", color=_INK, weight="bold"
            )
        axes.scatter(
            [], [], s=62, color=_PAPER, edgecolors=_MUTED, linewidths=1.8, label="original words"
        )
        axes.scatter([], [], s=62, color=_MUTED, label="renamed (95% interval below)")
        axes.set_ylim(len(series) - 0.5, -0.6)
        axes.set_yticks(range(len(series)), list(series))
        axes.set_xlim(0, 100)
        axes.set_xlabel(axis)
        axes.grid(axis="x", color=_RULE, linewidth=0.8)

    words = ". ".join(
        f"{method}: {before.value:.1f} with original words, {after.value:.1f} renamed"
        for method, (before, after) in series.items()
    )
    words = f"chance {chance:.1f}. {words}"
    return _twice(name, title, words, draw, height=0.95 + 0.5 * len(series), legend=3)


def _in_words(
    rows: Sequence[str], series: Mapping[str, Sequence[Mark]], chance: Sequence[float | None]
) -> str:
    """The numbers of a picture as text."""
    told = []
    for place, row in enumerate(rows):
        parts = [] if chance[place] is None else [f"chance {chance[place]:.1f}"]
        for method, cells in series.items():
            if (point := cells[place].point) is not None:
                ends = "" if point.low is None else f" ({point.low:.1f} to {point.high:.1f})"
                parts.append(f"{method} {point.value:.1f}{ends}")
        told.append(f"{row}: {', '.join(parts)}".replace("\n", " "))
    return ". ".join(told)


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
                label=_short(label),
            )
        axes.set_xlabel("training step")
        axes.set_ylabel(axis)
        axes.set_ylim(bottom=0)
        axes.grid(color=_RULE, linewidth=0.8)
        if narrow:
            axes.locator_params(axis="x", nbins=4)

    words = "; ".join(
        f"{label}: from {values[0]:.3f} at step {steps[0]} to {values[-1]:.3f} at step {steps[-1]}"
        for label, (steps, values) in series.items()
    )
    return _twice(name, title, words, draw, height=2.9, legend=len(series))


def _short(text: str) -> str:
    """A name as a picture has room for it; its lines stay."""
    return "\n".join(
        line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"
        for line in text.split("\n")[:2]
    )


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
    name: str,
    title: str,
    words: str,
    draw: Callable[[Axes, bool], None],
    height: float,
    legend: int,
) -> Markup:
    if unsafe := re.sub("[A-Za-z0-9_-]", "", name):  # from outside: made fit for ids in the page
        name = re.sub("[^A-Za-z0-9_-]", "", name) + f"-{zlib.crc32((name + unsafe).encode()):08x}"
    wide = _svg(f"{name}-w", title, words, draw, WIDE, height, legend, narrow=False)
    narrow = _svg(f"{name}-n", title, words, draw, NARROW, height, legend, narrow=True)
    return Markup('<div class="plot wide">%s</div><div class="plot narrow">%s</div>') % (
        wide,
        narrow,
    )


def _svg(
    name: str,
    title: str,
    words: str,
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
    return _inline(buffer.getvalue(), name, title, words)


def _inline(svg: str, name: str, title: str, words: str) -> Markup:
    """The `<svg>` element alone: no addresses, own ids, the page's colours and fonts, and what it shows as text."""
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
    heading += f'<desc id="{name}-desc">{escape(words)}</desc>'
    described = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    return Markup(f"{opening} {described}>{heading}{rest}".strip())
