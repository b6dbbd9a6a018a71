"""The paper's tables, with our runs in their rows.

Tables 3 and 4 compare experiments, table 5 ways to predict with one checkpoint, table 6 single cases; table 7 has the
scores of the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import pandas as pd

from dlunet.errors import UserError
from dlunet.labels import FLARE22, LabelSet
from dlunet.reporting.paired import by_seed, check_same_references, shared_scores
from dlunet.reporting.runs import Groups, Run
from dlunet.reporting.tables import MEAN, best_and_worst, case_means, organ_means, score_table

#: The tables of experiments, each with the experiments that reproduce its rows.
EXPERIMENTS = {
    3: {
        "sup_nnunet": "nnU-Net w/o SSL",
        "ssl_nnunet": "nnU-Net w SSL",
        "sup_light": "Light UNet w/o SSL",
        "ssl_light": "Light UNet w SSL",
    },
    4: {"loss_dice_ce": "Dice+CE", "loss_nrd_tce": "NRD+TCE"},
}
TITLES = {
    3: "DSC with and without semi-supervised learning (the paper's Table 3)",
    4: "DSC by loss function (the paper's Table 4)",
    5: "DSC with flips at prediction (the paper's Table 5)",
    6: "DSC of single cases without and with semi-supervised learning (the paper's Table 6)",
    7: "DSC and NSD of the test set (the paper's Table 7)",
}
#: The Python classes of the method, network and loss, also on pseudo-labels, of each of these experiments.
PARTS = {
    "sup_nnunet": ("Supervised", "PlainUNet", "RobustSegmentationLoss"),
    "ssl_nnunet": ("CrossPseudo", "PlainUNet", "RobustSegmentationLoss"),
    "sup_light": ("Supervised", "LightUNet", "RobustSegmentationLoss"),
    "ssl_light": ("CrossPseudo", "LightUNet", "RobustSegmentationLoss"),
    "loss_dice_ce": ("Supervised", "PlainUNet", "DiceCrossEntropyLoss"),
    "loss_nrd_tce": ("Supervised", "PlainUNet", "RobustSegmentationLoss"),
}
#: Pairs of rows that differ in one change: (change, without, with).
COMPARISONS = (
    ("Semi-supervision, nnU-Net", "nnU-Net w/o SSL", "nnU-Net w SSL"),
    ("Semi-supervision, light U-Net", "Light UNet w/o SSL", "Light UNet w SSL"),
    ("Light U-Net instead of nnU-Net's, without semi-supervision", "nnU-Net w/o SSL", "Light UNet w/o SSL"),
    ("Light U-Net instead of nnU-Net's, with semi-supervision", "nnU-Net w SSL", "Light UNet w SSL"),
    ("NRD + TCE instead of Dice + CE", "Dice+CE", "NRD+TCE"),
    ("Flips of single axes", "DLUNet", "DLUNet+tta"),
)
#: The rows of table 5, with the folders of their predictions and scores in a run folder. Ours always keep one slab in
#: memory, as the paper's +RAM does, but never stop early: their label maps are those of +tta.
FLIPS = {"DLUNet": "", "DLUNet+tta": "flips-axes", "DLUNet+tta+RAM": "flips-axes"}
#: Table 6 and figure 3: the ends of the names of the paper's cases, and the experiments compared on them.
CASES = ("06", "21", "47", "48")
WAYS = {"w/o SSL": "sup_light", "w SSL": "ssl_light"}


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper: the paper's values and ours by column.

    Attributes:
        name: As in the paper.
        experiment: The experiment that reproduces it.
        paper: The paper's values; None for a row that the paper does not have.
        runs: Our runs that were scored, one per seed.
        ours: The means of their scores; None if they have none.
        std: The standard deviations of these over seeds.
        group: The experiment that our runs are of; empty if there are none.
    """

    name: str
    experiment: str
    paper: dict[str, float] | None
    runs: tuple[Run, ...]
    ours: dict[str, float] | None
    std: dict[str, float] | None
    group: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table in the paper's layout."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]

    @property
    def experiments(self) -> list[str]:
        """The experiments that reproduce its rows."""
        return list(dict.fromkeys(row.experiment for row in self.rows))

    @property
    def note(self) -> str | None:
        """Which experiments of other names are in its rows; None if there are none."""
        others = {row.experiment: row.group for row in self.rows if row.group not in ("", row.experiment)}
        return f"Ours of {'; of '.join(f'{name} are {group}' for name, group in others.items())}." if others else None

    def sources(self, row: PaperRow) -> dict[str, dict[str, float] | None]:
        """The values of a row that are shown, the paper's and ours; None for what was not run."""
        shown: dict[str, dict[str, float] | None] = {} if row.paper is None else {"paper": row.paper}
        if row.ours is not None or self.number != 6:  # other cases than the paper's have rows of their own
            shown["ours"] = row.ours
        return shown


