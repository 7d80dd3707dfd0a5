"""One HTML page that tells a stranger what a run has learned, and how far its score can be believed."""

from backflip.report.data import ReportData, as_dict
from backflip.report.gather import gather
from backflip.report.of_run import PAGE, report_run
from backflip.report.page import build_report, write_report

__all__ = ["PAGE", "ReportData", "as_dict", "build_report", "gather", "report_run", "write_report"]
