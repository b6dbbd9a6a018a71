"""Draws the paired comparisons of the studies: the difference of each run to its floor, with its interval.

    python experiments/recipes/figures.py

Reads every ``results/STUDY_paired.csv`` and writes ``results/STUDY.png``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlunet.reporting.figures import RUN_COLORS, house_style, png

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Draw one figure per study."""
    for path in sorted(RESULTS.glob("*_paired.csv")):
        target = path.with_name(path.name.replace("_paired.csv", ".png"))
        target.write_bytes(png(differences(pd.read_csv(path))))
        print(target)


def differences(paired: pd.DataFrame) -> Figure:
    """One panel per floor, one row per run: the difference of the mean DSC with its 95 % interval."""
    others = paired[paired["run"] != paired["floor"]]
    panels = dict(list(others.groupby("floor", sort=False)))
    heights = [len(rows) for rows in panels.values()]
    with house_style():
        figure = Figure(figsize=(6, 0.6 * len(panels) + 0.28 * sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)
        for axes, (floor, rows) in zip(grid[:, 0], panels.items(), strict=True):
            _panel(axes, rows, floor)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, floor: str) -> None:
    middle = rows["difference"]
    lengths = (middle - rows["difference_low"], rows["difference_high"] - middle)
    axes.axvline(0, color=RUN_COLORS[-1], linewidth=1)
    axes.errorbar(middle, range(len(rows)), xerr=lengths, fmt="o", color=RUN_COLORS[0], markersize=4, capsize=2)
    axes.set_yticks(range(len(rows)), rows["run"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(labelbottom=True)
    axes.set(xlabel=f"difference of mean DSC to {floor}")


if __name__ == "__main__":
    main()