def recipe_note(tables: Sequence[PaperTable]) -> str | None:
    """What our runs in these tables were trained with and the paper's were not; None if nothing is known."""
    rows = [row for table in tables for row in table.rows if row.runs]
    others = [row.name for row in rows if not all(_has_losses(run, row.experiment) for run in row.runs)]
    runs = [run for row in rows for run in row.runs]
    of_some = f" ({', '.join(dict.fromkeys(others))})" if len(others) < len(rows) else ""
    differing = [f"other losses than the paper's{of_some}"] if others else []
    differing += ["averaged networks"] if any(run.setting("recipe.decay", 0) for run in runs) else []
    if not differing:
        return None
    recipes = ", ".join(sorted({run.recipe for run in runs if run.recipe != "paper"}))
    return f"Ours are trained with {f'recipe={recipes}: ' if recipes else ''}{', and '.join(differing)}."


@dataclass(frozen=True)
class Comparison:
    """The effect of a change on the DSC, here and in the paper.

    Attributes:
        change: What is changed.
        before: The row without it.
        after: The row with it.
        ours: By column, the differences of our means over the seeds and cases that both rows have; None if they share
            none.
        shared: These seeds and cases as printed or, if there are none, why.
        paper: By column, the differences of the paper's.
    """

    change: str
    before: PaperRow
    after: PaperRow
    ours: dict[str, float] | None
    shared: str
    paper: dict[str, float]


