"""Paired comparisons against closed forms, a bootstrap in plain Python and SciPy, and what must not change them."""

import random
from dataclasses import astuple
from pathlib import Path
from statistics import fmean, quantiles

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy import stats

from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.reporting.paired import paired_table
from dlunet.reporting.runs import Run

SEEDS, CASES, ORGANS = 3, 12, 4


def experiment(dsc, seeds=None, cases=None):
    """One run per seed with scores from an array (seed, case, organ)."""
    cases = cases or [f"case_{number:02}" for number in range(dsc.shape[1])]
    seeds = seeds or range(len(dsc))
    return [run(seed, table(values, cases)) for seed, values in zip(seeds, dsc, strict=True)]


def table(values, cases):
    rows = [
        (case, f"organ_{k}", dsc, 0.5) for case, row in zip(cases, values, strict=True) for k, dsc in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=["case", "organ", "dsc", "nsd"])


def run(seed, scores):
    return Run(Path(), OmegaConf.create({"seed": seed}), pd.DataFrame(), {}, scores, {}, {})


def drawn(mean, seed, shape=(SEEDS, CASES, ORGANS)):
    """Scores that vary by seed, case and organ; cases are as difficult for every experiment."""
    cases, rng = np.random.default_rng(99).normal(0, 0.1, shape[1]), np.random.default_rng(seed)
    seeds = rng.normal(0, 0.01, shape[0])
    return mean + cases[None, :, None] + seeds[:, None, None] + rng.normal(0, 0.03, shape)


@pytest.fixture
def scores():
    return {"floor": drawn(0.5, 1), "ours": drawn(0.54, 2), "ceiling": drawn(0.7, 3)}


def groups_of(scores):
    return {name: values if isinstance(values, list) else experiment(values) for name, values in scores.items()}


def row(scores, ceiling="ceiling"):
    """The row of ``ours``, from arrays or runs by name."""
    rows = paired_table(groups_of(scores), "floor", ceiling).rows
    return next(row for row in rows if row.experiment == "ours")


def flat(row):
    """All values of a row, for comparisons up to rounding."""
    estimates = [value for estimate in (row.mean, row.difference, row.share) for value in astuple(estimate)]
    return [*estimates, row.p, row.better_cases, row.worse_cases, row.better_seeds, row.worse_seeds]


def test_nsd_is_compared_as_dsc_is(scores):
    """With the two columns exchanged, the rows are the same, and only the names of the column differ."""
    exchanged = {
        name: [run(one.seed, one.scores.rename(columns={"dsc": "nsd", "nsd": "dsc"})) for one in members]
        for name, members in groups_of(scores).items()
    }
    by_dsc, by_nsd = paired_table(groups_of(scores), "floor", None), paired_table(exchanged, "floor", None, "nsd")
    assert by_nsd.rows == by_dsc.rows
    assert by_nsd.as_markdown() == by_dsc.as_markdown().replace("Mean DSC", "Mean NSD") != by_dsc.as_markdown()
    renamed = {"dsc": "nsd", "dsc_low": "nsd_low", "dsc_high": "nsd_high"}
    assert by_nsd.as_csv_table().equals(by_dsc.as_csv_table().rename(columns=renamed))


def test_a_constant_difference_and_share_have_intervals_without_width(scores):
    scores["ceiling"] = scores["floor"] + 0.2
    scores["ours"] = scores["floor"] + 0.05
    ours = row(scores)
    assert astuple(ours.difference) == pytest.approx((0.05, 0.05, 0.05))
    assert astuple(ours.share) == pytest.approx((0.25, 0.25, 0.25))
    assert (ours.better_cases, ours.worse_cases, ours.better_seeds, ours.worse_seeds) == (CASES, 0, SEEDS, 0)
    assert ours.seeds == ("0", "1", "2") and ours.cases == CASES


def test_p_is_the_chance_that_all_signs_agree(scores):
    scores["ours"] = scores["floor"] + np.linspace(0.01, 0.02, CASES)[None, :, None]
    assert row(scores).p == pytest.approx(2 * 0.5**CASES)


