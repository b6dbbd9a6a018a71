"""Writes a table of the paper, with our scores beside the paper's and tests, as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dlunet.errors import UserError
from dlunet.evaluation.bootstrap import NONE
from dlunet.files import write_bytes, write_text
from dlunet.labels import FLARE22
from dlunet.reporting.contents import Report, training_facts
from dlunet.reporting.figures import png
from dlunet.reporting.organ_tests import OrganTest, organ_tests
from dlunet.reporting.paired import notes_on_few, p_text
from dlunet.reporting.panels import draw_panels, panel_row
from dlunet.reporting.paper import (
    Comparison,
    PaperTable,
    comparisons,
    paper_table,
    recipe_note,
    runs_of_figure_3,
)
from dlunet.reporting.runs import Run
from dlunet.reporting.sheets import Sheet, in_all_forms
from dlunet.reporting.shown_cases import choose_cases
from dlunet.reporting.tables import MEAN, mean_and_std, scored_cases

#: What the paper states of the cost per case: seconds, and areas under the curves of GPU memory and CPU use.
COSTS: dict[str, tuple[str, float | None, float | None, float | None]] = {
    "DLUNet+tta": ("DLUNet+tta", 144, None, None),
    "DLUNet+tta+RAM": ("DLUNet+tta+RAM", 48, None, None),
    "Test set, DSC": ("Test set", 73.92, 138_831, 1_195),
}
COST_COLUMNS = {"seconds": "Seconds", "gpu_area_mb_s": "GPU memory, MB·s", "cpu_area_percent_s": "CPU, %·s"}
TESTS_NOTE = (
    "Differences are medians over cases of the difference in DSC, each case's mean over seeds, with 95 % bootstrap "
    "intervals over cases and seeds. p is that of Wilcoxon's signed-rank test over cases, two-sided; those of the "
    "classes are corrected for their number by Holm's method. It is about the networks of these seeds. The paper's "
    "differences are those of its means."
)

#: The cost of our runs, in tables 5 and 7.
COST_NOTE = "The cost is that of the machine named below; without a GPU, its memory is 0."

NOTES = {
    5: "Prediction always keeps one slab of a CT in memory, as +RAM does, but never stops early: ours of +tta+RAM are "
    f"those of +tta. {COST_NOTE}",
    6: "Below the paper's cases are the two best and the two worst of ours, by the first seed with unlabelled cases, "
    "unless the paper's were scored; figure 3 shows that seed.",
    7: COST_NOTE,
}

#: The cases of the paper's tables, where the paper says it of the table.
CASES_OF_THE_PAPER = {5: "'s 50 validation cases", 7: "'s test cases"}
NOT_FLIPPED = "No label maps predicted with flips were found in these runs; `make table5` predicts them."
NOT_MIRRORED = (
    "Ours were trained without mirrored CTs, the paper's with them: flips at prediction lower the scores of ours. "
    "augmentation=nnunet trains with mirrored CTs."
)


@dataclass(frozen=True)
class WrittenTable:
    """A table of the paper as written.

    Attributes:
        table: Its contents.
        ours: What its rows of our scores are called.
        sheets: The table as printed, and one of tests for each comparison that the paper draws.
        notes: What must be known about the figures.
        files: Its files.
    """

    table: PaperTable
    ours: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def write_paper_table(report: Report, number: int, output: Path) -> WrittenTable:
    """Write a table of the paper with our scores.

    ``tableN.md``, ``tableN.tex`` (for booktabs) and ``tableN.html`` have the table, the tests and the notes;
    ``tableN.csv`` has the values (columns ``row,source,seeds,column,mean,std``) and ``tableN_tests.csv`` the tests.
    Figure 3, ``figure3.png``, is written with table 6.

    Args:
        report: The contents.
        number: The number of the table in the paper.
        output: Folder to write to; created if missing.

    Raises:
        UserError: No run belongs to the table, or the output cannot be written.
    """
    table = _table(report, number)
    report = _only(report, table)
    if len({run.synthetic for run in report.runs}) > 1:
        raise UserError(
            f"table={number}: found runs of synthetic and of real CTs; expected runs of one dataset; pass the folders "
            "of these alone: runs=[FOLDER,FOLDER]"
        )
    compared, tests, untested = _tested(table, report)
    sheets = [_score_sheet(table, report.ours), *map(_test_sheet, compared, tests)]
    if (costs := _cost_sheet(table, report.ours)) is not None:
        sheets.append(costs)
    figure, missing = _figure_3(report, table) if number == 6 else (None, [])
    notes = [*_notes(report, table), *_notes_on_tests(tests), *untested, *missing]
    contents: dict[str, str | bytes | None] = {
        **in_all_forms(f"table{number}", sheets, notes),
        f"table{number}.csv": _values(table, report.ours).to_csv(index=False),
        f"table{number}_tests.csv": _test_values(compared, tests).to_csv(index=False) if tests else None,
    }
    if number == 6:
        contents["figure3.png"] = None if figure is None else png(figure)
    return WrittenTable(table, report.ours, tuple(sheets), tuple(notes), write_contents(output, contents))


def write_contents(output: Path, contents: Mapping[str, str | bytes | None]) -> tuple[Path, ...]:
    """Write files by name, and remove those that an earlier table had and this one has not."""
    for name, content in contents.items():
        if content is None:
            (output / name).unlink(missing_ok=True)
        elif isinstance(content, str):
            write_text(output / name, content)
        else:
            write_bytes(output / name, content)
    return tuple(output / name for name, content in contents.items() if content is not None)


def _table(report: Report, number: int) -> PaperTable:
    expected = paper_table(number, {}).experiments
    if report.labels == FLARE22:
        table = paper_table(number, report.groups)
        if any(row.ours for row in table.rows):
            return table
    alike = [name for name in report.groups if name.partition(" (")[0] in expected and name not in expected]
    if alike:
        raise UserError(
            f"table={number}: found several kinds of runs, {', '.join(alike)}; expected one of each experiment; pass "
            "the folders of one kind: runs=[FOLDER,FOLDER]"
        )
    raise UserError(
        f"table={number}: found no scores of its experiments among {', '.join(report.groups)}; expected "
        f"{', '.join(expected)}, with their methods and networks and FLARE22's classes; train and score them with: "
        f"make table{number}"
    )


def _only(report: Report, table: PaperTable) -> Report:
    """The report on the runs of a table alone: other runs must not appear in its notes."""
    folders = {run.folder for row in table.rows for run in row.runs}
    groups = {
        name: members
        for name, runs in report.groups.items()
        if (members := [run for run in runs if run.folder in folders])
    }
    return replace(report, groups=groups)


def _tested(table: PaperTable, report: Report) -> tuple[list[Comparison], list[list[OrganTest]], list[str]]:
    """The comparisons with their tests, and notes on those that share no case or seed."""
    found = comparisons([table])
    compared = [comparison for comparison in found if comparison.ours is not None]
    tests = [
        organ_tests(each.before.runs, each.after.runs, report.labels, (each.before.name, each.after.name))
        for each in compared
    ]
    return compared, tests, [f"Not tested: {each.shared}." for each in found if each.ours is None]


def _score_sheet(table: PaperTable, ours: str) -> Sheet:
    columns, rows = [MEAN, *(label.abbreviation for label in FLARE22)], []
    for row in table.rows:
        for source in table.sources(row):
            name, texts = ("paper", _texts(row.paper)) if source == "paper" else (ours, _texts(row.ours, row.std))
            rows.append((row.name, name, *(texts.get(column, NONE) for column in columns)))
    return Sheet(table.title, ("Method", "Source", *columns), tuple(rows), texts=2)


def _texts(means: Mapping[str, float] | None, std: Mapping[str, float] | None = None) -> dict[str, str]:
    return {column: mean_and_std(mean, (std or {}).get(column, math.nan)) for column, mean in (means or {}).items()}


def _test_sheet(comparison: Comparison, tests: Sequence[OrganTest]) -> Sheet:
    header = ("Class", "Paper", "Ours, median difference", "p", "Cases better / worse")
    rows = [
        (
            test.column,
            f"{comparison.paper[test.column]:+.3f}",
            test.median.text("+.3f"),
            p_text(test.corrected),
            f"{test.better} / {test.worse}",
        )
        for test in tests
    ]
    title = f"{comparison.change}: {comparison.after.name} − {comparison.before.name} ({comparison.shared})"
    return Sheet(title, header, tuple(rows))


def _cost_sheet(table: PaperTable, ours: str) -> Sheet | None:
    """Time and memory per case, where the paper states them."""
    rows = []
    for row in table.rows:
        if row.name not in COSTS:
            continue
        title, *paper = COSTS[row.name]
        costs = [costs.reindex(columns=list(COST_COLUMNS)) for run in row.runs if (costs := run.costs) is not None]
        means = pd.concat(costs).apply(pd.to_numeric, errors="coerce").mean() if costs else pd.Series(dtype=float)
        known = {name: f"{means[name]:,.1f}" for name in COST_COLUMNS if name in means and not math.isnan(means[name])}
        rows.append((title, "paper", *(NONE if value is None else f"{value:,.0f}" for value in paper)))
        rows.append((title, ours, *(known.get(name, NONE) for name in COST_COLUMNS)))
    return Sheet("Cost per case", ("Method", "Source", *COST_COLUMNS.values()), tuple(rows), texts=2) if rows else None


def _notes(report: Report, table: PaperTable) -> Iterator[str]:
    yield report.data_note
    if note := recipe_note([table]):
        yield note
    runs = [run for row in table.rows for run in row.runs]
    part = "validation" if report.has_validation_scores else "test"
    cases = "seeds, of single" if table.number == 6 else f"seeds and {len(scored_cases(runs))}"
    yield f"Means over {cases} {part} cases; ± is the standard deviation over seeds."
    yield "A class in neither reference nor prediction scores 1."
    yield f"The paper: arXiv 2209.10984, on FLARE22{CASES_OF_THE_PAPER.get(table.number, '')}."
    if table.note:
        yield table.note
    if table.number in NOTES:
        yield NOTES[table.number]
    augmentations = [dict(run.setting("augmentation", {"flip": "unknown"})) for run in runs]
    if table.number == 5 and not all(row.runs for row in table.rows):
        yield NOT_FLIPPED
    elif table.number == 5 and not all(augmentation.get("flip") for augmentation in augmentations):
        yield NOT_MIRRORED
    if others := [run.seed for run in runs if _is_of_another_network(run)]:
        yield (
            f"With flips, another network than without has predicted: seeds {', '.join(dict.fromkeys(others))}; the "
            "run was trained further between them. Predict again: make table5"
        )
    seeds = {row.name: ", ".join(run.seed for run in row.runs) for row in table.rows if row.runs}
    if len(set(seeds.values())) > 1:
        yield "Seeds: " + "; ".join(f"{name}: {text}" for name, text in seeds.items()) + "."
    yield f"Seeds: {', '.join(dict.fromkeys(run.seed for run in runs))}; {training_facts(runs)}."


def _is_of_another_network(run: Run) -> bool:
    """Whether further label maps of a run are of other weights than its own, as far as both are recorded."""
    return len({run.weights, replace(run, part="").weights} - {None}) > 1


def _notes_on_tests(tests: Sequence[Sequence[OrganTest]]) -> Iterator[str]:
    if not tests:
        return
    yield " ".join([TESTS_NOTE, *notes_on_few((test.cases, len(test.seeds)) for each in tests for test in each)])
    # The smallest p: all cases that differ do so in one direction; Holm multiplies it by the number of classes.
    classes = [known for each in tests if (known := [test for test in each[1:] if not math.isnan(test.p)])]
    differing = [max(test.better + test.worse for test in each) for each in classes]
    least = [min(1.0, 2 * 0.5**cases * len(each)) for cases, each in zip(differing, classes, strict=True)]
    if least and max(least) > 0.05:
        cases = f"{_from_to(differing, 'd')} cases" if max(differing) != 1 else "one case"
        bounds = _from_to(least, ".3f") + ", by comparison" * (len(set(least)) > 1)
        yield (
            f"With {cases}, no p of a class can be below {bounds} (cases without a difference do not count): a large "
            "one says nothing."
        )


def _from_to(values: Sequence[float], form: str) -> str:
    ends = [f"{end:{form}}" for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def _figure_3(report: Report, table: PaperTable) -> tuple[Figure | None, list[str]]:
    """The cases of table 6 as pictures, and notes on what is missing."""
    cases = scored_cases(run for row in table.rows for run in row.runs)
    choice = choose_cases(runs_of_figure_3(report.groups), cases)
    notes = list(choice.notes)
    rows = [panel_row(case) for case in choice.read(notes)][::-1]
    return (draw_panels(rows, ["reference", *choice.runs], report.labels) if rows else None), notes


def _values(table: PaperTable, source: str) -> pd.DataFrame:
    columns = ["row", "source", "seeds", "column", "mean", "std"]
    values: list[tuple[object, ...]] = []
    for row in table.rows:
        seeds = " ".join(run.seed for run in row.runs)
        values += [(row.name, "paper", "", column, mean, None) for column, mean in (row.paper or {}).items()]
        values += [
            (row.name, source, seeds, column, mean, (row.std or {})[column])
            for column, mean in (row.ours or {}).items()
        ]
    return pd.DataFrame(values, columns=columns).round(4)


def _test_values(compared: Sequence[Comparison], tests: Sequence[Sequence[OrganTest]]) -> pd.DataFrame:
    columns = ["before", "after", "column", "cases", "median", "low", "high", "p", "p_corrected", "better", "worse"]
    values = [
        (
            *(comparison.before.name, comparison.after.name, test.column, test.cases),
            *(round(value, 4) for value in (test.median.value, test.median.low, test.median.high)),
            *(test.p, test.corrected, test.better, test.worse),
        )
        for comparison, each in zip(compared, tests, strict=True)
        for test in each
    ]
    return pd.DataFrame(values, columns=columns)
