"""Reports from result files alone: comparison tables, Pareto plots, one HTML page. No model, no torch.

`report` is `python -m vtc action=report`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def report(config: Any) -> Path:
    """Finds results, prints the comparison and writes `table.csv`, `table.md`, the plots and `index.html`.

    Args:
        config: the resolved configuration; `report.inputs` (null: `output_dir`), `report.output`, `report.title`.

    Returns:
        The folder that was written.

    Raises:
        UserError: an input that isn't there, or nothing to report.
    """
    from vtc.report.write import write

    asked = config.report.inputs
    inputs = [config.output_dir] if asked is None else [asked] if isinstance(asked, str) else list(asked)
    output = Path(config.report.output or Path(config.output_dir) / "report").expanduser()
    return write([Path(p).expanduser() for p in inputs], output, str(config.report.title))


__all__ = ["report"]
