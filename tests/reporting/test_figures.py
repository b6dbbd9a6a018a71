"""What is drawn in the figures of a report, read back from them, and which cases and slices it shows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from dlunet.labels import FLARE22, Label, LabelSet
from dlunet.reporting.figures import organ_curves, organ_scores, paired_differences, run_style, training_curves
from dlunet.reporting.panels import draw_panels, panel_row
from dlunet.reporting.shown_cases import ShownCase
from dlunet.reporting.tables import best_and_worst, case_rows

CASES = ("c", "a", "d", "b")
LABELS = LabelSet("two", (Label(1, "Ball", "B", "#ff0000", 1), Label(2, "Tube", "T", "#0000ff", 1)))


def scores_of(seed, cases=CASES, labels=FLARE22):
    rng = np.random.default_rng(seed)
    rows = [(case, label.name, round(rng.uniform(), 4)) for case in cases for label in labels]
    return pd.DataFrame(rows, columns=["case", "organ", "dsc"])


def metrics_of(seed, steps):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"step": np.arange(steps), "train/loss": rng.uniform(size=steps)})
    table["val/dsc"] = np.where(table["step"] % 3 == 2, rng.uniform(size=steps), np.nan)
    return table.assign(**{f"val/dsc/{label.abbreviation}": table["val/dsc"] / (1 + label.id) for label in FLARE22})


@pytest.fixture
def groups():
    """Three experiments: two seeds, one seed without scores, one seed."""
    runs = [
        SimpleNamespace(seed=str(seed), scores=scores_of(seed) if seed != 2 else None, metrics=metrics_of(seed, 30))
        for seed in range(4)
    ]
    return {"first": runs[:2], "without scores": runs[2:3], "last": runs[3:]}


def shown_in_legend(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_every_score_is_a_dot_at_its_organ_in_the_colour_of_its_experiment(groups):
    figure = organ_scores(groups)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [label.abbreviation for label in FLARE22]
    assert shown_in_legend(figure) == ["first", "last"]
    dots = iter(axes.collections)
    medians = [line for line in axes.lines if line.get_linewidth() == 2]
    for place, name in enumerate(groups):
        for position, label in enumerate(FLARE22 if name != "without scores" else ()):
            tables = [run.scores for run in groups[name]]
            expected = [value for table in tables for value in table[table["organ"] == label.name]["dsc"]]
            found = next(dots)
            assert found.get_offsets()[:, 1].tolist() == expected
            assert abs(found.get_offsets()[:, 0] - position).max() < 0.5
            assert same_color(found.get_facecolor()[0][:3], run_style(place)[0])
            assert medians.pop(0).get_ydata() == pytest.approx([np.median(expected)] * 2)
    assert not medians and next(dots, None) is None


def test_curves_are_the_logged_values(groups):
    figure = training_curves(groups)
    assert [axes.get_title() for axes in figure.axes] == ["Training loss", "Validation DSC, mean over classes"]
    assert shown_in_legend(figure) == list(groups)
    for axes, column in zip(figure.axes, ("train/loss", "val/dsc"), strict=True):
        lines = iter(axes.lines)
        for place, runs in enumerate(groups.values()):
            for run in runs:
                line, logged = next(lines), run.metrics[["step", column]].dropna()
                assert line.get_xydata().tolist() == logged.to_numpy().tolist()
                assert (line.get_color(), line.get_linestyle()) == run_style(place)


def test_long_curves_are_smoothed_over_what_was_logged(groups):
    """The values themselves are paler, behind their mean over a fiftieth of the run."""
    run = SimpleNamespace(seed="0", scores=None, metrics=metrics_of(5, 500))
    values, smooth = (line.get_ydata() for line in training_curves({"long": [run]}).axes[0].lines)
    loss = run.metrics["train/loss"].tolist()
    assert values.tolist() == loss
    assert smooth[100] == pytest.approx(np.mean(loss[95:105]))
    assert smooth[0] == pytest.approx(np.mean(loss[:5])) and len(smooth) == 500


def test_each_organ_has_a_curve(groups):
    axes = [axes for axes in organ_curves(groups).axes if axes.lines]
    assert [one.get_title() for one in axes] == [label.name for label in FLARE22]
    for one, label in zip(axes, FLARE22, strict=True):
        for line, run in zip(one.lines, [run for runs in groups.values() for run in runs], strict=True):
            assert line.get_ydata().tolist() == run.metrics[f"val/dsc/{label.abbreviation}"].dropna().tolist()


def test_differences_are_the_cases_and_the_mean_with_its_interval():
    rows = [
        SimpleNamespace(experiment=name, of_cases=cases, difference=SimpleNamespace(value=mean, low=low, high=high))
        for name, cases, mean, low, high in (
            ("floor", (0.0, 0.0), 0.0, 0.0, 0.0),
            ("better", (0.1, -0.1, 0.3), 0.1, 0.05, 0.2),
            ("worse", (-0.2,), -0.2, -0.3, -0.1),
        )
    ]
    (axes,) = paired_differences(SimpleNamespace(floor="floor", rows=rows), ["floor", "worse", "better"]).axes
    assert axes.get_xlabel() == "difference in DSC to floor"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["worse", "better"]
    for place, (row, colour) in enumerate(((rows[2], 1), (rows[1], 2))):
        dots, (interval, mean) = axes.collections[place], axes.lines[2 * place : 2 * place + 2]
        assert dots.get_offsets()[:, 0].tolist() == sorted(row.of_cases)
        assert abs(dots.get_offsets()[:, 1] - place).max() < 0.3
        assert interval.get_xydata().tolist() == [[row.difference.low, place], [row.difference.high, place]]
        assert mean.get_xydata().tolist() == [[row.difference.value, place]]
        assert same_color(interval.get_color(), run_style(colour)[0])
    assert paired_differences(SimpleNamespace(floor="floor", rows=rows[:1]), ["floor"]) is None


def test_a_row_of_pictures_is_the_slice_with_the_most_classes():
    """All pictures of a case show the same slice; what is missing is said in its place."""
    reference, prediction = np.zeros((2, 4, 6, 5), np.uint8)
    reference[1, :3], reference[2, 0], reference[2, 1] = 1, 1, 2
    prediction[2, 4], prediction[1] = 2, 1
    image = np.full((4, 6, 5), -1000.0)
    image[2, 3] = 3000
    case = ShownCase("x", "best", image, (5.0, 3.0, 2.0), reference, {"one": prediction, "none": None})
    row = panel_row(case)
    assert row.aspect == 1.5 and row.caption == "x\nbest"
    assert np.array_equal(row.grey, image[2] > 0)
    assert np.array_equal(row.label_maps[0], reference[2]) and np.array_equal(row.label_maps[1], prediction[2])
    assert row.label_maps[2] is None
    axes = draw_panels([row], ["reference", "one", "none"], LABELS).axes
    assert [one.get_title() for one in axes] == ["image", "reference", "one", "none"]
    plain, truth, found = (one.images[0].get_array() for one in axes[:3])
    assert np.array_equal(plain, np.repeat(row.grey[..., None], 3, -1))
    for picture, label_map in ((truth, reference[2]), (found, prediction[2])):
        red, blue = ((picture - plain)[..., channel] > 0 for channel in (0, 2))
        assert np.array_equal(red, (label_map == 1) & (row.grey == 0))
        assert np.array_equal(blue, (label_map == 2) & (row.grey == 0))
    assert not axes[3].images and [text.get_text() for text in axes[3].texts] == ["no prediction"]


def test_cases_are_sorted_by_the_last_experiment_and_show_their_lowest_classes(groups):
    rows = case_rows(groups, FLARE22)

    def mean(name, case, organ=None):
        tables = [run.scores for run in groups[name]]
        values = [
            table[(table["case"] == case) & (table["organ"].isin([organ] if organ else table["organ"]))]["dsc"]
            for table in tables
        ]
        return np.mean(np.concatenate(values))

    assert [row.case for row in rows] == sorted(CASES, key=lambda case: mean("last", case))
    for row in rows:
        assert row.dsc == pytest.approx({name: mean(name, row.case) for name in ("first", "last")})
        organs = sorted(FLARE22, key=lambda label: mean("last", row.case, label.name))[:3]
        assert list(row.lowest.items()) == [(x.abbreviation, mean("last", row.case, x.name)) for x in organs]
    assert case_rows({"none": groups["without scores"]}, FLARE22) == []


@pytest.mark.parametrize(
    ("cases", "shown"),
    [
        ("a", {"a": "best"}),
        ("ab", {"b": "best", "a": "worst"}),
        ("abc", {"c": "best", "a": "worst"}),
        ("abcde", {"e": "best", "d": "best", "b": "worst", "a": "worst"}),
    ],
)
def test_the_best_and_the_worst_cases(cases, shown):
    assert list(best_and_worst(cases).items()) == list(shown.items())
