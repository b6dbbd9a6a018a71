"""The HTML page of a report: collects the parts, renders and writes them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from dlunet.files import write_bytes, write_text
from dlunet.labels import LabelSet
from dlunet.reporting import figures, tables
from dlunet.reporting.groups import group_by_experiment
from dlunet.reporting.paired import MAIN_COLUMNS, PairedTable, paired_table
from dlunet.reporting.panels import case_panels
from dlunet.reporting.runs import Run, common_labels, common_metrics, find_runs, read_run
from dlunet.reporting.tables import MEAN, ScoreTable
from dlunet.settings import flattened

Groups = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class _Image:
    """A figure embedded in the page."""

    uri: str
    file: str
    alt: str


def write_report(runs: Sequence[Path], output: Path, *, floor: str | None = None, ceiling: str | None = None) -> Path:
    """Write a report on one or more runs.

    The page, ``index.html``, is self-contained. Its figures as PNG and the scores as ``scores.csv`` and ``scores.md``
    are written beside it, and with a floor the paired comparison as ``paired.csv`` and at the end of ``scores.md``.

    Args:
        runs: Run folders, or folders with run folders at any depth below them. A run folder contains ``config.yaml``
            and ``metrics.csv`` and, depending on the progress of the run, ``provenance.json``,
            ``predictions/NAME.nii.gz`` and ``scores/scores.csv``.
        output: Folder to write to; created if missing.
        floor: Name of the experiment that all others are compared with, case by case; None for no comparison.
        ceiling: Name of the experiment that shows how much can be gained over the floor, or None.

    Returns:
        The path of ``index.html``.

    Raises:
        UserError: A folder contains no run, a configuration cannot be read, the runs have different classes, an
            experiment cannot be compared with floor and ceiling, or the output cannot be written.
    """
    groups = _read_groups(runs)
    paired = paired_table(groups, floor, ceiling)
    labels = common_labels(groups)
    score_tables = _score_tables(groups, labels)
    panels = case_panels(groups, labels)
    drawn = {
        "organ_scores": (figures.organ_scores(groups, labels), "DSC of each test case by class and experiment"),
        "training_curves": (figures.training_curves(groups), "Training loss and validation DSC by step and experiment"),
        "organ_curves": (figures.organ_curves(groups, labels), "Validation DSC by step, class and experiment"),
        "panels": (panels.figure, f"CT slices with classes in colour, one row per case: {', '.join(panels.cases)}"),
    }
    images = {name: _save_figure(figure, output / f"{name}.png", alt) for name, (figure, alt) in drawn.items()}
    write_text(output / "scores.csv", tables.as_csv_table(groups, score_tables).to_csv(index=False))
    markdown = tables.as_markdown(score_tables, _data_note(groups))
    if paired is None:
        (output / "paired.csv").unlink(missing_ok=True)  # of an earlier report
    else:
        markdown += f"\n{paired.as_markdown()}"
        write_text(output / "paired.csv", paired.as_csv_table().to_csv(index=False))
    write_text(output / "scores.md", markdown)
    page = output / "index.html"
    write_text(page, _render(groups, score_tables, paired, images, panels.notes, labels))
    return page


def print_report_summary(
    runs: Sequence[Path],
    page: Path,
    console: Console | None = None,
    *,
    floor: str | None = None,
    ceiling: str | None = None,
) -> None:
    """Print mean scores and DSC per class by experiment, the paper's tables, the comparison, and the page's path.

    Args:
        runs: As for :func:`write_report`.
        page: The path returned by :func:`write_report`.
        console: Console to print to; by default standard output.
        floor: As for :func:`write_report`.
        ceiling: As for :func:`write_report`.
    """
    console = console or Console()
    groups = _read_groups(runs)
    labels = common_labels(groups)
    score_tables = _score_tables(groups, labels)
    dsc = score_tables["dsc"]
    table = Table(title=_data_note(groups), title_justify="left", title_style="")
    table.add_column("")
    for name in groups:
        table.add_column(_plain(name), justify="right")
    means = [(f"mean {table.metric.title}", table, MEAN) for table in score_tables.values()]
    lines = means + [(f"DSC {label.abbreviation}", dsc, label.abbreviation) for label in labels]
    for title, scores, column in lines:
        values = [_highlight(scores, name, column) for name in groups]
        table.add_row(_plain(title), *values, end_section=title == means[-1][0])
    console.print(table)
    paper_tables = tables.paper_tables(dsc, groups, labels)
    for paper_table in paper_tables:
        console.print(_paper_layout(paper_table, "ours (synthetic)" if _is_synthetic(groups) else "ours"))
    if paper_tables and (note := _recipe_note(groups)):
        console.print(note)
    if (paired := paired_table(groups, floor, ceiling)) is not None:
        console.print(_paired_layout(paired))
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def _score_tables(groups: Groups, labels: LabelSet) -> dict[str, ScoreTable]:
    return {name: tables.score_table(groups, name, labels) for name in common_metrics(groups)}


def _read_groups(folders: Sequence[Path]) -> dict[str, list[Run]]:
    return group_by_experiment([read_run(folder) for folder in find_runs(folders)])


def _render(
    groups: Groups,
    score_tables: Mapping[str, ScoreTable],
    paired: PairedTable | None,
    images: Mapping[str, _Image | None],
    panel_notes: Sequence[str],
    labels: LabelSet,
) -> str:
    environment = Environment(
        loader=PackageLoader("dlunet.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        groups=groups,
        runs=[run for runs in groups.values() for run in runs],
        labels=labels,
        score_tables=score_tables,
        paired=paired,
        columns=[MEAN] + [label.abbreviation for label in labels],
        format_score=tables.format_score,
        case_count=_case_count,
        paper_tables=tables.paper_tables(score_tables["dsc"], groups, labels),
        comparisons=tables.comparisons(score_tables["dsc"], groups, labels),
        images=images,
        panel_notes=panel_notes,
        synthetic=_is_synthetic(groups),
        recipe_note=_recipe_note(groups),
        data_note=_data_note(groups),
        data_names=_distinct(groups, "data"),
        scale_names=_distinct(groups, "scale"),
        unequal_cases=_has_unequal_cases(groups),
        facts=_facts,
        config_text=lambda run: OmegaConf.to_yaml(run.config),
        run_style=figures.run_style,
    )


def _save_figure(figure: Figure | None, path: Path, alt: str) -> _Image | None:
    """Write a figure beside the page, or remove that of an earlier report if there is none now."""
    if figure is None:
        path.unlink(missing_ok=True)
        return None
    data = figures.png(figure)
    write_bytes(path, data)
    return _Image(f"data:image/png;base64,{base64.b64encode(data).decode()}", path.name, alt)


def _data_note(groups: Groups) -> str:
    """The data behind the scores, and what they may not be compared with."""
    data, scale = ", ".join(_distinct(groups, "data")), ", ".join(_distinct(groups, "scale"))
    note = f"Data: {data}, scale {scale}."
    if _is_synthetic(groups):
        note = f"SYNTHETIC data ({data}), scale {scale}: not comparable with the paper's figures."
    return f"{note} Scored on different cases: means are not comparable." if _has_unequal_cases(groups) else note


def _recipe_note(groups: Groups) -> str | None:
    """That losses are not the paper's; None if they are."""
    others = [name for name in _distinct(groups, "recipe") if name != "paper"]
    if not others:
        return None
    return f"Ours are trained with recipe={', '.join(others)}: other losses than the paper's, and averaged networks."


