"""Where the tasks of a benchmark and their data come from: pocket's drawn sets, files of the user's own, data sets of
the hub, lmms-eval's tasks. One more source is one file with one class (docs/evaluate.md)."""

from vtc.evaluation.sources.base import TaskSource, source_from, source_of
from vtc.evaluation.sources.rows import RowsSource

__all__ = ["RowsSource", "TaskSource", "source_from", "source_of"]
