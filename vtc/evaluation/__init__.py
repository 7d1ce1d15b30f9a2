"""Scoring: one run from a job to its result file, the sources of tasks, lmms-eval kept quiet, metrics and floors.

The line is run → scorer → harness → model; each imports only what is to its right. Importing this package imports
neither torch nor lmms-eval (8 s); running an evaluation does.
"""

from vtc.evaluation.run import evaluate, profile

__all__ = ["evaluate", "profile"]
