"""Check every case before preparation, and report its properties and problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from dlunet.datasets import Case, Dataset
from dlunet.errors import UserError
from dlunet.labels import LabelSet
from dlunet.parallel import for_each_case
from dlunet.preparation.fingerprint import CaseFacts, read_facts
from dlunet.preparation.prepare import unknown_classes


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`examine` found.

    Attributes:
        labels: The classes.
        parts: For each part of the dataset, its usable cases by name, without their foreground.
        problems: A message for each file or case that cannot be used.
        warnings: A message for each usable case or class that looks wrong.
    """

    labels: LabelSet
    parts: dict[str, dict[str, CaseFacts]]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def print(self, console: Console) -> None:
        """Print the tables, then the warnings and the problems."""
        console.print(_parts_table(self.parts), _labels_table(self.labels, self.parts))
        lines = [(f"warning: {warning}", "yellow") for warning in self.warnings]
        lines += [(f"cannot be used: {problem}", "red") for problem in self.problems]
        for line, color in lines:
            console.print(line, style=color, markup=False, highlight=False, soft_wrap=True)


def examine(dataset: Dataset, workers: int | None = None) -> Diagnosis:
    """Read every case once, with the checks of the preparation.

    Args:
        dataset: The cases.
        workers: Processes; by default one per core.
    """
    named = {
        "labelled": (*dataset.labelled, *dataset.validation),
        "unlabelled": dataset.unlabelled,
        "test": dataset.test,
    }
    read = partial(_read_facts, num_classes=dataset.labels.num_classes)
    every = [case for cases in named.values() for case in cases]
    outcomes = dict(for_each_case("examining", read, every, workers)) if every else {}
    parts: dict[str, dict[str, CaseFacts]] = {part: {} for part in named}
    problems = list(dataset.problems)
    for part, cases in named.items():
        for case in cases:
            outcome = outcomes[case]
            if isinstance(outcome, UserError):
                problems.append(str(outcome))
            else:
                parts[part][case.name] = outcome
    return Diagnosis(dataset.labels, parts, tuple(problems), tuple(_warnings(dataset.labels, parts)))


def _read_facts(case: Case, num_classes: int) -> CaseFacts:
    """The facts that are reported: the foreground would fill the memory with thousands of cases."""
    return replace(read_facts(case, num_classes), foreground=np.empty(0, np.float32))


def _warnings(labels: LabelSet, parts: dict[str, dict[str, CaseFacts]]) -> Iterator[str]:
    cases = {f"{part} case {name}": facts for part, named in parts.items() for name, facts in named.items()}
    first: dict[bytes, str] = {}
    for case, facts in cases.items():
        yield from (f"{case}: {warning}" for warning in facts.warnings)
        if facts.voxels == {}:
            yield f"{case}: its label map is empty"
        twin = first.setdefault(facts.digest, case)
        if twin != case:
            yield (
                f"{case}: has the same voxels as {twin}; scores are meaningless if the same CT is used for training "
                "and testing"
            )
    labelled = [facts.voxels for facts in parts["labelled"].values() if facts.voxels is not None]
    if labelled:
        yield from unknown_classes(labels, set().union(*labelled))


def _parts_table(parts: dict[str, dict[str, CaseFacts]]) -> Table:
    table = Table("cases", "number", "shape z, y, x", "spacing z, y, x in mm", "orientation", "HU")
    for part, cases in parts.items():
        facts = list(cases.values())
        table.add_row(
            part,
            str(len(facts)),
            _ranges([case.shape for case in facts], "{:.0f}"),
            _ranges([case.spacing for case in facts], "{:.3g}"),
            ", ".join(f"{letters} {count}" for letters, count in Counter(c.orientation for c in facts).most_common()),
            _ranges([case.hu_range for case in facts], "{:.0f}", joined=True),
        )
    return table


def _labels_table(labels: LabelSet, parts: dict[str, dict[str, CaseFacts]]) -> Table:
    table = Table("id", "class", "cases that contain it", "median voxels per case")
    shown = [case.voxels for cases in parts.values() for case in cases.values() if case.voxels is not None]
    for label in labels:
        counts = [voxels[label.id] for voxels in shown if label.id in voxels]
        median = f"{np.median(counts):,.0f}" if counts else "-"
        table.add_row(str(label.id), label.name, f"{len(counts)} of {len(shown)}", median)
    return table


def _ranges(rows: Sequence[Sequence[float]], number: str, joined: bool = False) -> str:
    """Smallest and largest value of each column or, if ``joined``, of all columns together."""
    if not rows:
        return "-"
    columns = [np.ravel(rows)] if joined else np.transpose(rows)
    ends = [tuple(dict.fromkeys((number.format(min(column)), number.format(max(column))))) for column in columns]
    return ", ".join(" to ".join(end) for end in ends)