@cache
def paper_figures() -> pd.DataFrame:
    """The paper's tables 3 to 7: columns ``table,row,score,mean`` and one per organ abbreviation."""
    with resources.files("dlunet.reporting").joinpath("paper_tables.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def tables_of_experiments(groups: Groups, labels: LabelSet = FLARE22) -> list[PaperTable]:
    """Tables 3 and 4 if one of their rows was run, and not only for the other table; none for other label sets."""
    if labels != FLARE22:
        return []
    named = {name for name, group in _groups_by_experiment(groups).items() if name == group}
    others = _groups_by_experiment({name: runs for name, runs in groups.items() if name not in PARTS})
    run = named | others.keys()
    return [paper_table(number, groups) for number, rows in EXPERIMENTS.items() if run & rows.keys()]


def paper_table(number: int, groups: Groups) -> PaperTable:
    """A table in the paper's layout; rows that were not run have no values of ours.

    Args:
        number: Its number in the paper, from 3 to 7.
        groups: Runs by experiment, with FLARE22's classes.
    """
    ours = _groups_by_experiment(groups)
    runs = {experiment: groups[group] for experiment, group in ours.items()}
    make: Callable[[int, Groups], list[PaperRow]] = {
        5: _rows_of_flips,
        6: _rows_of_cases,
        7: _rows_of_the_test_set,
    }.get(number, _rows_of_experiments)
    rows = (replace(row, group=ours[row.experiment]) if row.ours else row for row in make(number, runs))
    return PaperTable(number, TITLES[number], tuple(rows))


def runs_of_figure_3(groups: Groups) -> dict[str, Sequence[Run]]:
    """The runs of the experiments that figure 3 and table 6 compare."""
    ours = _groups_by_experiment(groups)
    return {way: groups[ours[experiment]] for way, experiment in WAYS.items() if experiment in ours}


def comparisons(tables: Sequence[PaperTable]) -> list[Comparison]:
    """The differences between rows that the paper compares, of those that were run and scored."""
    rows = {row.name: row for table in tables for row in table.rows if row.ours is not None}
    return [
        _comparison(change, rows[before], rows[after])
        for change, before, after in COMPARISONS
        if before in rows and after in rows
    ]


def _rows_of_experiments(number: int, runs: Groups) -> list[PaperRow]:
    return [
        _row(name, experiment, _values(number, name), runs.get(experiment, ()))
        for experiment, name in EXPERIMENTS[number].items()
    ]


def _rows_of_flips(number: int, runs: Groups) -> list[PaperRow]:
    trained = runs.get("ssl_light", ())
    return [
        _row(name, "ssl_light", _values(number, name), [run.predicted_in(folder) if folder else run for run in trained])
        for name, folder in FLIPS.items()
    ]


def _rows_of_cases(number: int, runs: Groups) -> list[PaperRow]:
    """The paper's cases if they are among ours, else the paper's rows and below them those of our best and worst."""
    theirs = {case: name for case in CASES for name in _scored_cases(runs) if name.endswith(f"_00{case}")}
    # Where test cases were scored, these are other patients of the same names.
    others = (run.synthetic or not run.is_scored_on_validation for members in runs.values() for run in members)
    if len(theirs) < len(CASES) or any(others):
        theirs = {}
    shown = {f"Case {case}": theirs.get(case) for case in CASES}
    if not theirs:
        shown |= {case: case for case in best_and_worst(_scored_cases(runs))}
    figures = set(paper_figures()["row"])
    return [
        _row(name, experiment, _values(number, name) if name in figures else None, _of_case(runs, experiment, case))
        for title, case in shown.items()
        for way, experiment in WAYS.items()
        for name in (f"{title} {way}",)
    ]


def _scored_cases(runs: Groups) -> list[str]:
    """The cases, worst first, by the first scored run with unlabelled cases or, if there is none, without."""
    for experiment in reversed(WAYS.values()):
        for run in runs.get(experiment, ()):
            if run.scores is not None:
                return list(map(str, case_means(run.scores).index))
    return []


def _rows_of_the_test_set(number: int, runs: Groups) -> list[PaperRow]:
    trained = runs.get("ssl_light", ())
    return [
        _row(f"Test set, {score.upper()}", "ssl_light", _values(number, "Test set", score), trained, score)
        for score in ("dsc", "nsd")
    ]


def _of_case(runs: Groups, experiment: str, case: str | None) -> list[Run]:
    """The runs of an experiment with the scores of one case only."""
    scored = [(run, run.scores) for run in runs.get(experiment, ()) if run.scores is not None]
    return [replace(run, scores=scores[scores["case"] == case]) for run, scores in scored]


def _row(
    name: str, experiment: str, paper: dict[str, float] | None, runs: Sequence[Run], score: str = "dsc"
) -> PaperRow:
    scored = tuple(run for run in runs if run.scores is not None and len(run.scores))
    ours = std = None
    if scored:
        table = score_table({name: scored}, score)
        if table.mean.loc[name].notna().any():
            ours, std = ({str(key): float(part[key][name]) for key in part} for part in (table.mean, table.std))
    return PaperRow(name, experiment, paper, scored, ours, std)


def _comparison(change: str, before: PaperRow, after: PaperRow) -> Comparison:
    assert before.paper and after.paper
    paper = {column: after.paper[column] - before.paper[column] for column in after.paper}
    try:
        check_same_references([*before.runs, *after.runs])
        scores = shared_scores({row.name: by_seed(row.runs) for row in (before, after)})
    except UserError as error:
        return Comparison(change, before, after, None, str(error), paper)
    differences = pd.DataFrame(scores[after.name] - scores[before.name])
    shared = f"{differences.index.unique('case').size} cases, seeds {', '.join(map(str, differences.columns))}"
    ours = organ_means(differences.mean(axis=1).rename("dsc").reset_index(), "dsc")
    return Comparison(change, before, after, ours, shared, paper)


def _groups_by_experiment(groups: Groups) -> dict[str, str]:
    """The group that reproduces each experiment: the one with its name, else the only one with its parts.

    One with its name may have other losses, as those of a recipe, unless the losses are what its table compares. Two
    experiments have the same parts: the first row of table 3 is the second one of table 4.
    """
    found = {}
    for experiment in PARTS:
        alike = [name for name, runs in groups.items() if all(_has_parts(run, experiment) for run in runs)]
        others = [name for name in alike if name not in PARTS] or alike
        if experiment in groups and all(_may_be(run, experiment) for run in groups[experiment]):
            found[experiment] = experiment
        elif len(others) == 1:
            found[experiment] = others[0]
    return found


def _may_be(run: Run, experiment: str) -> bool:
    """Whether a run has the method and network of an experiment and, if the experiment is about them, its losses."""
    return run.parts[:2] == PARTS[experiment][:2] and (experiment not in EXPERIMENTS[4] or _has_losses(run, experiment))


def _has_parts(run: Run, experiment: str) -> bool:
    return run.parts[:2] == PARTS[experiment][:2] and _has_losses(run, experiment)


def _has_losses(run: Run, experiment: str) -> bool:
    """Whether a run has the loss of an experiment, and the same one on pseudo-labels, if it has any."""
    method, _, loss, pseudo_loss = run.parts
    return loss == PARTS[experiment][2] and (method == "Supervised" or pseudo_loss == loss)


def _values(number: int, row: str, score: str = "dsc") -> dict[str, float]:
    figures = paper_figures()
    chosen = (figures["table"] == number) & (figures["row"] == row) & (figures["score"] == score.upper())
    values = figures[chosen].iloc[0]
    return {MEAN if column == "mean" else column: float(values[column]) for column in figures.columns[3:]}
