"""pocket as a benchmark: its test sets, drawn once into the user's cache, the same bytes for everyone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vtc import results
from vtc.errors import UserError, unknown
from vtc.evaluation.sources import TaskSource
from vtc.evaluation.sources.base import Document
from vtc.evaluation.spec import TaskSpec
from vtc.job import Job
from vtc.pocket import second, splits
from vtc.shipped import cache_folder

ENVIRONMENT = "VTC_POCKET_DATA"  # a folder to use instead of the user's cache, for the lmms-eval command


class PocketTasks(TaskSource):
    """The tasks of an edition of pocket, or files of the user's own in their layout."""

    preparation = "test sets (drawn once, a minute at most)"

    def spec(self, task: str, seed: int) -> TaskSpec:
        edition_of(task)
        kwargs = {"folder": self.benchmark.data}
        return self.shipped_spec(task, task, seed, self._content(task), dataset_kwargs=kwargs)

    def check(self, job: Job, tasks: Sequence[str], network: bool = True) -> None:
        """That files of the user's own can be read, and name each question by an id of its own."""
        import pyarrow.parquet as pq

        for file in filter(None, (user_file(task, folder_of(self.benchmark.data)) for task in tasks)):
            try:
                ids = pq.read_table(file, columns=["id"]).column("id").to_pylist()
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"benchmark.data: {file} can't be read ({error})") from None
            first = {name: row for row, name in reversed([*enumerate(map(str, ids))])}
            for row, name in enumerate(ids):
                if name is None or first[str(name)] != row:
                    raise UserError(f"benchmark.data: {file}: row {row}: id={name}: each row needs an id of its own")

    def samples(self, task: str) -> int | None:
        import pyarrow.parquet as pq

        rows = pq.read_metadata(path(task, self.benchmark.data)).num_rows
        return min(rows, self.benchmark.limit) if self.benchmark.limit else rows

    def documents(self, task: str) -> Mapping[str, Document]:
        import pyarrow.parquet as pq

        table = pq.read_table(path(task, self.benchmark.data), columns=["id", "question", "image"])
        return {str(r["id"]): Document(r["question"], [r["image"]]) for r in table.to_pylist()}

    def location(self, task: str, look_up: Callable[[str], str]) -> str:
        return "drawn here where it isn't yet"

    def _content(self, task: str) -> Mapping[str, Any]:
        """The version of the drawn sets; of a file of the user's own its content."""
        file = user_file(task, folder_of(self.benchmark.data))
        return {"drawn": edition_of(task).VERSION} if file is None else {"file": results.hash_files([file])[str(file)]}


def edition_of(task: str) -> ModuleType:
    """The module that draws a task's test set.

    Raises:
        UserError: no such task.
    """
    for edition in (splits, second):
        if task in edition.TASKS:
            return edition
    raise unknown("benchmark.tasks", task, splits.TASKS + second.TASKS)


def folder_of(data: str | Path | None) -> Path:
    """The folder of the test sets; None: `$VTC_POCKET_DATA`, else the user's cache."""
    return Path(data or os.environ.get(ENVIRONMENT) or cache_folder() / "pocket").expanduser()


def user_file(task: str, folder: Path) -> Path | None:
    """A `<task>.parquet` of the user's own, which goes before the drawn set."""
    file = folder / f"{task}.parquet"
    return file if file.is_file() else None


def path(task: str, data: str | Path | None = None) -> Path:
    """The parquet file of one pocket task; all of them are drawn where they aren't there yet.

    Args:
        task: e.g. `pocket_existence`.
        data: the folder to keep them in; see `folder_of`.

    Raises:
        UserError: no such task.
    """
    folder = folder_of(data)
    if file := user_file(task, folder):
        return file
    return Path(edition_of(task).materialise(folder)[task])
