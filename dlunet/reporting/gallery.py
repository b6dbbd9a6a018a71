"""The cases of a report: a figure of their slices, and their volumes for the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dlunet.errors import UserError, few
from dlunet.labels import LabelSet
from dlunet.reporting.panels import PanelRow, draw_panels, panel_row
from dlunet.reporting.runs import Groups
from dlunet.reporting.shown_cases import choose_cases
from dlunet.reporting.tables import best_and_worst, scored_cases
from dlunet.reporting.viewer import EmbeddedCases

#: Rows of the figure; of more cases, it shows the best and the worst.
MOST_ROWS = 8


@dataclass(frozen=True)
class Gallery:
    """The cases that are shown.

    Attributes:
        figure: A slice of each, with reference and predictions, or None.
        captions: The captions of its rows.
        ranking: The experiment by whose scores the cases are ranked.
        embedded: The volumes for the viewer, worst case first.
        notes: What is missing.
    """

    figure: Figure | None
    captions: tuple[str, ...]
    ranking: str
    embedded: EmbeddedCases
    notes: tuple[str, ...]


def make_gallery(groups: Groups, labels: LabelSet, cases: Sequence[str] | None = None) -> Gallery:
    """Read the cases to show, and draw them.

    Args:
        groups: Runs by experiment.
        labels: The classes.
        cases: The names of the cases; None: those that the last experiment segments best and worst.

    Raises:
        UserError: A case has no scores.
    """
    _check_names(cases, groups)
    choice = choose_cases(groups, cases)
    notes, names = list(choice.notes), list(choice.remarks)
    in_figure = names if len(names) <= MOST_ROWS else best_and_worst(names)
    rows: list[PanelRow] = []
    embedded = EmbeddedCases(labels)
    for case in choice.read(notes):
        if case.name in in_figure:
            rows.append(panel_row(case))
        embedded.add(case)
    notes += [embedded.note] if embedded.note else []
    rows.reverse()  # best first, as in the paper
    figure = draw_panels(rows, ["reference", *choice.runs], labels) if rows else None
    captions = tuple(f"{row.caption.replace(chr(10), ' (')})" for row in rows)
    return Gallery(figure, captions, choice.ranking, embedded, tuple(notes))


def _check_names(cases: Sequence[str] | None, groups: Groups) -> None:
    if cases is None:
        return
    known = scored_cases(run for runs in groups.values() for run in runs)
    unknown = [case for case in cases if case not in known]
    if unknown or not cases:
        found, expected = ", ".join(unknown) or "an empty list", few(sorted(known)) or "none, since no run has scores"
        raise UserError(f"cases: found {found}; expected names of scored cases: {expected}")
