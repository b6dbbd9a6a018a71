"""Tables of texts as Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlunet.reporting.tables import markdown_table
from dlunet.reporting.templates import render

#: Characters with a meaning in LaTeX, and those that its standard fonts lack.
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "<": "$<$", ">": "$>$", "–": "--"},
    }
)

#: The most columns of a LaTeX table that is not turned.
UPRIGHT = 8


@dataclass(frozen=True)
class Sheet:
    """A table as printed.

    Attributes:
        title: Its title.
        header: The titles of the columns.
        rows: The cells.
        texts: The number of columns, from the first on, that are texts; the others are numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1


def in_all_forms(stem: str, sheets: Sequence[Sheet], notes: Sequence[str]) -> dict[str, str]:
    """Tables as Markdown, LaTeX and HTML, by the name of the file."""
    return {
        f"{stem}.md": as_markdown(sheets, notes),
        f"{stem}.tex": as_latex(sheets, notes),
        f"{stem}.html": render("tables.html.j2", sheets=sheets, notes=notes),
    }


def as_markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Tables under their titles, and notes below them."""
    parts = [f"## {sheet.title}\n\n{markdown_table([sheet.header, *sheet.rows])}" for sheet in sheets]
    return "\n\n".join([*parts, *notes]) + "\n"


def as_latex(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Tables for a document with the packages below, wide ones turned; the notes are in the caption of the first."""
    head = "% \\usepackage{booktabs,graphicx,rotating}\n"
    parts = [_latex_table(sheet, " ".join(notes) if sheet is sheets[0] else "") for sheet in sheets]
    return head + "\n".join(parts)


def _latex_table(sheet: Sheet, notes: str) -> str:
    lines = [" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (sheet.header, *sheet.rows)]
    columns = "l" * sheet.texts + "r" * (len(sheet.header) - sheet.texts)
    caption = f"{sheet.title}. {notes}".strip().translate(LATEX)
    is_wide = len(sheet.header) > UPRIGHT
    kind, fit = ("sidewaystable", r"\resizebox{\linewidth}{!}{") if is_wide else ("table", "")
    parts = [
        f"\\begin{{{kind}}}",
        r"\centering",
        f"\\caption{{{caption}}}",
        f"{fit}\\begin{{tabular}}{{{columns}}}",
        *(r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"),
        r"\end{tabular}" + "}" * is_wide,
        f"\\end{{{kind}}}",
    ]
    return "\n".join(parts) + "\n"
