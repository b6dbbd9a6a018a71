"""The HTML page of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from dlunet.errors import UserError
from dlunet.files import write_bytes, write_text
from dlunet.reporting import figures, tables
from dlunet.reporting.contents import Report
from dlunet.reporting.gallery import Gallery, make_gallery
from dlunet.reporting.paper import comparisons, recipe_note, tables_of_experiments
from dlunet.reporting.tables import MEAN, case_rows
from dlunet.reporting.templates import render
from dlunet.run_layout import ScoresLayout
from dlunet.settings import flattened


@dataclass(frozen=True)
class _Image:
    """A figure embedded in the page."""

    uri: str
    file: str
    alt: str


def write_report(report: Report, output: Path, cases: Sequence[str] | None = None) -> Path:
    """Write a report as a page.

    The page, ``index.html``, is self-contained. Its figures as PNG and the scores as ``scores.csv`` and ``scores.md``
    are written beside it, and with a floor the paired comparison as ``paired.csv`` and at the end of ``scores.md``.

    Args:
        report: The contents.
        output: Folder to write to; created if missing.
        cases: The names of the cases to show; None: those that the last experiment segments best and worst.

    Returns:
        The path of ``index.html``.

    Raises:
        UserError: A case has no scores, or the output cannot be written, or contains scores of label maps.
    """
    if ScoresLayout(output).references.exists():
        raise UserError(
            f"{output}: contains scores, and a report would replace {ScoresLayout(output).table.name}; choose another "
            "folder: output=FOLDER"
        )
    groups, labels = report.groups, report.labels
    gallery = make_gallery(report.groups, report.labels, cases)
    drawn = {
        "organ_scores": (figures.organ_scores(groups, labels), "DSC of each test case by class and experiment"),
        "training_curves": (figures.training_curves(groups), "Training loss and validation DSC by step and experiment"),
        "organ_curves": (figures.organ_curves(groups, labels), "Validation DSC by step, class and experiment"),
        "panels": (
            gallery.figure,
            f"CT slices with classes in colour, one row per case: {', '.join(gallery.captions)}",
        ),
        "paired_differences": (
            figures.paired_differences(report.paired, list(groups)) if report.paired else None,
            "Difference in DSC to the floor, one dot per case, by experiment",
        ),
    }
    images = {name: _save_figure(figure, output / f"{name}.png", alt) for name, (figure, alt) in drawn.items()}
    write_text(output / "scores.csv", tables.as_csv_table(groups, report.scores).to_csv(index=False))
    markdown = tables.as_markdown(report.scores, report.data_note)
    if report.paired is None:
        (output / "paired.csv").unlink(missing_ok=True)  # of an earlier report
    else:
        markdown += f"\n{report.paired.as_markdown()}"
        write_text(output / "paired.csv", report.paired.as_csv_table().to_csv(index=False))
    write_text(output / "scores.md", markdown)
    page = output / "index.html"
    write_text(page, _render(report, images, gallery))
    return page


def _render(report: Report, images: Mapping[str, _Image | None], gallery: Gallery) -> str:
    of_paper = tables_of_experiments(report.groups, report.labels)
    return render(
        "report.html.j2",
        report=report,
        columns=[MEAN] + [label.abbreviation for label in report.labels],
        format_score=tables.format_score,
        mean_and_std=tables.mean_and_std,
        case_count=lambda runs: len(tables.scored_cases(runs)),
        scored_seeds=tables.scored_seeds,
        paper_tables=of_paper,
        recipe_note=recipe_note(of_paper),
        comparisons=comparisons(of_paper),
        images=images,
        notes=gallery.notes,
        ranking=gallery.ranking,
        cases=case_rows(report.groups, report.labels),
        viewed=[case.name for case in gallery.embedded.cases],
        viewer_data=gallery.embedded.data(),
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
    return _Image(figures.data_uri(data), path.name, alt)


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as strings, by dotted name."""
    return {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in flattened(values).items()
    }
