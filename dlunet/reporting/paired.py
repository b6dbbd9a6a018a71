"""Paired comparison of experiments: differences to a floor, shares of the gap to a ceiling, and their intervals.

Scores of the same seed, case and organ are paired. What is compared is the mean DSC over them, or the mean NSD.

Intervals are those of a percentile bootstrap that draws cases and, independently of them, seeds (Owen 2007, "The
pigeonhole bootstrap", arXiv 0712.1111), since the networks of every seed segment every case. Organs are not drawn:
those of a case share its image and anatomy, so drawing them one by one, as if they were independent, would give
intervals that are too narrow. With few seeds they are too narrow as well; a single seed says nothing about other seeds.
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from dlunet.errors import UserError
from dlunet.evaluation import bootstrap
from dlunet.evaluation.bootstrap import NONE, Estimate
from dlunet.reporting.runs import NO_SEED, Groups, Run
from dlunet.reporting.tables import markdown_table

#: The columns that are the result, where there is no room for all.
MAIN_COLUMNS = ("Experiment", "Difference to floor", "p", "Share of the gap")
#: Decimals to which mean differences are rounded before they are counted and ranked: scores have 4, the rest is noise.
NOISE = 9


@dataclass(frozen=True)
class PairedRow:
    """An experiment, over the seeds and cases that it shares with the floor and, if there is one, the ceiling.

    Attributes:
        experiment: Its name.
        seeds: The shared seeds.
        cases: Number of shared cases.
        mean: Its mean score.
        difference: Its mean score minus the floor's.
        p: Of Wilcoxon's signed-rank test over cases, two-sided; NaN if no case differs.
        better_cases: Number of cases with a larger score than the floor's, in the mean over organs and seeds.
        worse_cases: Number of cases with a smaller one.
        better_seeds: Number of seeds with a larger score than the floor's, in the mean over organs and cases.
        worse_seeds: Number of seeds with a smaller one.
        share: The difference as a share of the gap, that between ceiling and floor; None without a ceiling, or where
            the gap has no interval above 0.
        of_cases: The difference of each case, in the mean over organs and seeds.
    """

    experiment: str
    seeds: tuple[str, ...]
    cases: int
    mean: Estimate
    difference: Estimate
    p: float
    better_cases: int
    worse_cases: int
    better_seeds: int
    worse_seeds: int
    share: Estimate | None
    of_cases: tuple[float, ...]


@dataclass(frozen=True)
class PairedTable:
    """All experiments that have scores, beside the floor; what is compared is ``dsc`` or ``nsd``."""

    floor: str
    ceiling: str | None
    rows: tuple[PairedRow, ...]
    score: str = "dsc"

    @property
    def title(self) -> str:
        """The title of the column with the means."""
        return f"Mean {self.score.upper()}"

    @property
    def has_seeds(self) -> bool:
        """Whether seeds are known, unlike those of label maps whose training is not."""
        return any(seed != NO_SEED for row in self.rows for seed in row.seeds)

    @property
    def note(self) -> str:
        """What the columns are."""
        shared = self.floor if self.ceiling is None else f"{self.floor} and {self.ceiling}"
        of, over = ("seeds, cases", "cases and seeds") if self.has_seeds else ("cases", "cases")
        about = "; it is about the networks of these seeds and says nothing about other seeds" * self.has_seeds
        sentences = [
            f"{self.title} over the {of} and organs that an experiment shares with {shared}, with 95 % bootstrap "
            f"intervals over {over}. p is that of Wilcoxon's signed-rank test over cases, not corrected for the number "
            f"of experiments{about}."
        ]
        # Of label maps without seeds, intervals are over cases alone, as said.
        sentences += notes_on_few((row.cases, len(row.seeds) if self.has_seeds else 0) for row in self.rows)
        if self.ceiling is not None:
            sentences.append(f"The gap is the difference between {self.ceiling} and {self.floor}.")
            if any(row.share is None for row in self.rows):
                sentences.append(f"{NONE}: the gap has no interval above 0, so a share of it is undefined.")
        return " ".join(sentences)

    def lines(self) -> list[dict[str, str]]:
        """The rows as printed, by title of the column; the floor is not compared with itself."""
        return [self._line(row) for row in self.rows]

    def _line(self, row: PairedRow) -> dict[str, str]:
        compared = {
            "Difference to floor": row.difference.text("+.3f"),
            "p": p_text(row.p),
            "Cases better / worse": f"{row.better_cases} / {row.worse_cases}",
            "Seeds better / worse": f"{row.better_seeds} / {row.worse_seeds}",
        }
        if self.ceiling is not None:
            compared["Share of the gap"] = NONE if row.share is None else row.share.text(".0%")
        if row.experiment == self.floor:
            compared = dict.fromkeys(compared, NONE)
        seeds, mean = ", ".join(row.seeds), row.mean.text(".3f")
        line = {"Experiment": row.experiment, "Seeds": seeds, "Cases": str(row.cases), self.title: mean, **compared}
        return {title: text for title, text in line.items() if self.has_seeds or "Seeds" not in title}

    def as_csv_table(self) -> pd.DataFrame:
        """All values for other programs; an estimate ``x`` has columns ``x``, ``x_low`` and ``x_high``."""
        return pd.DataFrame([_csv_row(row, self.score) for row in self.rows])

    def as_markdown(self) -> str:
        """The table as Markdown, under its note."""
        lines = self.lines()
        return f"{self.note}\n\n{markdown_table([list(lines[0]), *(list(line.values()) for line in lines)])}\n"


def notes_on_few(counts: Iterable[tuple[int, int]]) -> list[str]:
    """What must be said of intervals from few cases or seeds, given their numbers in each comparison."""
    compared = list(counts)
    sentences = {
        "From one case there is no interval.": any(cases == 1 for cases, _ in compared),
        f"From fewer than {bootstrap.FEW} cases, intervals are too narrow.": any(
            1 < cases < bootstrap.FEW for cases, _ in compared
        ),
        "From one seed, intervals are over cases alone.": any(cases > 1 and seeds == 1 for cases, seeds in compared),
    }
    return [sentence for sentence, applies in sentences.items() if applies]


def paired_table(groups: Groups, floor: str | None, ceiling: str | None, score: str = "dsc") -> PairedTable | None:
    """Compare every experiment that has scores with a floor, and relate it to the gap up to a ceiling.

    Args:
        groups: Runs by experiment name, one per seed.
        floor: Name of the experiment to compare with; None for no comparison.
        ceiling: Name of the experiment that shows how much can be gained, or None.
        score: The score to compare: ``dsc`` or ``nsd``.

    Raises:
        UserError: There is a ceiling but no floor, one of them is not among the experiments or has no scores, or an
            experiment shares no seed or no case with them, or was scored on other cases of the same names.
    """
    if floor is None:
        if ceiling is not None:
            raise UserError(f"ceiling={ceiling}: found no floor; expected both; add floor=NAME to the command")
        return None
    scores = {name: table for name, runs in groups.items() if not (table := by_seed(runs, score)).empty}
    for setting, name in (("floor", floor), ("ceiling", ceiling)):
        if name is not None:
            _check_name(setting, name, groups, scores)
    check_same_references([run for name in scores for run in groups[name]])
    return PairedTable(floor, ceiling, tuple(_row(name, floor, ceiling, scores) for name in scores), score)


def by_seed(runs: Sequence[Run], score: str = "dsc") -> pd.DataFrame:
    """A score with one row per case and organ and one column per seed."""
    scored = {run.seed: run.scores for run in runs if run.scores is not None}
    return pd.DataFrame({seed: scores.set_index(["case", "organ"])[score] for seed, scores in scored.items()})


def _check_name(setting: str, name: str, groups: Groups, scores: Mapping[str, object]) -> None:
    if name not in groups:
        raise UserError(f"{setting}={name}: no such experiment; expected one of: {', '.join(groups)}")
    if name not in scores:
        raise UserError(f"{setting}={name}: its runs have no scores; train with test=true, or choose one with scores")


def check_same_references(runs: Sequence[Run]) -> None:
    """Check that a name means the same case in all runs, as far as the reference label maps are still there."""
    known: dict[str, Path] = {}
    for run in runs:
        for name, case in run.cases.items():
            if case.label is None or not case.label.is_file():
                continue
            first = known.setdefault(name, case.label)
            if not is_same_file(first, case.label):
                raise UserError(
                    f"{run.folder}: was scored on another {name} than the runs before it: {case.label} and {first} "
                    "differ; expected the same test cases; leave these runs out of runs="
                )


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two files are the same one, or have the same contents."""
    return one == other or filecmp.cmp(one, other, shallow=False)


