"""The contents of a report: runs by experiment, their scores and comparison, and what must be said of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlunet.labels import LabelSet
from dlunet.reporting.groups import common_labels, common_metrics, group_by_experiment
from dlunet.reporting.paired import PairedTable, paired_table
from dlunet.reporting.runs import Groups, Run, find_runs, read_run
from dlunet.reporting.tables import ScoreTable, score_table, scored_cases


@dataclass(frozen=True)
class Report:
    """What all forms of a report show.

    Attributes:
        groups: Runs by experiment.
        labels: The classes of all runs.
        scores: The score tables by metric.
        paired: The comparison with a floor, or None.
        left_out: What is said of cases that could not be scored.
    """

    groups: Groups
    labels: LabelSet
    scores: Mapping[str, ScoreTable]
    paired: PairedTable | None
    left_out: Sequence[str] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for runs in self.groups.values() for run in runs]

    @property
    def dsc(self) -> ScoreTable:
        """The table of the DSC."""
        return self.scores["dsc"]

    @property
    def is_synthetic(self) -> bool:
        """Whether a run has generated CTs."""
        return any(run.synthetic for run in self.runs)

    @property
    def of_label_maps(self) -> bool:
        """Whether it is about folders of label maps, not about trainings."""
        return all("scale" not in run.config for run in self.runs)

    @property
    def ours(self) -> str:
        """What rows of our scores beside the paper's are called."""
        return "ours (synthetic)" if self.is_synthetic else "ours"

    @property
    def has_unequal_cases(self) -> bool:
        """Whether runs were scored on different cases."""
        return len({frozenset(scored_cases([run])) for run in self.runs if run.scores is not None}) > 1

    @property
    def has_validation_scores(self) -> bool:
        """Whether a run was scored on its validation cases, which flatters it: they chose its checkpoint."""
        return any(run.is_scored_on_validation for run in self.runs)

    @property
    def data_note(self) -> str:
        """The data behind the scores, and what they may not be compared with."""
        data, scale = ", ".join(self.distinct("data")), ", ".join(self.distinct("scale"))
        note = "Label maps of unknown training." if self.of_label_maps else f"Data: {data}, scale {scale}."
        if self.is_synthetic:
            note = f"SYNTHETIC data ({data}), scale {scale}: not comparable with the paper's figures."
        if self.has_validation_scores:
            note += " No test case has labels: the validation cases are scored, by which the checkpoints were chosen."
        if outdated := [f"{run.name}, seed {run.seed}" for run in self.runs if run.is_scored_before_its_end]:
            note += f" Trained further since they were scored, so these scores are of before: {'; '.join(outdated)}."
        if unscored := self._unscored:
            note += f" Without scores, so not in the means: {', '.join(unscored)}."
        return f"{note} Scored on different cases: means are not comparable." if self.has_unequal_cases else note

    def distinct(self, attribute: str) -> list[str]:
        """The values of an attribute of the runs."""
        return sorted({getattr(run, attribute) for run in self.runs})

    @property
    def _unscored(self) -> list[str]:
        """The runs without scores of experiments that have some."""
        scored = [(name, runs) for name, runs in self.groups.items() if any(run.scores is not None for run in runs)]
        return [f"{name}, seed {run.seed}" for name, runs in scored for run in runs if run.scores is None]


def training_facts(runs: Sequence[Run]) -> str:
    """The steps, plans, commits and machines of runs, as printed."""
    facts = {
        "steps": (run.trained_steps for run in runs),
        "plan": (run.plan for run in runs),
        "commits": (run.commit for run in runs),
        "machines": (run.machine for run in runs),
    }
    return "; ".join(f"{name}: {', '.join(dict.fromkeys(values))}" for name, values in facts.items())


def read_report(folders: Sequence[Path], *, floor: str | None = None, ceiling: str | None = None) -> Report:
    """Read one or more runs for a report.

    Args:
        folders: Run folders, or folders with run folders at any depth below them. A run folder contains
            ``config.yaml`` and ``metrics.csv`` and, depending on the progress of the run, ``provenance.json``,
            ``predictions/NAME.nii.gz`` and ``scores/scores.csv``.
        floor: Name of the experiment that all others are compared with, case by case; None for no comparison.
        ceiling: Name of the experiment that shows how much can be gained over the floor, or None.

    Raises:
        UserError: A folder contains no run, a configuration cannot be read, scores occur twice, the runs have different
            classes, or an experiment cannot be compared with floor and ceiling.
    """
    return report_of([read_run(folder) for folder in find_runs(folders)], floor=floor, ceiling=ceiling)


def report_of(
    runs: Sequence[Run], *, floor: str | None = None, ceiling: str | None = None, left_out: Sequence[str] = ()
) -> Report:
    """The report of runs that were read; see :func:`read_report`."""
    groups = group_by_experiment(runs)
    labels = common_labels(groups)  # first: scores of other classes cannot be compared
    scores = {name: score_table(groups, name, labels) for name in common_metrics(groups)}
    return Report(groups, labels, scores, paired_table(groups, floor, ceiling), left_out)
