"""Reports from result files alone: comparison tables, Pareto plots, one HTML page. No model, no torch."""

from vtc.report.write import report

__all__ = ["report"]
