"""Tests of each class against SciPy, permutations and loops, and what they find in scores that are made up."""

import itertools
import math
import random
from pathlib import Path
from statistics import fmean, median, quantiles

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy import stats

from dlunet.errors import UserError
from dlunet.evaluation import bootstrap
from dlunet.labels import FLARE22
from dlunet.reporting.organ_tests import holm, organ_tests
from dlunet.reporting.paired import signed_rank_p
from dlunet.reporting.runs import Run

CASES, SEEDS, ORGANS = 12, 3, len(FLARE22)


def runs(dsc, seeds=None):
    """One run per seed with scores from an array (seed, case, organ)."""
    made = []
    for seed, by_case in zip(seeds or range(len(dsc)), dsc, strict=True):
        rows = [(f"case_{case:02}", label.name, value, 0.5)
                for case, values in enumerate(by_case)
                for label, value in zip(FLARE22, values, strict=True)]  # fmt: skip
        scores = pd.DataFrame(rows, columns=["case", "organ", "dsc", "nsd"])
        made.append(Run(Path(), OmegaConf.create({"seed": seed}), pd.DataFrame(), {}, scores, {}, {}))
    return made


def made_up(seed, shape=(SEEDS, CASES, ORGANS)):
    """Scores of two experiments between which there is no difference but chance."""
    rng = np.random.default_rng(seed)
    cases = rng.normal(0.7, 0.1, shape[1:])
    return [cases + rng.normal(0, 0.03, shape) for _ in range(2)]


@pytest.fixture
def scores():
    return made_up(1)


def by_column(before, after):
    return {test.column: test for test in organ_tests(runs(before), runs(after), FLARE22)}


def signed_rank_by_permutation(differences):
    """Wilcoxon's two-sided p from its definition: the share of all signs with a rank sum as far from its middle."""
    ranks = stats.rankdata(np.abs(differences))
    middle = ranks.sum() / 2
    found = abs(ranks[differences > 0].sum() - middle)
    sums = (sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks)))
    return fmean(abs(total - middle) >= found - 1e-9 for total in sums)


def test_counts_medians_and_p(scores):
    before, after = scores
    found = by_column(before, after)
    assert list(found) == ["Mean", *(label.abbreviation for label in FLARE22)]
    for number, test in enumerate(found.values()):
        organ = (after - before).mean(axis=2) if number == 0 else (after - before)[:, :, number - 1]
        of_cases = [fmean(organ[seed][case] for seed in range(SEEDS)) for case in range(CASES)]
        assert test.median.value == pytest.approx(median(of_cases))
        assert (test.better, test.worse) == (sum(d > 0 for d in of_cases), sum(d < 0 for d in of_cases))
        assert test.p == pytest.approx(stats.wilcoxon(of_cases).pvalue)
        assert test.p == pytest.approx(signed_rank_by_permutation(np.array(of_cases)))
        assert test.cases == CASES and test.seeds == ("0", "1", "2")


@pytest.mark.parametrize(("ties", "differing"), [(0, 5), (19, 5), (21, 3), (60, 8)])
def test_cases_that_tie_do_not_make_p_smaller(ties, differing):
    differences = np.array([0.0] * ties + [0.01 * (k + 1) for k in range(differing)])
    assert signed_rank_p(differences) == pytest.approx(2 * 0.5**differing)
    assert signed_rank_p(differences) == pytest.approx(signed_rank_by_permutation(differences[ties:]))


def test_the_interval_is_that_of_a_bootstrap_loop_over_cases_and_seeds(scores):
    before, after = scores
    spleen = (after - before)[:, :, 2].tolist()
    rng, medians = random.Random(3), []
    for _ in range(10_000):
        seeds, cases = rng.choices(range(SEEDS), k=SEEDS), rng.choices(range(CASES), k=CASES)
        medians.append(median(fmean(spleen[seed][case] for seed in seeds) for case in cases))
    ends, estimate = quantiles(medians, n=40), by_column(before, after)["SL"].median
    chance = 0.08 * (ends[-1] - ends[0])
    assert (estimate.low, estimate.high) == pytest.approx((ends[0], ends[-1]), abs=chance)


def test_holm_s_correction():
    """Worked out by hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04, which must not be below the one before."""
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan})
    assert [corrected[name] for name in "dacb"] == pytest.approx([0.02, 0.03, 0.06, 0.06])
    assert math.isnan(corrected["e"])
    assert holm({"a": 0.8, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_an_effect_on_one_organ_is_found_and_no_other(scores):
    before, after = scores
    after = after.copy()
    after[:, :, 7] += 0.1
    found = by_column(before, after)
    assert {column for column, test in found.items() if test.corrected < 0.05 and column != "Mean"} == {"LAG"}
    assert found["LAG"].median.low > 0.05 and found["LAG"].better == CASES
    assert by_column(after, before)["LAG"].median.high < -0.05


def test_where_there_is_no_effect_few_are_found(monkeypatch):
    """In at most one of twenty comparisons on average; 12 of 100 would be chance once in two hundred times."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    false = 0
    for seed in range(100):
        tests = by_column(*made_up(seed + 100, (1, 10, ORGANS)))
        false += any(test.corrected < 0.05 for column, test in tests.items() if column != "Mean")
    assert false < 12


def test_equal_scores_and_single_cases_have_no_p_or_interval(scores):
    before, _ = scores
    same = by_column(before, before)["LV"]
    assert math.isnan(same.p) and math.isnan(same.corrected) and (same.better, same.worse) == (0, 0)
    one = by_column(before[:, :1], before[:, :1] + 0.1)["LV"]
    assert one.median.value == pytest.approx(0.1) and math.isnan(one.median.low)


def test_equal_and_opposite_differences_of_two_seeds_are_no_difference():
    """Whatever rounding errors their mean has."""
    before = np.full((2, CASES, ORGANS), 0.5)
    steps = np.round(np.random.default_rng(4).uniform(0, 0.3, (CASES, ORGANS)), 4)
    after = np.stack([before[0] + steps, before[0] - steps])
    test = by_column(before, after)["LV"]
    assert (test.better, test.worse) == (0, 0) and math.isnan(test.p)


def test_only_shared_seeds_are_compared(scores):
    before, after = scores
    tests = organ_tests(runs(before, [0, 1, 2]), runs(after, [2, 3, 4]), FLARE22)
    assert tests[0].seeds == ("2",)
    with pytest.raises(UserError, match="one, other: their runs share no seed"):
        organ_tests(runs(before, [0, 1, 2]), runs(after, [3, 4, 5]), FLARE22, ("one", "other"))
