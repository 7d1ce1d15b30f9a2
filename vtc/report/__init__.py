"""Reports from result files alone: comparison tables, Pareto plots, one HTML page. No model, no torch.

`report` is `python -m vtc action=report`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtc.job import Job


def report(job: Job) -> Path:
    """Finds results, prints the comparison and writes `table.csv`, `table.md`, the plots and `index.html`.

    Args:
        job: `job.report` says what is read (None: `job.output_dir`), where it is written, and under which title.

    Returns:
        The folder that was written.

    Raises:
        UserError: an input that isn't there, or nothing to report.
    """
    from vtc.report.write import write

    inputs = [job.output_dir] if job.report.inputs is None else map(Path, job.report.inputs)
    output = Path(job.report.output or job.output_dir / "report").expanduser()
    return write([folder.expanduser() for folder in inputs], output, job.report.title)


__all__ = ["report"]
