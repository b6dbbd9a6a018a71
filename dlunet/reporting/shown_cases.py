"""The cases that a report shows: their CTs with references and predictions, read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.reporting.paired import is_same_file
from dlunet.reporting.runs import Groups, Run
from dlunet.reporting.tables import best_and_worst, case_means
from dlunet.volumes import Volume, check_grid, read_ct, read_labels

#: What to do with a label map on another grid than the CT.
OTHER_CT = "show it with its own CT"


@dataclass(frozen=True)
class ShownCase:
    """A case with its label maps on one grid.

    Attributes:
        name: Its name.
        remark: What is said of it, such as ``worst, DSC 0.612``.
        image: The CT in HU (z, y, x), canonical.
        spacing: Voxel size (z, y, x) in mm.
        reference: The reference (z, y, x); None if there is none.
        predictions: The predictions (z, y, x) by experiment; None where there is none.
    """

    name: str
    remark: str
    image: np.ndarray
    spacing: tuple[float, float, float]
    reference: np.ndarray | None
    predictions: Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class Choice:
    """The cases to show, and the run of each experiment whose predictions are shown.

    Attributes:
        runs: The first run with predictions of each experiment that has one.
        ranking: The experiment by whose scores cases are ranked; empty if none has predictions and scores.
        cases: The cases with their files.
        remarks: What is said of each case, by name, worst case first.
        notes: What cannot be shown, and why.
    """

    runs: Mapping[str, Run]
    ranking: str
    cases: Mapping[str, Case]
    remarks: Mapping[str, str]
    notes: tuple[str, ...]

    def read(self, notes: list[str]) -> Iterator[ShownCase]:
        """Read the cases; what cannot be read is added to the notes."""
        for name, remark in self.remarks.items():
            try:
                yield self._read(self.cases[name], remark, notes)
            except UserError as error:
                notes.append(f"{name}: not shown: {error}")

    def _read(self, case: Case, remark: str, notes: list[str]) -> ShownCase:
        assert case.label is not None
        image, reference = read_ct(case.image), read_labels(case.label)
        check_grid(case.label, reference, case.image, image, OTHER_CT)
        predictions: dict[str, np.ndarray | None] = {}
        for name, run in self.runs.items():
            try:
                predictions[name] = _prediction(run, case, image)
            except UserError as error:
                notes.append(f"{name}: {error}")
                predictions[name] = None
        return ShownCase(case.name, remark, image.array, image.spacing, reference.array, predictions)


def choose_cases(groups: Groups, chosen: Collection[str] | None = None) -> Choice:
    """Choose cases by the scores of the last experiment that has predictions and scores.

    Args:
        groups: Runs by experiment.
        chosen: The names of the cases; None: the best and the worst.
    """
    shown = {name: next((run for run in runs if run.predictions), None) for name, runs in groups.items()}
    notes = [f"{name}: no predictions to show" for name, run in shown.items() if run is None]
    runs = {name: run for name, run in shown.items() if run is not None}
    ranking = next((name for name in reversed(runs) if runs[name].scores is not None), "")
    scores = runs[ranking].scores if ranking else None
    if scores is None:
        nothing = "No run has both predictions and scores, so there is no best or worst case."
        return Choice(runs, "", {}, {}, (*notes, nothing))
    known = {name: case for run in runs.values() for name, case in run.cases.items()}
    cases = known | runs[ranking].cases
    means = case_means(scores)
    usable = means[[case in cases and case in runs[ranking].predictions for case in means.index]]
    if not len(usable):
        without_ct = "" if cases else "; for label maps of your own, give the CTs: images=FOLDER"
        notes.append(f"No scored test case has its image, its reference and a prediction{without_ct}.")
    missing = [case for case in chosen or () if case not in usable.index]
    notes += [f"{case}: not shown: {ranking} has no score, prediction, CT or reference of it" for case in missing]
    ranks = best_and_worst(list(map(str, usable.index)))
    wanted = [case for case in usable.index if case in (ranks if chosen is None else chosen)]
    remarks = {case: (f"{ranks[case]}, " if case in ranks else "") + f"DSC {usable[case]:.3f}" for case in wanted}
    return Choice(runs, ranking, cases, remarks, tuple(notes))


def _prediction(run: Run, case: Case, image: Volume) -> np.ndarray | None:
    """The label map of a case that a run has predicted, or None.

    Raises:
        UserError: It cannot be read, has another grid than the CT, or is of another case of the same name.
    """
    if case.name not in run.predictions:
        return None
    own = run.cases.get(case.name)
    assert case.label is not None
    if own is not None and own.label is not None and own.label.is_file() and not is_same_file(own.label, case.label):
        raise UserError(f"{run.predictions[case.name]}: is of another {case.name} than the one shown: {own.image}")
    prediction = read_labels(run.predictions[case.name])
    check_grid(run.predictions[case.name], prediction, case.image, image, OTHER_CT)
    return prediction.array
