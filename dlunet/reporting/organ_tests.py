"""Paired tests of two experiments for each class, corrected for the number of classes.

As in :mod:`dlunet.reporting.paired`, scores of the same seed, case and class are paired, and intervals are those of a
bootstrap that draws cases and, independently of them, seeds. A case is tested once, with its mean over seeds: networks
of other seeds segment the same case, so that their scores are no further cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlunet.evaluation import bootstrap
from dlunet.evaluation.bootstrap import Estimate
from dlunet.labels import LabelSet
from dlunet.reporting.paired import (
    NOISE,
    by_seed,
    check_same_references,
    estimate,
    shared_scores,
    signed_rank_p,
)
from dlunet.reporting.runs import Run
from dlunet.reporting.tables import MEAN


@dataclass(frozen=True)
class OrganTest:
    """How the DSC of a class, or of the mean over classes, differs between two experiments.

    Attributes:
        column: The abbreviation of the class, or ``Mean``.
        seeds: The shared seeds.
        cases: Number of shared cases.
        median: The median over cases of the difference, in the mean over seeds.
        p: Of Wilcoxon's signed-rank test over cases, two-sided; NaN if no case differs.
        corrected: p, corrected for the number of classes by Holm's method; that of the mean is not corrected.
        better: Number of cases with a larger DSC.
        worse: Number of cases with a smaller one.
    """

    column: str
    seeds: tuple[str, ...]
    cases: int
    median: Estimate
    p: float
    corrected: float
    better: int
    worse: int


def organ_tests(
    before: Sequence[Run], after: Sequence[Run], labels: LabelSet, names: tuple[str, str] = ("before", "after")
) -> list[OrganTest]:
    """Test the difference of two experiments for the mean over classes and for each class.

    Args:
        before: The runs of one experiment, one per seed.
        after: The runs of the other one; where their DSC is larger, differences are positive.
        labels: The classes.
        names: What messages call the two experiments.

    Raises:
        UserError: The experiments share no seed or no case, or were scored on other cases of the same names.
    """
    check_same_references([*before, *after])
    scores = shared_scores(dict(zip(names, map(by_seed, (before, after)), strict=True)))
    differences = scores[names[1]] - scores[names[0]]
    seeds = tuple(map(str, differences.columns))
    by_column = {MEAN: differences.groupby(level="case").mean().to_numpy()}
    for label in labels:
        rows = differences[differences.index.get_level_values("organ") == label.name]
        by_column[label.abbreviation] = rows.to_numpy()
    p = {column: signed_rank_p(_of_cases(values)) for column, values in by_column.items()}
    corrected = {**p, **holm({column: value for column, value in p.items() if column != MEAN})}
    return [_test(column, seeds, values, p[column], corrected[column]) for column, values in by_column.items()]


def holm(p: dict[str, float]) -> dict[str, float]:
    """Correct p values for their number (Holm 1979); those that are NaN stay so and do not count."""
    known = sorted((name for name in p if not math.isnan(p[name])), key=p.__getitem__)
    corrected, largest = dict(p), 0.0
    for rank, name in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p[name]))
        corrected[name] = largest
    return corrected


def _test(column: str, seeds: tuple[str, ...], values: np.ndarray, p: float, corrected: float) -> OrganTest:
    of_cases = _of_cases(values)
    return OrganTest(
        column=column,
        seeds=seeds,
        cases=len(values),
        median=_median(values),
        p=p,
        corrected=corrected,
        better=int((of_cases > 0).sum()),
        worse=int((of_cases < 0).sum()),
    )


def _of_cases(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(axis=1).round(NOISE))


def _median(values: np.ndarray) -> Estimate:
    """The median over cases of a (case, seed) array; without an interval if there are fewer than two cases."""
    cases, seeds = values.shape
    if cases < 2:
        return Estimate(float(np.median(values.mean(axis=1))) if cases else math.nan, math.nan, math.nan)
    generator = np.random.default_rng(0)
    by_case = values @ bootstrap.weights(generator, seeds).T
    resampled = np.take_along_axis(by_case, generator.integers(cases, size=by_case.shape), axis=0)
    return estimate(np.median(values.mean(axis=1)), np.median(resampled, axis=0))
