"""The cases that a report shows: their CTs with references and predictions, read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.reporting.runs import Run
from dlunet.reporting.tables import best_and_worst, case_means
from dlunet.volumes import read_ct, read_labels

#: The title of the reference among the label maps of a case.
REFERENCE = "reference"


@dataclass(frozen=True)
class ShownCase:
    """A case with its label maps on one grid.

    Attributes:
        name: Its name.
        remark: What is said of it, such as ``worst, DSC 0.612``.
        image: The CT in HU (z, y, x), canonical.
        spacing: Voxel size (z, y, x) in mm.
        maps: The reference and the predictions (z, y, x) by experiment; None where there is none.
    """

    name: str
    remark: str
    image: np.ndarray
    spacing: tuple[float, float, float]
    maps: Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class Choice:
    """The cases to show, and the run of each experiment whose predictions are shown.

    Attributes:
        runs: The first run with predictions of each experiment that has one.
        cases: The cases with their files.
        remarks: What is said of each case, by name, worst case first.
        notes: What cannot be shown, and why.
    """

    runs: Mapping[str, Run]
    cases: Mapping[str, Case]
    remarks: Mapping[str, str]
    notes: tuple[str, ...]

    def read(self, notes: list[str]) -> Iterator[ShownCase]:
        """Read the cases; what cannot be read is added to the notes."""
        for name, remark in self.remarks.items():
            try:
                yield _read(self.cases[name], remark, self.runs, notes)
            except UserError as error:
                notes.append(f"{name}: not shown: {error}")


def choose_cases(groups: Mapping[str, Sequence[Run]], chosen: Collection[str] | None = None) -> Choice:
    """Choose cases by the scores of the last experiment that has predictions and scores.

    Args:
        groups: Runs by experiment.
        chosen: The names of the cases; None: the best and the worst.
    """
    shown = {name: next((run for run in runs if run.predictions), None) for name, runs in groups.items()}
    notes = [f"{name}: no predictions to show" for name, run in shown.items() if run is None]
    runs = {name: run for name, run in shown.items() if run is not None}
    ranking = next((run for run in reversed(runs.values()) if run.scores is not None), None)
    if ranking is None or ranking.scores is None:
        nothing = "No run has both predictions and scores, so there is no best or worst case."
        return Choice(runs, {}, {}, (*notes, nothing))
    means = case_means(ranking.scores)
    cases = {name: case for run in runs.values() for name, case in run.cases.items()}
    usable = means[[case in cases and case in ranking.predictions for case in means.index]]
    ranks = best_and_worst(list(map(str, usable.index)))
    wanted = [case for case in usable.index if case in (ranks if chosen is None else chosen)]
    if not wanted:
        notes.append("No scored test case has its image, its reference and a prediction.")
    remarks = {case: (f"{ranks[case]}, " if case in ranks else "") + f"DSC {usable[case]:.3f}" for case in wanted}
    return Choice(runs, cases, remarks, tuple(notes))


def _read(case: Case, remark: str, runs: Mapping[str, Run], notes: list[str]) -> ShownCase:
    assert case.label is not None
    image, reference = read_ct(case.image), read_labels(case.label)
    maps: dict[str, np.ndarray | None] = {REFERENCE: reference.array}
    for name, run in runs.items():
        try:
            prediction = read_labels(run.predictions[case.name]).array if case.name in run.predictions else None
        except UserError as error:
            notes.append(f"{name}: {error}")
            prediction = None
        if prediction is not None and prediction.shape != reference.array.shape:
            notes.append(f"{name}: {run.predictions[case.name]} is not on the grid of the CT")
            prediction = None
        maps[name] = prediction
    return ShownCase(case.name, remark, image.array, image.spacing, maps)
