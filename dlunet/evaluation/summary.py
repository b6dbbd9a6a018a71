"""Summaries of a score table: means with intervals for each class, and the cases that hold the mean down."""

from __future__ import annotations

import math
from collections.abc import Container
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlunet.errors import few
from dlunet.evaluation import bootstrap
from dlunet.evaluation.bootstrap import NONE, Estimate
from dlunet.evaluation.metrics import read_metrics
from dlunet.evaluation.scores import DECIMALS
from dlunet.labels import FLARE22, LabelSet
from dlunet.run_layout import ScoresLayout

if TYPE_CHECKING:
    import pandas as pd

#: Largest number of cases, and of classes for each, that are listed as holding the mean down.
MOST_CASES, MOST_ORGANS = 5, 3


class LowCase(NamedTuple):
    """A case that holds the mean down.

    Attributes:
        case: Its name.
        dsc: Its mean DSC over classes.
        others: The mean DSC of all other cases.
        organs: The DSC of those classes that are furthest below their means over all cases, furthest first.
    """

    case: str
    dsc: float
    others: float
    organs: dict[str, float]


def summarize_scores(
    scores: pd.DataFrame, labels: LabelSet = FLARE22, shown: Container[str] | None = None
) -> pd.DataFrame:
    """Mean, standard deviation and interval over cases, for each class and for the mean over classes.

    Args:
        scores: As in ``scores.csv``: columns ``case,organ`` and one per metric.
        labels: The classes, in the order of the rows.
        shown: The names of the classes that get a row; by default all.

    Returns:
        Columns ``organ,abbreviation``, five per metric such as ``dsc_mean,dsc_std,dsc_low,dsc_high,dsc_cases``, and
        ``cases``. Metrics are summarised over the cases where they have a value, ``dsc_cases``. The last row, ``Mean``,
        summarises each case's mean over classes. Standard deviations are population values (divided by the number of
        cases); ``low`` and ``high`` are the ends of the mean's 95 % interval by a percentile bootstrap over cases, NaN
        with fewer than two. Values are rounded to 4 decimals.
    """
    import pandas as pd

    metrics = _metrics_of(scores)
    shown_labels = [label for label in labels if shown is None or label.name in shown]
    named = {label.name: label.abbreviation for label in shown_labels} | {"Mean": "Mean"}
    by_case = {label.name: scores[scores["organ"] == label.name].set_index("case")[metrics] for label in shown_labels}
    by_case["Mean"] = scores.groupby("case")[metrics].mean()
    return pd.DataFrame([_summary_row(name, named[name], values) for name, values in by_case.items()])


def low_cases(scores: pd.DataFrame) -> list[LowCase]:
    """The cases whose mean DSC is more than a standard deviation below that of all cases, lowest first; a few at most.

    Args:
        scores: As in ``scores.csv``.
    """
    table = scores.pivot_table("dsc", "case", "organ")
    means = table.mean(axis=1).round(DECIMALS)
    if len(means) < 3:  # of two cases, one is always a standard deviation below their mean
        return []
    low = means[means < means.mean() - means.std(ddof=0)].sort_values(kind="stable").head(MOST_CASES)
    return [_low_case(str(case), table, means) for case in low.index]


def read_scores(table: Path) -> pd.DataFrame:
    """The rows of ``scores.csv``.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError, KeyError: It is not a table of scores.
    """
    import pandas as pd

    # Names are text: a case may be called 0001 or NA.
    metrics = [name for name in pd.read_csv(table, nrows=0).columns if name not in ("case", "organ")]
    absent = {name: [""] for name in metrics}
    scores = pd.read_csv(table, dtype={"case": str, "organ": str}, keep_default_na=False, na_values=absent)
    return scores.astype(dict.fromkeys(metrics, float))