def _is_synthetic(groups: Groups) -> bool:
    return any(run.synthetic for runs in groups.values() for run in runs)


def _has_unequal_cases(groups: Groups) -> bool:
    return len({_case_names(run) for run in _scored_runs(groups)}) > 1


def _distinct(groups: Groups, attribute: str) -> list[str]:
    return sorted({getattr(run, attribute) for runs in groups.values() for run in runs})


def _scored_runs(groups: Groups) -> Iterator[Run]:
    return (run for runs in groups.values() for run in runs if run.scores is not None)


def _case_names(run: Run) -> frozenset[str]:
    return frozenset() if run.scores is None else frozenset(run.scores["case"])


def _case_count(runs: Sequence[Run]) -> int:
    return len(frozenset().union(*(_case_names(run) for run in runs)))


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as strings, by dotted name."""
    return {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in flattened(values).items()
    }


def _highlight(scores: ScoreTable, name: str, column: str) -> str:
    text = tables.format_score(scores, name, column)
    return f"[bold]{text}[/bold]" if scores.is_best(name, column) else text


def _paper_layout(paper_table: tables.PaperTable, ours: str) -> Table:
    """A table of the paper with its scores above ours; two decimals, so that all organs fit into 80 columns."""
    columns = list(paper_table.rows[0].paper)
    layout = Table(title=paper_table.title, title_justify="left", title_style="", box=None, padding=(0, 0, 0, 1))
    for column in ("", *columns):
        layout.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in paper_table.rows:
        layout.add_row(row.name)
        layout.add_row("  paper", *(_short(row.paper[column]) for column in columns))
        layout.add_row(f"  {ours}", *(_short(row.ours[column]) if row.ours else "–" for column in columns))
    return layout


def _paired_layout(paired: PairedTable) -> Table:
    """The main columns of a comparison, under its note; where they do not fit, names are wrapped."""
    layout = Table(title=_plain(paired.note), title_justify="left", title_style="", box=None, padding=(0, 0, 0, 1))
    lines = paired.lines()
    titles = [title for title in MAIN_COLUMNS if title in lines[0]]
    for title in titles:
        layout.add_column(title, no_wrap=title != titles[0], overflow="fold")
    for line in lines:
        layout.add_row(*(_plain(line[title]) for title in titles))
    return layout


def _short(score: float) -> str:
    """A score below 1 in three characters, such as .87."""
    return f"{score:.2f}".removeprefix("0")


def _plain(text: str) -> str:
    """Escape a name so that rich does not interpret it as markup."""
    return text.replace("[", "\\[")
