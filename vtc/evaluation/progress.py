"""The progress bar of a run and of the baseline that it makes on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.evaluation.run import Run


class Bar:
    """One progress bar over all samples of all tasks, those of the baseline among them."""

    def __init__(self, console: Console, runs: list[Run]) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self.progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("samples"), TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.runs = runs
        self.sizes: dict[int, dict[str, int | None]] = {}

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task("test sets", total=None)
        try:
            if any(task.startswith("pocket_") for run in self.runs for task in run.tasks):
                self.say("test sets (drawn once, a minute at most)")
            self.sizes.update({id(r): {t: _size(r, t) for t in r.tasks} for r in self.runs})
        except BaseException:
            self.progress.stop()
            raise
        known = sum(n or 0 for sizes in self.sizes.values() for n in sizes.values())
        self.progress.update(self.task, total=known)
        if known:
            self.note(f"{known} samples" + (", baseline included" if len(self.runs) > 1 else ""))
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def note(self, line: str, style: str | None = None) -> None:
        if line:
            self.console.print(line, style=style, soft_wrap=True, markup=False)

    def say(self, what: str) -> None:
        """What is being done; a line now and then where nobody watches a terminal."""
        self.progress.update(self.task, description=what)
        if not self.console.is_terminal:
            state = self.progress.tasks[0]
            counted = f"{int(state.completed)}/{int(state.total)} " if state.total else ""
            self.note(f"{counted}{what}")

    def begin(self, run: Run, task: str, samples: int) -> None:
        """Counts the samples of a task whose number wasn't known before."""
        if self.sizes.setdefault(id(run), {}).get(task) is None:
            self.progress.update(self.task, total=(self.progress.tasks[0].total or 0) + samples)

    def advance(self, samples: int) -> None:
        self.progress.advance(self.task, samples)

    def skip(self, run: Run, task: str) -> None:
        self.progress.advance(self.task, self.sizes.get(id(run), {}).get(task) or 0)

    def drop(self, run: Run) -> None:
        gone = sum(n or 0 for n in self.sizes.pop(id(run), {}).values())
        self.progress.update(self.task, total=(self.progress.tasks[0].total or 0) - gone)


def _size(run: Run, task: str) -> int | None:
    """Samples of a task, where that can be told without lmms-eval."""
    from vtc.pocket.splits import TASKS

    if task not in TASKS:
        return None
    import pyarrow.parquet as pq

    from vtc.evaluation.data import path

    rows = pq.read_metadata(path(task, run.data)).num_rows
    return min(rows, int(run.limit)) if run.limit else rows