def print_summary(scores: pd.DataFrame, folder: Path) -> None:
    """Print means with intervals, and the cases that hold the mean down.

    Args:
        scores: As in ``scores.csv``.
        folder: The folder with the summary of these scores.
    """
    import pandas as pd

    console, metrics = Console(), read_metrics(folder)
    summary = pd.read_csv(ScoresLayout(folder).summary, keep_default_na=False, na_values=[""])  # a class may be NA
    cases = scores["case"].nunique()
    title = f"Means over {cases} cases, with 95 % bootstrap intervals" if cases > 1 else "Scores of one case"
    if 1 < cases < bootstrap.FEW:
        title += ", which are too narrow for so few cases"
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("")
    for metric in metrics.values():
        table.add_column(Text(metric.title), justify="right")
    for row in summary.to_dict("records"):
        if row["organ"] == "Mean":
            table.add_section()
        table.add_row(Text(row["organ"]), *(_estimate(row, name) for name in metrics))
    console.print(table)
    for name, metric in metrics.items():
        if without := _classes_without(scores, name):
            line = f"{metric.title}: no value for {few(without)}; the mean leaves out what has none"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if perfect := _perfect_classes(scores):
        line = (
            f"DSC of 1 in all cases: {few(perfect)}; a class that no label map contains has it, too: it raises the mean"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for low in low_cases(scores):
        organs = ", ".join(f"{organ} {dsc:.3f}" for organ, dsc in low.organs.items())
        line = f"low: {low.case}, mean DSC {low.dsc:.3f} (all others {low.others:.3f}): {organs}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _classes_without(scores: pd.DataFrame, name: str) -> list[str]:
    """The classes that have no value of a metric in any case; none if no class has one."""
    counts = scores.groupby("organ", sort=False)[name].count()
    return [str(organ) for organ in counts.index[counts == 0]] if counts.any() else []


def _perfect_classes(scores: pd.DataFrame) -> list[str]:
    lowest = scores.groupby("organ", sort=False)["dsc"].min()
    return [str(organ) for organ in lowest.index[lowest == 1]]


def _low_case(case: str, table: pd.DataFrame, means: pd.Series) -> LowCase:
    values, row = table.to_numpy(), table.loc[case].to_numpy()
    deficits = (values.mean(axis=0) - row).round(DECIMALS)
    furthest = [place for place in np.argsort(-deficits, kind="stable")[:MOST_ORGANS] if deficits[place] > 0]
    organs = {str(table.columns[place]): float(row[place]) for place in furthest}
    return LowCase(case, float(means[case]), float(means.drop(case).mean()), organs)


def _metrics_of(scores: pd.DataFrame) -> list[str]:
    return [column for column in scores.columns if column not in ("case", "organ")]


def _summary_row(organ: str, abbreviation: str, values: pd.DataFrame) -> dict[str, str | float | int]:
    row: dict[str, str | float | int] = {"organ": organ, "abbreviation": abbreviation}
    for score in values.columns:
        known = values[score].dropna().to_numpy()
        low, high = _interval_of_mean(known)
        estimates = {
            "mean": known.mean() if len(known) else math.nan,
            "std": known.std() if len(known) else math.nan,
            "low": low,
            "high": high,
        }
        row |= {f"{score}_{name}": round(float(value), DECIMALS) for name, value in estimates.items()}
        row[f"{score}_cases"] = len(known)
    return {**row, "cases": len(values)}


def _interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean; NaN if there are fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    return bootstrap.interval(_case_weights(len(values)) @ values)


@lru_cache(maxsize=2)  # most classes have the same number of cases
def _case_weights(cases: int) -> np.ndarray:
    return bootstrap.weights(np.random.default_rng(0), cases)


def _estimate(row: dict, name: str) -> Text:
    mean, known = Estimate(*(row[f"{name}_{part}"] for part in ("mean", "low", "high"))), row[f"{name}_cases"]
    if not known:
        return Text(NONE)
    return Text(mean.text(".3f") + f" (n={known})" * (known < row["cases"]))
