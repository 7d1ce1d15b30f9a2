"""What becomes of the jobs of a sweep: a file a job, a line or a live table meanwhile, one table at the end.

Jobs may run in other processes, or on other machines that share the file system: what they tell each other are files
under `<output_dir>/sweeps/jobs`, one a job, named after what its user typed. The same command finds them again: a job
that failed has its reason there, and `retry` says whether it is tried again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc import results, terminal
from vtc.identity import digest

FOLDER = "sweeps/jobs"
RUNNING, DONE, FAILED, SKIPPED = "running", "done", "failed", "left out"
UNTYPED = ("output_dir", "resume", "retry", "dry_run", "log")  # keys that don't make it another job
POLL = 1.0  # seconds between two looks at the files


@dataclass
class Entry:
    """A job of a sweep.

    Attributes:
        sweep: id of the sweep that ran it last; number: its place there.
        name: what tells it from the others, as typed; command: what to type to do it alone.
        state: see above; reason: why it failed; mistake: whether its user can mend that.
        result: the file that it wrote, where it is one.
        started: seconds since 1970; seconds: that it took.
        failed_before: of one that is left out, whether it had failed when it ran last.
    """

    sweep: str
    number: int
    name: str
    command: str
    state: str = RUNNING
    reason: str = ""
    mistake: bool = False
    result: str | None = None
    started: float = 0.0
    seconds: float = 0.0
    failed_before: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether it failed when it ran last, or was ended before it could say so."""
        return self.state in (FAILED, RUNNING) or (self.state == SKIPPED and self.failed_before)

    def ended(self, state: str, **rest: Any) -> Entry:
        return dataclasses.replace(self, state=state, seconds=time.time() - self.started, **rest)


@dataclass(frozen=True)
class Ledger:
    """The files of the jobs under an output folder."""

    output: Path

    def file(self, overrides: Sequence[str]) -> Path:
        """Of the job of these overrides, in whatever order they were typed."""
        typed = sorted(o for o in overrides if not o.startswith("hydra") and o.split("=")[0] not in UNTYPED)
        return self.output.expanduser().absolute() / FOLDER / f"{digest(typed)[:16]}.json"

    def read(self, overrides: Sequence[str]) -> Entry | None:
        """What is known of a job; None where nothing is, or where the file isn't one of these."""
        return _entry(self.file(overrides))

    def write(self, overrides: Sequence[str], entry: Entry) -> None:
        results.write_json(self.file(overrides), dataclasses.asdict(entry))

    def of(self, sweep: str) -> list[Entry]:
        """The jobs of a sweep that have begun, in their order."""
        files = (self.output.expanduser().absolute() / FOLDER).glob("*.json")
        known = [entry for file in files if (entry := _entry(file)) is not None and entry.sweep == sweep]
        return sorted(known, key=lambda entry: entry.number)


