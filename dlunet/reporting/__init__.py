"""What came out of a run or a sweep, on one page: score tables, curves, figure 3 and where the figures come from.

:func:`write_report` reads run folders as training leaves them and writes a self-contained HTML page, its images and the
score tables as CSV and Markdown. Parts that a run lacks are named on the page; they do not keep it from being written.
"""

from dlunet.reporting.page import print_report_summary, write_report
from dlunet.reporting.panels import overlay_png
from dlunet.reporting.runs import Run, find_runs, read_run

__all__ = ["Run", "find_runs", "overlay_png", "print_report_summary", "read_run", "write_report"]
