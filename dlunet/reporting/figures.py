"""Plots of scores and training curves.

Figures are built as objects, without pyplot: no global state is changed and no display is needed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dlunet.labels import FLARE22, LabelSet
from dlunet.reporting.paired import PairedTable
from dlunet.reporting.runs import Groups

#: Okabe and Ito's palette, distinguishable for colour-blind readers.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
LineStyle = Literal["-", "--", ":", "-."]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a9099",
    "axes.labelcolor": "#39424e",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
    "xtick.color": "#39424e",
    "ytick.color": "#39424e",
    # Names of runs and cases are plain text, dollar signs included.
    "text.parse_math": False,
}
#: The logged columns that are plotted, with their titles.
CURVES = (("train/loss", "Training loss"), ("val/dsc", "Validation DSC, mean over classes"))


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the common style of all figures while the block runs."""
    with mpl.rc_context(dict[Any, Any](STYLE)):
        yield


def data_uri(png_image: bytes) -> str:
    """A PNG as the source of an image in a page."""
    return f"data:image/png;base64,{base64.b64encode(png_image).decode()}"


def png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def organ_scores(groups: Groups, labels: LabelSet = FLARE22) -> Figure | None:
    """DSC by class: one box per experiment and one dot per case and seed; None if nothing was scored."""
    scored = {name: [run.scores for run in runs if run.scores is not None] for name, runs in groups.items()}
    scored = {name: tables for name, tables in scored.items() if tables}
    if not scored:
        return None
    with house_style():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(scored)
        for index, (name, tables) in enumerate(scored.items()):
            color, _ = run_style(list(groups).index(name))
            positions = np.arange(len(labels)) + (index - (len(scored) - 1) / 2) * width
            values = [
                np.concatenate([table.loc[table["organ"] == label.name, "dsc"].to_numpy() for table in tables])
                for label in labels
            ]
            _boxes(axes, positions, values, width, color)
        axes.set_xticks(range(len(labels)), [label.abbreviation for label in labels])
        axes.set(ylabel="DSC", ylim=(-0.03, 1.03), xlim=(-0.6, len(labels) - 0.4))
        axes.grid(axis="x", visible=False)
        handles = [Patch(color=run_style(list(groups).index(name))[0], label=name) for name in scored]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 5))
    return figure


def training_curves(groups: Groups) -> Figure | None:
    """Training loss and validation DSC over steps, one line per seed; None if neither was logged."""
    panels = [(column, title) for column, title in CURVES if _is_logged(groups, column)]
    if not panels:
        return None
    with house_style():
        figure = Figure(figsize=(5.5 * len(panels), 3.8), layout="constrained")
        for axes, (column, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _curves(axes, groups, column)
            axes.set(title=title, xlabel="step")
            axes.set_xlim(left=0)
            if column == "val/dsc":
                axes.set_ylim(0, 1)
        _legend(figure, groups)
    return figure


def organ_curves(groups: Groups, labels: LabelSet = FLARE22) -> Figure | None:
    """Validation DSC over steps, one small plot per class; None if it was not logged."""
    logged = [label for label in labels if _is_logged(groups, f"val/dsc/{label.abbreviation}")]
    if not logged:
        return None
    columns = min(5, len(logged))
    rows = -(-len(logged) // columns)
    with house_style():
        figure = Figure(figsize=(11, 1.9 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, label in zip(grid.flat, logged, strict=False):
            _curves(axes, groups, f"val/dsc/{label.abbreviation}")
            axes.set_title(label.name, fontsize=9)
            axes.set_ylim(0, 1)
            axes.set_xlim(left=0)
        for axes in grid.flat[len(logged) :]:
            axes.set_axis_off()
        for axes in grid.flat[max(0, len(logged) - columns) : len(logged)]:
            axes.tick_params(labelbottom=True)  # the plot below may be empty
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("DSC", fontsize=9)
        _legend(figure, groups)
    return figure


def paired_differences(paired: PairedTable, names: Sequence[str]) -> Figure | None:
    """The difference in DSC to the floor: a dot per case, and the mean with its interval; None without experiments.

    Args:
        paired: The comparison.
        names: All experiments of the report, which determine the colours.
    """
    rows = [row for row in paired.rows if row.experiment != paired.floor]
    if not rows:
        return None
    with house_style():
        figure = Figure(figsize=(11, 0.9 + 0.5 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(reversed(rows)):
            color, _ = run_style(names.index(row.experiment))
            cases = sorted(row.of_cases)
            spread = place + np.linspace(-0.25, 0.25, len(cases)) if len(cases) > 1 else [place]
            axes.scatter(cases, spread, s=16, color=color, alpha=0.6, linewidths=0)
            axes.plot([row.difference.low, row.difference.high], [place, place], color=color, linewidth=3)
            axes.plot(row.difference.value, place, "o", color=color, markersize=7, markeredgecolor="white")
        axes.axvline(0, color="#39424e", linewidth=1)
        axes.set_yticks(range(len(rows)), [row.experiment for row in reversed(rows)])
        axes.set(xlabel=f"difference in DSC to {paired.floor}", ylim=(-0.6, len(rows) - 0.4))
        axes.grid(axis="y", visible=False)
    return figure


def run_style(index: int) -> tuple[str, LineStyle]:
    """Colour and line style of the n-th experiment; each time the colours repeat they are lighter, in another style."""
    repeat, place = divmod(index, len(RUN_COLORS))
    lightness = 1 - 0.65**repeat
    mixed = (round(255 * (value + (1 - value) * lightness)) for value in to_rgb(RUN_COLORS[place]))
    return "#{:02X}{:02X}{:02X}".format(*mixed), LINE_STYLES[repeat % len(LINE_STYLES)]


def _boxes(axes: Axes, positions: np.ndarray, values: list[np.ndarray], width: float, color: str) -> None:
    line = {"color": color, "linewidth": 1}
    axes.boxplot(
        values,
        positions=positions.tolist(),
        widths=0.75 * width,
        manage_ticks=False,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": f"{color}30", "edgecolor": color},
        medianprops={"color": color, "linewidth": 2},
        whiskerprops=line,
        capprops=line,
    )
    # Dots are spread evenly, not at random, so that the same runs give the same figure.
    for position, cases in zip(positions, values, strict=True):
        spread = np.linspace(-0.22, 0.22, len(cases)) * width if len(cases) > 1 else np.zeros(len(cases))
        axes.scatter(position + spread, cases, s=7, color=color, alpha=0.7, linewidths=0, zorder=3)


def _curves(axes: Axes, groups: Groups, column: str) -> None:
    for index, runs in enumerate(groups.values()):
        color, style = run_style(index)
        for run in runs:
            if column not in run.metrics:
                continue
            curve = run.metrics[["step", column]].dropna()
            if len(curve) > 100:
                axes.plot(curve["step"], curve[column], color=color, alpha=0.15, linewidth=0.6)
                curve[column] = curve[column].rolling(len(curve) // 50, center=True, min_periods=1).mean()
            marker = "o" if len(curve) <= 30 else None
            axes.plot(curve["step"], curve[column], style, color=color, linewidth=1.5, marker=marker, markersize=2.5)


def _legend(figure: Figure, groups: Groups) -> None:
    styles = [run_style(index) for index in range(len(groups))]
    handles = [Line2D([], [], color=c, linestyle=s, label=name) for name, (c, s) in zip(groups, styles, strict=True)]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 5))


def _is_logged(groups: Groups, column: str) -> bool:
    return any(column in run.metrics and run.metrics[column].notna().any() for runs in groups.values() for run in runs)