def test_means_signs_and_p_are_those_of_loops_over_cases_and_seeds(scores):
    scores["ours"] = drawn(0.5, 2)
    ours = row(scores)
    differences = [[[a - b for a, b in zip(*organs, strict=True)] for organs in zip(*cases, strict=True)]
                   for cases in zip(scores["ours"], scores["floor"], strict=True)]  # fmt: skip
    of_cases = [fmean(fmean(seed[case]) for seed in differences) for case in range(CASES)]
    of_seeds = [fmean(map(fmean, seed)) for seed in differences]
    gap = scores["ceiling"].mean() - scores["floor"].mean()
    assert ours.mean.value == pytest.approx(scores["ours"].mean())
    assert ours.difference.value == pytest.approx(fmean(of_cases))
    assert ours.share.value == pytest.approx(fmean(of_cases) / gap)
    assert ours.better_cases == sum(d > 0 for d in of_cases) and ours.worse_cases == sum(d < 0 for d in of_cases)
    assert ours.better_seeds == sum(d > 0 for d in of_seeds) and ours.worse_seeds == sum(d < 0 for d in of_seeds)
    assert ours.p == pytest.approx(stats.wilcoxon(of_cases).pvalue)
    assert 0 < ours.worse_cases < CASES


def test_intervals_are_those_of_a_bootstrap_loop_over_cases_and_seeds(scores):
    """In every resample the three experiments have the same cases and seeds."""
    rng = random.Random(5)
    by_case = {name: values.mean(axis=2).tolist() for name, values in scores.items()}
    resampled = {"mean": [], "difference": [], "share": []}
    for _ in range(10_000):
        seeds, cases = rng.choices(range(SEEDS), k=SEEDS), rng.choices(range(CASES), k=CASES)
        mean = {name: fmean(values[s][c] for s in seeds for c in cases) for name, values in by_case.items()}
        resampled["mean"].append(mean["ours"])
        resampled["difference"].append(mean["ours"] - mean["floor"])
        resampled["share"].append((mean["ours"] - mean["floor"]) / (mean["ceiling"] - mean["floor"]))
    ours = row(scores)
    for name, values in resampled.items():
        ends = quantiles(values, n=40)
        close_to(getattr(ours, name), ends[0], ends[-1])


def close_to(estimate, low, high):
    """The ends of an interval agree within what chance does to ten thousand resamples."""
    chance = 0.06 * (high - low)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=chance)
    assert estimate.low < estimate.value < estimate.high


def test_with_one_seed_the_interval_is_scipy_s_over_cases(scores):
    one = {name: values[:1] for name, values in scores.items()}
    of_cases = (one["ours"] - one["floor"]).mean(axis=(0, 2))
    expected = stats.bootstrap((of_cases,), np.mean, method="percentile", n_resamples=10_000).confidence_interval
    close_to(row(one).difference, expected.low, expected.high)


def test_organs_that_repeat_each_other_add_no_certainty(scores):
    repeated = {name: np.repeat(values, 5, axis=2) for name, values in scores.items()}
    assert astuple(row(repeated).difference) == pytest.approx(astuple(row(scores).difference))


def test_a_seed_that_goes_another_way_widens_the_interval():
    floor = drawn(0.5, 1)
    alike, unlike = (floor + np.array(seeds)[:, None, None] for seeds in ([0.05] * 3, [0.0, 0.05, 0.1]))
    narrow, wide = (row({"floor": floor, "ours": ours}, ceiling=None).difference for ours in (alike, unlike))
    assert narrow.value == pytest.approx(wide.value) and wide.high - wide.low > 0.05 > 1e-9 > narrow.high - narrow.low


def test_the_order_of_runs_and_rows_and_other_experiments_change_nothing(scores):
    shuffled = [run(r.seed, r.scores.sample(frac=1, random_state=4)) for r in experiment(scores["ours"])[::-1]]
    others = {"another": drawn(0.2, 7)}
    assert flat(row(others | scores | {"ours": shuffled})) == pytest.approx(flat(row(scores)))


def test_the_names_of_cases_change_nothing_but_the_draws(scores):
    names = [f"scan {k}" for k in np.random.default_rng(8).permutation(CASES)]
    renamed = row({name: experiment(values, cases=names) for name, values in scores.items()})
    ours = row(scores)
    for estimate in ("mean", "difference", "share"):
        one, other = getattr(ours, estimate), getattr(renamed, estimate)
        assert other.value == pytest.approx(one.value)
        close_to(other, one.low, one.high)
    assert renamed.p == pytest.approx(ours.p) and renamed.better_cases == ours.better_cases


def test_exchanging_floor_and_experiment_changes_the_sign(scores):
    ours = row(scores, ceiling=None)
    other = row({"floor": scores["ours"], "ours": scores["floor"]}, ceiling=None)
    assert astuple(other.difference) == pytest.approx([-astuple(ours.difference)[k] for k in (0, 2, 1)])
    assert (other.better_cases, other.p) == (ours.worse_cases, pytest.approx(ours.p))


