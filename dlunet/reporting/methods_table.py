"""Writes a table of methods, each compared with supervised training, as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dlunet.errors import UserError
from dlunet.evaluation.bootstrap import NONE
from dlunet.reporting.contents import Report, training_facts
from dlunet.reporting.organ_tests import holm
from dlunet.reporting.paired import PairedTable, notes_on_few, p_text, paired_table
from dlunet.reporting.runs import Groups, Run
from dlunet.reporting.sheets import Sheet, in_all_forms
from dlunet.reporting.table_files import write_contents

#: The method that all others are compared with.
BASELINE = "Supervised"
HEADER = ("Experiment", "Seeds", "Cases", "Mean DSC", "Difference to supervised", "p", "Cases better / worse")
NOTE = (
    "Mean DSC over classes, and over the cases and seeds that a method shares with supervised training, with 95 % "
    "bootstrap intervals over cases and seeds. p is that of "
    "Wilcoxon's signed-rank test over cases, two-sided, corrected for the number of methods in the table by Holm's "
    "method. It is about the networks of these seeds."
)


def write_methods_table(report: Report, output: Path) -> tuple[list[Sheet], list[str], list[Path]]:
    """Write ``methods.md``, ``.tex``, ``.html`` and ``.csv``: one table for each choice of losses.

    Args:
        report: Runs of ``+sweep=methods``, or others with several methods.
        output: Folder to write to; created if missing.

    Returns:
        The tables as printed, the notes below them, and the files.

    Raises:
        UserError: No choice of losses has a supervised experiment and another one.
    """
    compared = {losses: table for losses, groups in _by_losses(report).items() if (table := _compared(losses, groups))}
    if not compared:
        raise UserError(
            f"table=methods: found {', '.join(report.groups)}; expected scored runs of method=supervised and of "
            "another method, with the same losses; train them with: python train.py -m +sweep=methods"
        )
    sheets = [_sheet(losses, table) for losses, table in compared.items()]
    names = {row.experiment for table in compared.values() for row in table.rows}
    runs = [run for name, group in report.groups.items() if name in names for run in group if run.scores is not None]
    few = notes_on_few((row.cases, len(row.seeds)) for table in compared.values() for row in table.rows)
    notes = [report.data_note, " ".join([NOTE, *few]), _budget(runs)]
    values = pd.concat([_values(losses, table) for losses, table in compared.items()])
    contents = {**in_all_forms("methods", sheets, notes), "methods.csv": values.to_csv(index=False)}
    return sheets, notes, list(write_contents(output, contents))


def _by_losses(report: Report) -> dict[str, dict[str, Sequence[Run]]]:
    """The experiments that have scores, by their losses and, if there are several networks, by network."""
    scored = {name: runs for name, runs in report.groups.items() if any(run.scores is not None for run in runs)}
    networks = {runs[0].parts[1] for runs in scored.values()}
    found: dict[str, dict[str, Sequence[Run]]] = {}
    for name, runs in scored.items():
        _, _, loss, pseudo_loss = runs[0].parts
        losses = loss if pseudo_loss == loss else f"{loss} on labels, {pseudo_loss} on pseudo-labels"
        network = f", {runs[0].parts[1]}" if len(networks) > 1 else ""
        found.setdefault(losses + network, {})[name] = runs
    return found


def _compared(losses: str, groups: Groups) -> PairedTable | None:
    """The comparison with supervised training, best first; None if there is nothing to compare.

    Raises:
        UserError: Several experiments are supervised.
    """
    baselines = [name for name, runs in groups.items() if runs[0].parts[0] == BASELINE]
    if len(baselines) > 1:
        raise UserError(
            f"table=methods: found several supervised experiments with {losses}: {', '.join(baselines)}; expected one "
            "to compare with; pass the folders of runs that belong together: runs=[FOLDER,FOLDER]"
        )
    if not baselines or len(groups) < 2:
        return None
    table = paired_table(groups, baselines[0], None)
    assert table is not None
    return replace(table, rows=tuple(sorted(table.rows, key=lambda row: -row.mean.value)))


def _sheet(losses: str, table: PairedTable) -> Sheet:
    corrected, rows = _corrected(table), []
    for row in table.rows:
        if row.experiment == table.floor:
            comparison = (NONE, NONE, NONE)
        else:
            counts = f"{row.better_cases} / {row.worse_cases}"
            comparison = (row.difference.text("+.3f"), p_text(corrected[row.experiment]), counts)
        rows.append((row.experiment, ", ".join(row.seeds), str(row.cases), row.mean.text(".3f"), *comparison))
    return Sheet(f"Methods with {losses}", HEADER, tuple(rows), texts=2)


def _values(losses: str, table: PairedTable) -> pd.DataFrame:
    values = table.as_csv_table()
    return values.assign(p_corrected=values["run"].map(_corrected(table)), losses=losses)


def _corrected(table: PairedTable) -> dict[str, float]:
    """The p values of a table, corrected for the number of its methods."""
    return holm({row.experiment: row.p for row in table.rows if row.experiment != table.floor})


def _budget(runs: Sequence[Run]) -> str:
    """The steps, plans, commits and machines of the runs, and that the steps differ if they do."""
    text = f"S{training_facts(runs).removeprefix('s')}."
    differ = len({run.trained_steps for run in runs}) > 1
    return f"The methods were not trained for the same number of steps. {text}" if differ else text
