"""Score tables of experiments: means over cases and seeds, beside the paper's values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from dlunet.evaluation import Metric
from dlunet.labels import FLARE22, LabelSet
from dlunet.reporting.runs import Run, common_metrics

MEAN = "Mean"
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
    3: "Table 3: DSC with and without semi-supervised learning",
    4: "Table 4: DSC by loss function",
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
class ScoreTable:
    """One metric, with one row per experiment and columns for the mean and for each abbreviation.

    Attributes:
        metric: Its name and direction.
        mean: Mean over seeds of the mean over cases; NaN where an experiment has no scores.
        std: Sample standard deviation over seeds; NaN below two seeds.
    """

    metric: Metric
    mean: pd.DataFrame
    std: pd.DataFrame

    def is_best(self, experiment: str, column: str, decimals: int = 3) -> bool:
        """Whether the printed value is the best of its column, which must have at least two values."""
        values = self.mean[column].astype(float).round(decimals)  # missing values may have made it a column of objects
        best = values.max() if self.metric.higher_is_better else values.min()
        return bool(values.count() > 1 and values[experiment] == best)


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper: the paper's values and ours by column; ours is None if it was not run."""

    name: str
    experiment: str
    paper: dict[str, float]
    ours: dict[str, float] | None


@dataclass(frozen=True)
class PaperTable:
    """A table in the paper's layout."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class Comparison:
    """The effect of a change on the mean DSC, here and in the paper."""

    change: str
    before: str
    after: str
    ours: float
    paper: float


def score_table(groups: Mapping[str, Sequence[Run]], score: str, labels: LabelSet = FLARE22) -> ScoreTable:
    """Average a metric over cases within each run, then over the runs of each experiment.

    Args:
        groups: Runs by experiment name.
        score: The metric's column in the runs' scores.
        labels: The classes, in the order of the columns.
    """
    columns = [MEAN] + [label.abbreviation for label in labels]
    means, deviations = {}, {}
    for name, runs in groups.items():
        scored = [run.scores for run in runs if run.scores is not None and score in run.scores]
        values = pd.DataFrame([organ_means(scores, score, labels) for scores in scored], columns=columns)
        means[name], deviations[name] = values.mean(), values.std(ddof=1)
    return ScoreTable(
        common_metrics(groups)[score], pd.DataFrame(means, index=columns).T, pd.DataFrame(deviations, index=columns).T
    )


def organ_means(scores: pd.DataFrame, score: str, labels: LabelSet = FLARE22) -> dict[str, float]:
    """Mean over cases by class abbreviation, and the overall mean under ``Mean``."""
    by_organ = scores.groupby("organ")[score].mean()
    organs = {label.abbreviation: float(by_organ.get(label.name, float("nan"))) for label in labels}
    return {MEAN: float(scores.groupby("case")[score].mean().mean()), **organs}


def case_means(scores: pd.DataFrame) -> pd.Series:
    """Mean DSC over classes for each case, worst first; ties are sorted by name."""
    return scores.groupby("case")["dsc"].mean().sort_index().sort_values(kind="stable")


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


def comparisons(dsc: ScoreTable, groups: Mapping[str, Sequence[Run]], labels: LabelSet = FLARE22) -> list[Comparison]:
    """Differences in mean DSC between the available experiments, beside the paper's; none for other label sets."""
    if labels != FLARE22:
        return []
    means = dsc.mean[MEAN].dropna()
    names = _groups_by_experiment(groups)
    ours = {experiment: float(means[name]) for experiment, name in names.items() if name in means}
    rows = {experiment: (number, row) for number, table in PAPER_ROWS.items() for experiment, row in table.items()}
    return [
        Comparison(
            change,
            before,
            after,
            ours[after] - ours[before],
            _paper_values(*rows[after])[MEAN] - _paper_values(*rows[before])[MEAN],
        )
        for change, before, after in COMPARISONS
        if before in ours and after in ours
    ]


def as_csv_table(groups: Mapping[str, Sequence[Run]], tables: Mapping[str, ScoreTable]) -> pd.DataFrame:
    """All values for other programs: ``run,score,seeds``, then mean and standard deviation over seeds per column."""
    rows = []
    for score, table in tables.items():
        for name in table.mean.index:
            row: dict[str, object] = {"run": name, "score": score, "seeds": " ".join(run.seed for run in groups[name])}
            for column in table.mean.columns:
                row[column] = round(table.mean[column][name], 4)
                row[f"{column}_std"] = round(table.std[column][name], 4)
            rows.append(row)
    return pd.DataFrame(rows)


def as_markdown(tables: Mapping[str, ScoreTable], note: str) -> str:
    """The score tables as Markdown, best values in bold."""
    parts = [note]
    for table in tables.values():
        lines = [["run", *table.mean.columns]]
        for name in table.mean.index:
            cells = [format_score(table, name, column) for column in table.mean.columns]
            best = [table.is_best(name, column) for column in table.mean.columns]
            bold = [f"**{cell}**" if is_best else cell for cell, is_best in zip(cells, best, strict=True)]
            lines.append([str(name), *bold])
        parts.append(f"{table.metric.title}\n\n{markdown_table(lines)}")
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and rows of cells as a Markdown table."""
    header, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def format_score(table: ScoreTable, experiment: str, column: str) -> str:
    """A value as printed: three decimals as in the paper, with the standard deviation over seeds if there is one."""
    mean, std = float(table.mean[column][experiment]), float(table.std[column][experiment])
    if math.isnan(mean):
        return "–"
    return f"{mean:.3f}" if math.isnan(std) else f"{mean:.3f} ± {std:.3f}"


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
    return PaperRow(row, experiment, _paper_values(number, row), ours)


def _paper_values(number: int, row: str) -> dict[str, float]:
    figures = paper_figures()
    values = figures[(figures["table"] == number) & (figures["row"] == row) & (figures["score"] == "DSC")].iloc[0]
    return {MEAN if column == "mean" else column: float(values[column]) for column in figures.columns[3:]}
