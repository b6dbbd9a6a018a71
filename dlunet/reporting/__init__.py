"""The report of a run or a sweep on one page: score tables, curves, the paper's figure 3 and provenance.

:func:`write_report` reads run folders as written by training and writes a self-contained HTML page, its images, and the
score tables as CSV and Markdown. Parts missing from a run are listed on the page and do not prevent the report.
"""

from dlunet.reporting.page import print_report_summary, write_report
from dlunet.reporting.panels import overlay_png
from dlunet.reporting.runs import Run, find_runs, read_run

__all__ = ["Run", "find_runs", "overlay_png", "print_report_summary", "read_run", "write_report"]
