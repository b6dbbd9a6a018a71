"""Score tables of experiments: means over cases and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dlunet.errors import few
from dlunet.evaluation import Metric
from dlunet.evaluation.bootstrap import NONE
from dlunet.evaluation.metrics import ALWAYS
from dlunet.labels import FLARE22, LabelSet
from dlunet.reporting.groups import common_metrics
from dlunet.reporting.runs import Groups, Run

MEAN = "Mean"
#: Number of best and of worst cases shown, if there are enough.
CASES_PER_END = 2
#: Number of classes that are named for each case.
LOWEST_CLASSES = 3


@dataclass(frozen=True)
class ScoreTable:
    """One metric, with one row per experiment and columns for the mean and for each abbreviation.

    Attributes:
        metric: Its name and direction.
        mean: Mean over seeds of the mean over cases; NaN where an experiment has no scores.
        std: Sample standard deviation over seeds; NaN below two seeds.
        partial: By experiment and column, the number of cases with a value, the least of all seeds, where it is below
            that of the scored cases.
        comparable: The columns whose means are over the same cases and classes in all experiments and seeds.
    """

    metric: Metric
    mean: pd.DataFrame
    std: pd.DataFrame
    partial: Mapping[tuple[str, str], int]
    comparable: frozenset[str]

    @property
    def has_values(self) -> bool:
        """Whether any experiment has a value; classes without a tolerance have no NSD."""
        return bool(self.mean.notna().any(axis=None))

    @property
    def note(self) -> str | None:
        """What means leave out; None if every class has a value in every case."""
        if not self.has_values:
            return None
        without = [column for column in self.mean.columns if self.mean[column].isna().all()]
        sentences = [f"No value for {few(without)}; the mean leaves out what has none."] if without else []
        if self.metric not in ALWAYS.values():
            sentences.append("Means are over the cases in which reference and prediction have the class.")
        if self.partial:
            sentences.append(
                "n is the number of cases with a value where it is below that of the scored cases; no value is called "
                "the best of a column whose values are of different cases."
            )
        return f"{self.metric.title}: {' '.join(sentences)}" if sentences else None

    def is_best(self, experiment: str, column: str) -> bool:
        """Whether the printed value is the best of its column, with at least two values, all of the same cases."""
        values = {name: float(mean_and_std(value)) for name, value in self.mean[column].dropna().items()}
        if column not in self.comparable or len(values) < 2:
            return False
        best = max(values.values()) if self.metric.higher_is_better else min(values.values())
        return values.get(experiment) == best


def score_table(groups: Groups, score: str, labels: LabelSet = FLARE22) -> ScoreTable:
    """Average a metric over cases within each run, then over the runs of each experiment.

    Args:
        groups: Runs by experiment name.
        score: The metric's column in the runs' scores.
        labels: The classes, in the order of the columns.
    """
    columns = [MEAN] + [label.abbreviation for label in labels]
    means, deviations = {}, {}
    partial: dict[tuple[str, str], int] = {}
    averaged: dict[str, set[frozenset[tuple[str, str]]]] = {column: set() for column in columns}
    for name, runs in groups.items():
        scored = [run.scores for run in runs if run.scores is not None and score in run.scores]
        values = pd.DataFrame([organ_means(scores, score, labels) for scores in scored], columns=columns)
        means[name], deviations[name] = values.mean(), values.std(ddof=1)
        for scores in scored:
            for column, pairs in _averaged_pairs(scores, score, labels).items():
                averaged[column].add(pairs)
                count = len({case for case, _ in pairs})
                if count < scores["case"].nunique():
                    partial[name, column] = min(count, partial.get((name, column), count))
    return ScoreTable(
        common_metrics(groups)[score],
        mean=pd.DataFrame(means, index=columns).T,
        std=pd.DataFrame(deviations, index=columns).T,
        partial={place: count for place, count in partial.items() if not math.isnan(means[place[0]][place[1]])},
        comparable=frozenset(column for column in columns if len(averaged[column]) == 1),
    )


def _averaged_pairs(scores: pd.DataFrame, score: str, labels: LabelSet) -> dict[str, frozenset[tuple[str, str]]]:
    """The (case, class) pairs with a value, by column."""
    known = scores.dropna(subset=[score])
    rows = {MEAN: known} | {label.abbreviation: known[known["organ"] == label.name] for label in labels}
    return {column: frozenset(zip(table["case"], table["organ"], strict=True)) for column, table in rows.items()}


def organ_means(scores: pd.DataFrame, score: str, labels: LabelSet = FLARE22) -> dict[str, float]:
    """Mean over cases by class abbreviation, and the overall mean under ``Mean``."""
    by_organ = scores.groupby("organ")[score].mean()
    organs = {label.abbreviation: float(by_organ.get(label.name, float("nan"))) for label in labels}
    return {MEAN: float(scores.groupby("case")[score].mean().mean()), **organs}


def case_means(scores: pd.DataFrame) -> pd.Series:
    """Mean DSC over classes for each case, worst first; ties are sorted by name."""
    return scores.groupby("case")["dsc"].mean().sort_index().sort_values(kind="stable")


@dataclass(frozen=True)
class CaseRow:
    """A case, with its mean DSC over classes by experiment, and the classes that are lowest in the last one."""

    case: str
    dsc: Mapping[str, float]
    lowest: Mapping[str, float]


def case_rows(groups: Groups, labels: LabelSet) -> list[CaseRow]:
    """All cases, sorted by the mean DSC of the last experiment that has scores, worst first.

    Args:
        groups: Runs by experiment; scores are means over their seeds.
        labels: The classes.
    """
    scored = {name: [run.scores for run in runs if run.scores is not None] for name, runs in groups.items()}
    means = {
        name: pd.concat(tables).groupby(["case", "organ"])["dsc"].mean() for name, tables in scored.items() if tables
    }
    if not means:
        return []
    dsc = pd.DataFrame({name: table.groupby("case").mean() for name, table in means.items()}).sort_index()
    last = list(means)[-1]
    abbreviations = {label.name: label.abbreviation for label in labels}
    classes = means[last].unstack("organ").rename(columns=abbreviations).reindex(dsc.index)
    return [
        CaseRow(str(case), dsc.loc[case].to_dict(), classes.loc[case].nsmallest(LOWEST_CLASSES).to_dict())
        for case in dsc.sort_values(last, kind="stable").index
    ]


def scored_seeds(runs: Sequence[Run]) -> list[str]:
    """The seeds of the runs that have scores; means are over these."""
    return [run.seed for run in runs if run.scores is not None]


def scored_cases(runs: Iterable[Run]) -> set[str]:
    """The names of the cases on which any of the runs was scored."""
    return {str(case) for run in runs if run.scores is not None for case in run.scores["case"]}


def best_and_worst(cases: Sequence[str]) -> dict[str, str]:
    """The last and first of cases that are sorted, worst first: best first, each marked ``best`` or ``worst``."""
    count = max(1, min(CASES_PER_END, len(cases) // 2))
    best = dict.fromkeys(cases[::-1][:count], "best")
    worst = {case: "worst" for case in cases[:count][::-1] if case not in best}
    return best | worst


def as_csv_table(groups: Groups, tables: Mapping[str, ScoreTable]) -> pd.DataFrame:
    """All values for other programs: ``run,score,seeds``, then mean and standard deviation over seeds per column."""
    rows = []
    for score, table in tables.items():
        for name in table.mean.index:
            row: dict[str, object] = {"run": name, "score": score, "seeds": " ".join(scored_seeds(groups[name]))}
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
        if table.note:
            parts.append(table.note)
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and rows of cells as a Markdown table."""
    header, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def format_score(table: ScoreTable, experiment: str, column: str) -> str:
    """A value as printed: three decimals as in the paper, standard deviation over seeds, and number of cases.

    The standard deviation is left out if there is none, the number if it is that of all scored cases.
    """
    value = mean_and_std(float(table.mean[column][experiment]), float(table.std[column][experiment]))
    count = table.partial.get((experiment, column))
    return value if count is None else f"{value} (n={count})"


def mean_and_std(mean: float, std: float = math.nan) -> str:
    """A mean with its standard deviation, as printed; either may be NaN."""
    if math.isnan(mean):
        return NONE
    return f"{mean:.3f}" if math.isnan(std) else f"{mean:.3f} ± {std:.3f}"