def test_only_what_all_have_scored_is_compared(scores):
    """Another seed, another case and an organ without a partner have no influence, whatever their scores."""
    more = np.concatenate([scores["ours"], np.ones((1, CASES, ORGANS))])
    more = np.concatenate([more, np.ones((SEEDS + 1, 1, ORGANS))], axis=1)
    alone = table(np.ones((1, 1)), ["case_00"]).assign(organ="organ_x")
    runs = [run(r.seed, pd.concat([r.scores, alone])) for r in experiment(more)]
    assert row(scores | {"ours": runs}) == row(scores)


def test_a_share_of_no_certain_gap_is_undefined(scores):
    for ceiling in (scores["floor"], drawn(0.5, 4), scores["floor"] - 0.1):
        compared = paired_table(groups_of(scores | {"ceiling": ceiling}), "floor", "ceiling")
        assert all(row.share is None for row in compared.rows)
        assert all(line["Share of the gap"] == "–" for line in compared.lines())
        assert "so a share of it is undefined" in compared.note and "undefined" in compared.as_markdown()
    assert "undefined" not in paired_table(groups_of(scores), "floor", "ceiling").note


def test_one_case_gives_no_interval_and_no_share(scores):
    of_one = {name: values[:, :1] for name, values in scores.items()}
    compared = paired_table(groups_of(of_one), "floor", "ceiling")
    ours = next(row for row in compared.rows if row.experiment == "ours")
    assert ours.difference.value == pytest.approx((of_one["ours"] - of_one["floor"]).mean())
    assert np.isnan([ours.difference.low, ours.difference.high]).all() and ours.share is None
    line = next(line for line in compared.lines() if line["Experiment"] == "ours")
    assert line["Difference to floor"] == f"{ours.difference.value:+.3f}" and line["Share of the gap"] == "–"
    assert "From one case there is no interval." in compared.note and "too narrow" not in compared.note


def test_few_cases_and_a_single_seed_are_said(scores):
    narrow, alone = (
        "From fewer than 10 cases, intervals are too narrow.",
        "From one seed, intervals are over cases alone.",
    )
    for seeds, cases, expected in ((3, 12, (False, False)), (1, 12, (False, True)), (2, 9, (True, False))):
        some = {name: values[:seeds, :cases] for name, values in scores.items()}
        note = paired_table(groups_of(some), "floor", None).note
        assert (narrow in note, alone in note) == expected


def test_nothing_is_compared_without_a_floor(scores):
    groups = groups_of(scores)
    assert paired_table(groups, None, None) is None
    assert "Share of the gap" not in paired_table(groups, "floor", None).lines()[0]


def test_cases_of_the_same_names_must_have_the_same_references(scores, tmp_path):
    groups = groups_of(scores)
    references = {name: tmp_path / name / "case_00.nii.gz" for name in groups}
    for name, path in references.items():
        path.parent.mkdir()
        path.write_bytes(b"labels")
        for run in groups[name]:
            run.cases["case_00"] = Case("case_00", path, path)
    paired_table(groups, "floor", "ceiling")  # a copy of the data is the same data
    references["ours"].write_bytes(b"others")
    with pytest.raises(UserError, match=r"another case_00 than .*ours.* differ; expected the same test cases"):
        paired_table(groups, "floor", "ceiling")


def test_what_cannot_be_compared_is_said(scores):
    groups = groups_of(scores | {"unfinished": [run(0, None)]})
    with pytest.raises(UserError, match=r"floor=flor: no such experiment; expected one of: floor, ours, ceiling"):
        paired_table(groups, "flor", None)
    with pytest.raises(UserError, match=r"ceiling=top: no such experiment"):
        paired_table(groups, "floor", "top")
    with pytest.raises(UserError, match=r"floor=unfinished: its runs have no scores; train with test=true"):
        paired_table(groups, "unfinished", None)
    with pytest.raises(UserError, match=r"ceiling=ceiling: found no floor; .*add floor=NAME"):
        paired_table(groups, None, "ceiling")
    assert {row.experiment for row in paired_table(groups, "floor", None).rows} == set(scores)
    other_seeds = {"other": experiment(scores["ours"], seeds=(7, 8, 9))}
    with pytest.raises(UserError, match=r"other, floor: their runs share no seed; found other: seeds 7, 8, 9 and"):
        paired_table(groups | other_seeds, "floor", None)
    other_cases = {"other": experiment(scores["ours"], cases=[f"x{k}" for k in range(CASES)])}
    with pytest.raises(
        UserError, match=r"share no case; found .*12 cases from case_00 to case_11.*leave the others out"
    ):
        paired_table(groups | other_cases, "floor", None)
