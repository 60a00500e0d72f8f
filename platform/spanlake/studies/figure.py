"""The figure of a study. It needs matplotlib, the extra `studies`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spanlake.errors import UserError
from spanlake.studies.runner import Scored
from spanlake.studies.study import Size, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (8.0, 4.8)
_DPI = 150
_CPU_CAPTION = "CPU size: it shows that the program runs, and answers no question"
_PAPER = "#c0392b"


def check_matplotlib() -> None:
    """Raises `UserError` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UserError("A study's figure needs matplotlib, which is not installed: pip install 'spanlake[studies]'.")


def draw(study: Study, size: Size, scored: Sequence[Scored], path: Path) -> None:
    """Writes a PNG: the average F1 of each drawn variant, and the paper's where it is known."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [each for each in scored if each.variant.drawn]
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if study.chart == "lines":
        _lines(axes, shown, size)
    else:
        _bars(axes, shown)
    sets = ", ".join(score.name for score in shown[0].sets)
    title = f"{study.title}\nmean F1 over {sets}"
    axes.set_title(f"{title}\n{_CPU_CAPTION}" if size == "cpu" else title, fontsize=11)
    axes.set_xlabel(study.axis)
    axes.set_ylabel("F1, per cent")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)  # inside, a marker looks like a result
    figure.savefig(path, dpi=_DPI)


def _bars(axes: Axes, shown: Sequence[Scored]) -> None:
    places = range(len(shown))
    bars = axes.bar(places, [each.mean("f1") for each in shown], width=0.6, color="#2a7f8e")
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_xticks(places, [each.variant.axis_label for each in shown])
    known = [(place, each.variant.published.f1) for place, each in enumerate(shown) if each.variant.published]
    _paper(axes, known)


def _lines(axes: Axes, shown: Sequence[Scored], size: Size) -> None:
    """Draws a line for each series over the number of examples."""
    for name in dict.fromkeys(each.variant.series for each in shown):
        line = sorted((each.variant.examples[size], each.mean("f1")) for each in shown if each.variant.series == name)
        axes.plot(*zip(*line, strict=True), marker="o", label=name)
    counts = sorted({each.variant.examples[size] for each in shown})
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    known = [(each.variant.examples[size], each.variant.published.f1) for each in shown if each.variant.published]
    _paper(axes, known)


def _paper(axes: Axes, known: Sequence[tuple[float, float]]) -> None:
    if known:
        axes.scatter(*zip(*known, strict=True), marker="D", color=_PAPER, zorder=3, label="the paper")
