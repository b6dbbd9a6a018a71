"""The report of a run or a sweep on one page: score tables, curves, the paper's figure 3 and provenance.

:func:`read_report` reads run folders as written by training; :func:`write_report` writes a self-contained HTML page,
its images, and the score tables as CSV and Markdown. Parts missing from a run are listed and do not prevent the report.
"""

from dlunet.reporting.contents import Report, read_report, report_of
from dlunet.reporting.methods_table import write_methods_table
from dlunet.reporting.page import write_report
from dlunet.reporting.panels import overlay_png
from dlunet.reporting.runs import Run, find_runs, read_predictions, read_run
from dlunet.reporting.shown_cases import ShownCase
from dlunet.reporting.table_files import write_paper_table
from dlunet.reporting.templates import render
from dlunet.reporting.terminal import print_paper_table, print_report, print_sheets
from dlunet.reporting.viewer import EmbeddedCases

__all__ = [
    "EmbeddedCases",
    "Report",
    "Run",
    "ShownCase",
    "find_runs",
    "overlay_png",
    "print_paper_table",
    "print_report",
    "print_sheets",
    "read_predictions",
    "read_report",
    "read_run",
    "render",
    "report_of",
    "write_methods_table",
    "write_paper_table",
    "write_report",
]
