"""Where the pocket test sets are: drawn once into the user's cache, the same bytes for everyone."""

from __future__ import annotations

import os
from pathlib import Path

from vtc.errors import unknown
from vtc.shipped import cache_folder

ENVIRONMENT = "VTC_POCKET_DATA"  # a folder to use instead of the user's cache, for the lmms-eval command


def path(task: str, data: str | Path | None = None) -> Path:
    """The parquet file of one pocket task; all of them are drawn where they aren't there yet.

    Args:
        task: e.g. `pocket_existence`.
        data: the folder to keep them in; None: `$VTC_POCKET_DATA`, else the user's cache. A `<task>.parquet` of the
            user's own there goes first.

    Raises:
        UserError: no such task.
    """
    folder = Path(data or os.environ.get(ENVIRONMENT) or cache_folder() / "pocket").expanduser()
    own = folder / f"{task}.parquet"
    if own.is_file():
        return own
    from vtc.pocket import splits

    if task not in splits.TASKS:
        raise unknown("benchmark.tasks", task, splits.TASKS)
    return Path(splits.materialise(folder)[task])
