"""Scoring: the lmms-eval adapter, the metrics and floors of the pocket tasks, statistics, and one run from a
configuration to its result file.

Importing this package imports neither torch nor lmms-eval (8 s); running an evaluation does.
"""

from vtc.evaluation.run import evaluate

__all__ = ["evaluate"]
