"""The paper's tables, with our runs in their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from dlunet.labels import FLARE22, LabelSet
from dlunet.reporting.runs import Run
from dlunet.reporting.tables import MEAN, ScoreTable

#: The paper's tables by number, each with the experiments that reproduce its rows.
PAPER_ROWS = {
    3: {
        "sup_nnunet": "nnU-Net w/o SSL",
        "ssl_nnunet": "nnU-Net w SSL",
        "sup_light": "Light UNet w/o SSL",
        "ssl_light": "Light UNet w SSL",
    },
    4: {"loss_dice_ce": "Dice+CE", "loss_nrd_tce": "NRD+TCE"},
}
PAPER_TITLES = {
    3: "DSC with and without semi-supervised learning (the paper's Table 3)",
    4: "DSC by loss function (the paper's Table 4)",
}
#: The Python classes of the method, network and loss of each of these experiments.
PAPER_PARTS = {
    "sup_nnunet": ("Supervised", "PlainUNet", "RobustSegmentationLoss"),
    "ssl_nnunet": ("CrossPseudo", "PlainUNet", "RobustSegmentationLoss"),
    "sup_light": ("Supervised", "LightUNet", "RobustSegmentationLoss"),
    "ssl_light": ("CrossPseudo", "LightUNet", "RobustSegmentationLoss"),
    "loss_dice_ce": ("Supervised", "PlainUNet", "DiceCrossEntropyLoss"),
    "loss_nrd_tce": ("Supervised", "PlainUNet", "RobustSegmentationLoss"),
}
#: Pairs of experiments that differ in one change: (change, without, with).
COMPARISONS = (
    ("Semi-supervision, nnU-Net", "sup_nnunet", "ssl_nnunet"),
    ("Semi-supervision, light U-Net", "sup_light", "ssl_light"),
    ("NRD + TCE instead of Dice + CE", "loss_dice_ce", "loss_nrd_tce"),
)


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper: the paper's values and ours by column.

    Attributes:
        name: As in the paper.
        experiment: The experiment that reproduces it.
        paper: The paper's values.
        group: The name of our runs of this experiment; None if it was not run.
        ours: Their values; None if they have no scores.
    """

    name: str
    experiment: str
    paper: dict[str, float]
    group: str | None
    ours: dict[str, float] | None


@dataclass(frozen=True)
class PaperTable:
    """A table in the paper's layout."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class Comparison:
    """The effect of a change on the mean DSC, here and in the paper.

    Attributes:
        change: What is changed.
        before: The experiment without it.
        after: The experiment with it.
        groups: The names of our runs of both.
        ours: The difference of our means.
        paper: By column, the differences of the paper's.
    """

    change: str
    before: str
    after: str
    groups: tuple[str, str]
    ours: float
    paper: dict[str, float]


@cache
def paper_figures() -> pd.DataFrame:
    """The paper's tables 3 to 7: columns ``table,row,score,mean`` and one per organ abbreviation."""
    with resources.files("dlunet.reporting").joinpath("paper_tables.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def paper_tables(dsc: ScoreTable, groups: Mapping[str, Sequence[Run]], labels: LabelSet = FLARE22) -> list[PaperTable]:
    """The paper's tables with at least one row that was run, in the paper's layout; none for other label sets."""
    if labels != FLARE22:
        return []
    ours = _groups_by_experiment(groups)
    return [
        PaperTable(
            number,
            PAPER_TITLES[number],
            tuple(_paper_row(number, name, row, ours.get(name), dsc) for name, row in rows.items()),
        )
        for number, rows in PAPER_ROWS.items()
        if any(experiment in ours for experiment in rows)
    ]


def comparisons(tables: Sequence[PaperTable]) -> list[Comparison]:
    """The differences between rows that the paper compares, of those that were run and scored."""
    rows = {row.experiment: row for table in tables for row in table.rows if row.ours is not None}
    return [
        _comparison(change, rows[before], rows[after])
        for change, before, after in COMPARISONS
        if before in rows and after in rows
    ]


def _comparison(change: str, before: PaperRow, after: PaperRow) -> Comparison:
    assert before.ours and after.ours and before.group and after.group
    paper = {column: after.paper[column] - before.paper[column] for column in after.paper}
    ours = after.ours[MEAN] - before.ours[MEAN]
    return Comparison(change, before.experiment, after.experiment, (before.group, after.group), ours, paper)


def _groups_by_experiment(groups: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """The group that reproduces each experiment: the one with its name, else the only other one with its parts."""
    found = {}
    for experiment, parts in PAPER_PARTS.items():
        others = [name for name in groups if name not in PAPER_PARTS]
        alike = [name for name in others if all(run.parts == parts for run in groups[name])]
        if experiment in groups:
            found[experiment] = experiment
        elif len(alike) == 1:
            found[experiment] = alike[0]
    return found


def _paper_row(number: int, experiment: str, row: str, group: str | None, dsc: ScoreTable) -> PaperRow:
    ours = None
    if group is not None and dsc.mean.loc[group].notna().any():
        ours = {column: float(dsc.mean[column][group]) for column in dsc.mean.columns}
    return PaperRow(row, experiment, _paper_values(number, row), group, ours)


def _paper_values(number: int, row: str) -> dict[str, float]:
    figures = paper_figures()
    values = figures[(figures["table"] == number) & (figures["row"] == row) & (figures["score"] == "DSC")].iloc[0]
    return {MEAN if column == "mean" else column: float(values[column]) for column in figures.columns[3:]}
