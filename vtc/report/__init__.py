"""Reports from result files alone: tables, figures, one HTML page; two runs sample by sample. No model, no torch."""

from vtc.report.comparison import compare
from vtc.report.write import report

__all__ = ["compare", "report"]
