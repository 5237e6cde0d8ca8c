"""The report of a run: summary table, terminal table, self-contained page, picture strip."""

from gibench.report.gallery import comparison_strip
from gibench.report.page import write_report
from gibench.report.summary import Row, summarize, write_summary_csv
from gibench.report.table import print_table

__all__ = ["Row", "comparison_strip", "print_table", "summarize", "write_report", "write_summary_csv"]
