"""The progress bar of a run and of the baseline that it makes on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.evaluation.run_folder import RunFolder


class Bar:
    """One progress bar over all samples of all tasks, those of the baseline among them."""

    def __init__(self, console: Console, runs: list[RunFolder]) -> None:
        from rich import progress

        self.console = console
        self.progress = progress.Progress(
            progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(),
            progress.MofNCompleteColumn(), progress.TextColumn("samples"), progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.runs = runs
        self.sizes: dict[int, dict[str, int | None]] = {}

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task("test sets", total=None)
        try:
            if preparation := next((run.source.preparation for run in self.runs if run.source.preparation), None):
                self.say(preparation)
            self.sizes |= {id(r): {spec.name: r.source.samples(spec.name) for spec in r.specs} for r in self.runs}
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
        self.console.print(line, style=style, soft_wrap=True, markup=False)

    def say(self, what: str) -> None:
        """What is being done; a line now and then where nobody watches a terminal."""
        self.progress.update(self.task, description=what)
        if not self.console.is_terminal:
            state = self.progress.tasks[0]
            counted = f"{int(state.completed)}/{int(state.total)} " if state.total else ""
            self.note(f"{counted}{what}")

    def begin(self, run: RunFolder, task: str, samples: int) -> None:
        """Counts the samples of a task whose number wasn't known before."""
        if self.sizes[id(run)].get(task) is None:
            self.progress.update(self.task, total=(self.progress.tasks[0].total or 0) + samples)

    def advance(self, samples: int) -> None:
        self.progress.advance(self.task, samples)

    def skip(self, run: RunFolder, task: str) -> None:
        self.advance(self.sizes[id(run)].get(task) or 0)