def _row(name: str, floor: str, ceiling: str | None, scores: Mapping[str, pd.DataFrame]) -> PairedRow:
    means = _case_means({other: scores[other] for other in (name, floor, ceiling) if other is not None})
    ours, base = means[name].to_numpy(), means[floor].to_numpy()
    difference = ours - base
    of_cases, of_seeds = (difference.mean(axis=axis).round(NOISE) for axis in (1, 0))
    return PairedRow(
        experiment=name,
        seeds=tuple(means[name].columns),
        cases=len(means),
        mean=_mean(ours),
        difference=_mean(difference),
        p=signed_rank_p(of_cases),
        better_cases=int((of_cases > 0).sum()),
        worse_cases=int((of_cases < 0).sum()),
        better_seeds=int((of_seeds > 0).sum()),
        worse_seeds=int((of_seeds < 0).sum()),
        share=None if ceiling is None else _share(difference, means[ceiling].to_numpy() - base),
        of_cases=tuple(of_cases.tolist()),
    )


def _case_means(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean over organs, of what all experiments have scored: a row per case, columns (experiment, seed)."""
    return shared_scores(scores).groupby(level="case").mean()


def shared_scores(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The scores of what all experiments have scored: a row per case and organ, columns (experiment, seed).

    Args:
        scores: From :func:`by_seed`, by experiment.

    Raises:
        UserError: The experiments share no seed or no case.
    """
    seeds = sorted(set.intersection(*(set(table.columns) for table in scores.values())), key=lambda seed: seed.zfill(9))
    paired = pd.concat({name: table[seeds] for name, table in scores.items()}, axis=1).dropna()
    if paired.empty:
        raise UserError(
            f"{', '.join(scores)}: their runs share no {'case' if seeds else 'seed'}; found "
            + "; ".join(f"{name}: {_described(table)}" for name, table in scores.items())
            + "; expected the same seeds, scored on the same cases; add such runs, or leave the others out of runs="
        )
    return paired


def _described(scores: pd.DataFrame) -> str:
    cases = scores.index.unique("case")
    return f"seeds {', '.join(scores.columns)} and {len(cases)} cases from {min(cases)} to {max(cases)}"


def signed_rank_p(differences: np.ndarray) -> float:
    """The two-sided p of Wilcoxon's signed-rank test over the values that differ from 0; NaN if none does."""
    differing = differences[differences != 0]  # with zeros, SciPy approximates, and its p is too small
    return float(wilcoxon(differing).pvalue) if len(differing) else math.nan


def _mean(values: np.ndarray) -> Estimate:
    """The mean of a (case, seed) array; its interval is over cases, so that a single one gives none."""
    if len(values) == 1:
        return Estimate(float(values.mean()), math.nan, math.nan)
    return estimate(values.mean(), _resampled_means(values))


def _share(difference: np.ndarray, gap: np.ndarray) -> Estimate | None:
    """The ratio of the means of two (case, seed) arrays, None unless the interval of the second is above 0."""
    if not _mean(gap).low > 0:
        return None
    numerators, denominators = _resampled_means(difference), _resampled_means(gap)
    divisible = denominators != 0
    return estimate(difference.mean() / gap.mean(), numerators[divisible] / denominators[divisible])


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """The mean of a (case, seed) array in each resample; the resamples are the same for all arrays of one shape."""
    generator = np.random.default_rng(0)
    cases, seeds = (bootstrap.weights(generator, size) for size in values.shape)
    return ((cases @ values) * seeds).sum(axis=1)


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """A value with the 95 % interval of its values in the resamples."""
    return Estimate(float(value), *bootstrap.interval(resampled))


def p_text(p: float) -> str:
    """A p value as printed."""
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _csv_row(row: PairedRow, score: str) -> dict[str, object]:
    estimates = {score: row.mean, "difference": row.difference, "share": row.share or Estimate(*[math.nan] * 3)}
    values: dict[str, object] = {"run": row.experiment, "seeds": " ".join(row.seeds), "cases": row.cases}
    for name, estimate in estimates.items():
        ends = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        values |= {key: round(value, 4) for key, value in ends.items()}
    counts = ("better_cases", "worse_cases", "better_seeds", "worse_seeds")
    return values | {"p": row.p} | {name: getattr(row, name) for name in counts}