def _entry(file: Path) -> Entry | None:
    try:
        return Entry(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def reason_to_leave_out(retry: str, before: Entry | None) -> str:
    """Why a job isn't run; empty where it is.

    Args:
        retry: `all`: whatever isn't finished is run; `failed`: what failed the last time; `none`: nothing that did.
    """
    failed = before is not None and before.has_failed
    if retry == "failed" and not failed:
        return "it didn't fail before (retry=failed)"
    if retry == "none" and failed and before is not None:
        why = before.reason or "its process ended without a word"
        return f"it failed before: {why} (retry=none)"
    return ""


@dataclass
class Sweep:
    """The jobs of one command.

    Attributes:
        jobs: how many there are.
        keys: what differs between them.
        output: the folder of their results; None: it differs between them.
        id: of this sweep.
        failed: what each job that failed in this process was, why, and whether its user can mend it: words, since an
            exception holds whatever was in memory when it was raised, the model too.
    """

    jobs: int = 1
    keys: frozenset[str] = frozenset()
    output: Path | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    failed: list[tuple[str, str, bool]] = field(default_factory=list)

    def entries(self) -> list[Entry]:
        """What is known of its jobs."""
        return Ledger(self.output).of(self.id) if self.output is not None else []

    def settle(self) -> None:
        """Adds what failed in other processes: there, or by their end without a word."""
        told = {name for name, *_ in self.failed}
        for entry in self.entries():
            if entry.state in (FAILED, RUNNING) and entry.name not in told:
                reason = entry.reason or "its process ended without a word"
                self.failed.append((entry.name, reason, entry.mistake))

    def progress(self) -> str:
        """`3 done, 1 failed, 2 running, 6 left`."""
        counts = Counter(entry.state for entry in self.entries())
        parts = [f"{counts[state]} {state}" for state in (DONE, FAILED, SKIPPED, RUNNING) if counts[state]]
        return ", ".join([*parts, f"{self.jobs - sum(counts.values())} left"])

    def summary(self) -> list[str]:
        """One line for the sweep, one for each job that failed."""
        left_out = sum(entry.state == SKIPPED for entry in self.entries())
        done = self.jobs - len(self.failed) - left_out
        words = f"{done} of {self.jobs} jobs done" + (f", {left_out} left out" if left_out else "")
        lines = [words + (f", {len(self.failed)} failed:" if self.failed else "")]
        return lines + [f"{job}: {why}" for job, why, _ in self.failed]

    def table(self, width: int) -> Any:
        """Every job with its score and costs, for a screen of `width` columns; None where no job left a result."""
        lines = [(entry, _numbers(entry)) for entry in self.entries()]
        if not any(numbers for _, numbers in lines):
            return None
        header = ["job", "state", "tokens", "score", "retained", "FLOPs", "speed-up", "minutes"]
        rows = [
            [entry.name, entry.state, *(numbers or ["–"] * 5), f"{entry.seconds / 60:.1f}"] for entry, numbers in lines
        ]
        return terminal.table(
            f"{len(rows)} jobs",
            header,
            rows,
            width,
            least=("minutes", "speed-up", "FLOPs", "tokens", "state", "retained"),
            left=("state",),
            caption="score: mean over the tasks; ± is half the 95 % interval over samples; retained: of the "
            "uncompressed model's",
            elsewhere="action=report has all",
            style=lambda at: "red" if lines[at][0].state == FAILED else None,
        )


def _numbers(entry: Entry) -> list[str]:
    """Tokens, score, share of the baseline's, FLOPs and speed-up of a job's result; empty where it has none."""
    from vtc.report import tables
    from vtc.report.runs import Run

    if not entry.result:
        return []
    try:
        run = Run.read(Path(entry.result))
    except (ValueError, OSError):
        return []
    speedup = run.cost("ttft_speedup")
    return [
        tables.number(run.tokens),
        tables.interval(run.score()),
        tables.percent(run.retained()),
        tables.percent(run.flops_ratio),
        "–" if speedup is None else f"{speedup:.2f}×",
    ]


@contextmanager
def watching(sweep: Sweep, elsewhere: bool) -> Iterator[None]:
    """How far a sweep is, while its jobs run in other processes: a live table on a terminal, else a line whenever it
    changes. Jobs of this process say themselves how far they are.

    Args:
        elsewhere: whether a launcher runs the jobs.
    """
    if not elsewhere or sweep.output is None:
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console, over = Console(stderr=True), threading.Event()
    live = Live(console=console, transient=True, auto_refresh=False) if sys.stderr.isatty() else None

    def look() -> None:
        before = ""
        while not over.wait(POLL):
            now = sweep.progress()
            if live is not None:
                rows = [
                    [e.name, e.state, f"{(e.seconds or time.time() - e.started) / 60:.1f}"] for e in sweep.entries()
                ]
                live.update(terminal.table(now, ["job", "state", "minutes"], rows, console.width), refresh=True)
            elif now != before:
                console.print(now, style="dim", markup=False)
            before = now

    thread = threading.Thread(target=look, daemon=True)
    if live is not None:
        live.start()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if live is not None:
            live.stop()
