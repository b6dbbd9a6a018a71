"""The summary of a report in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlunet.evaluation.bootstrap import NONE
from dlunet.labels import FLARE22
from dlunet.reporting.contents import Report
from dlunet.reporting.paired import MAIN_COLUMNS, PairedTable
from dlunet.reporting.paper import PaperTable, recipe_note, tables_of_experiments
from dlunet.reporting.sheets import Sheet
from dlunet.reporting.table_files import WrittenTable
from dlunet.reporting.tables import MEAN, ScoreTable, format_score


def print_report(report: Report, page: Path) -> None:
    """Print mean scores and DSC per class by experiment, the paper's tables, the comparison, and the page's path.

    Args:
        report: The contents.
        page: The path returned by :func:`dlunet.reporting.write_report`.
    """
    console = Console()
    console.print(_scores_layout(report))
    for note in filter(None, (scores.note for scores in report.scores.values())):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    tables = tables_of_experiments(report.groups, report.labels)
    for table in tables:
        console.print(_paper_layout(table, report.ours))
        if table.note:
            console.print(table.note, markup=False, highlight=False, soft_wrap=True)
    if losses := recipe_note(tables):
        console.print(losses, markup=False, highlight=False, soft_wrap=True)
    if report.paired is not None:
        console.print(_paired_layout(report.paired))
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def print_paper_table(written: WrittenTable) -> None:
    """Print a table of the paper in two decimals, its tests, and its files."""
    Console().print(_paper_layout(written.table, written.ours))
    print_sheets(written.sheets[1:], written.notes, written.files)


def print_sheets(sheets: Sequence[Sheet], notes: Sequence[str], files: Sequence[Path]) -> None:
    """Print tables, the notes below them, and their files."""
    console = Console()
    for sheet in sheets:
        layout = _open_table(sheet.title)
        for number, text in enumerate(sheet.header):
            layout.add_column(escape(text), justify="left" if number < sheet.texts else "right", overflow="fold")
        for row in sheet.rows:
            layout.add_row(*map(escape, row))
        console.print(layout)
    for text in (*notes, *(f"written: {path}" for path in files)):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _scores_layout(report: Report) -> Table:
    layout = Table(title=escape(report.data_note), title_justify="left", title_style="")
    layout.add_column("")
    for name in report.groups:
        layout.add_column(escape(name), justify="right")
    means = [(f"mean {table.metric.title}", table, MEAN) for table in report.scores.values()]
    lines = means + [(f"DSC {label.abbreviation}", report.dsc, label.abbreviation) for label in report.labels]
    for title, scores, column in lines:
        values = [_highlight(scores, name, column) for name in report.groups]
        layout.add_row(escape(title), *values, end_section=title == means[-1][0])
    return layout


def _highlight(scores: ScoreTable, name: str, column: str) -> str:
    text = format_score(scores, name, column)
    return f"[bold]{text}[/bold]" if scores.is_best(name, column) else text


def _paper_layout(table: PaperTable, ours: str) -> Table:
    """A table of the paper with its scores above ours; two decimals, so that all organs fit into 80 columns."""
    columns = [MEAN, *(label.abbreviation for label in FLARE22)]
    layout = _open_table(table.title)
    for column in ("", *columns):
        # Long names are folded, figures are not.
        layout.add_column(column, justify="right" if column else "left", no_wrap=bool(column), overflow="fold")
    for row in table.rows:
        layout.add_row(escape(row.name))
        for source, values in table.sources(row).items():
            texts = (_short(values[column]) if values else NONE for column in columns)
            layout.add_row(f"  {ours if source == 'ours' else source}", *texts)
    return layout


def _paired_layout(paired: PairedTable) -> Table:
    """The main columns of a comparison, under its note; where they do not fit, names are wrapped."""
    layout = _open_table(paired.note)
    lines = paired.lines()
    titles = [title for title in MAIN_COLUMNS if title in lines[0]]
    for title in titles:
        layout.add_column(title, no_wrap=title != titles[0], overflow="fold")
    for line in lines:
        layout.add_row(*(escape(line[title]) for title in titles))
    return layout


def _open_table(title: str) -> Table:
    """A table without lines under a title."""
    return Table(title=escape(title), title_justify="left", title_style="", box=None, padding=(0, 0, 0, 1))


def _short(score: float) -> str:
    """A score below 1 in three characters, such as .87."""
    return NONE if math.isnan(score) else f"{score:.2f}".removeprefix("0")
