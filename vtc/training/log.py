"""What a training writes down: the log of each stage, and what made its weights."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vtc import __version__, distributed, results
from vtc.identity import WEIGHTS
from vtc.job import Job
from vtc.settings import StageSettings
from vtc.training import track
from vtc.training.identity import contents, recipe

PLAIN = 10.0  # seconds between two lines where there is no terminal to draw a progress bar on
FRESH: dict[str, Any] = {"step": 0, "seconds": 0.0, "running": {}, "validation": {}}


class StageLog:
    """What a stage says of itself: the progress line, ``log.jsonl``, the trackers. The main process alone writes.

    Attributes:
        validation: the newest figures.

    Args:
        notes: what the state from which the stage goes on says of it (see `position`), or `FRESH`.
    """

    def __init__(self, folder: Path, settings: StageSettings, notes: Mapping[str, Any], name: str, quiet: bool) -> None:
        self.total, self.every, self.first = int(settings.steps or 0), settings.log_every, int(notes["step"])
        self.running, self.validation = dict(notes["running"]), dict(notes["validation"])
        self.before = float(notes["seconds"])
        self.tracker: track.Tracker | None = None
        self.began, self.spent, self.seen = time.perf_counter(), 0.0, {"images": 0.0, "tokens": 0.0}
        self.writes, self.file = distributed.is_main(), folder / "log.jsonl"
        if self.writes and self.file.is_file():
            results.write_text(self.file, "".join(_lines_until(self.file, self.first)))
        console = Console(highlight=False, soft_wrap=True)
        self.quiet, self.drawn = quiet or not self.writes, console.is_terminal or console.is_jupyter
        self.name, self.next_line = name, self.began + PLAIN
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=self.quiet or not self.drawn,
            refresh_per_second=1,
            console=console,
        )
        self.bar = self.progress.add_task(name, total=self.total, completed=self.first, figures="")

    def __enter__(self) -> StageLog:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()
        if self.tracker:
            self.tracker.finish()

    @property
    def seconds(self) -> float:
        """Of training, over all sittings."""
        return round(self.before + time.perf_counter() - self.began, 1)

    def say(self, line: str) -> None:
        """A line on the console."""
        if not self.quiet:
            self.progress.console.print(line, markup=False)

    def position(self) -> dict[str, Any]:
        """What a state remembers of it."""
        return {"seconds": self.seconds, "running": self.running, "validation": self.validation}

    def write(self, entry: dict[str, Any]) -> None:
        if self.writes:
            with self.file.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
            if self.tracker:
                figures = entry.get("validation", entry)
                self.tracker.log({n: v for n, v in figures.items() if n != "step"}, entry["step"])

    def step(
        self, done: int, terms: Mapping[str, float], seen: Mapping[str, float], norm: float, rate: float, seconds: float
    ) -> None:
        """One step: its terms, how many images and tokens all processes saw, the time it took."""
        for name, value in terms.items():
            self.running[name] = value if name not in self.running else 0.95 * self.running[name] + 0.05 * value
        self.spent += seconds
        for name, count in seen.items():
            self.seen[name] += count
        speed = {name: count / self.spent for name, count in self.seen.items()}
        units = ((speed["images"], "img/s"), (speed["tokens"], "tok/s"))
        figures = [" ".join(f"{n} {v:.3f}" for n, v in self.running.items())]
        figures += [f"{value:.0f} {unit}" for value, unit in units if value]
        self.progress.update(self.bar, completed=done, figures=" · ".join(figures))
        left = (self.total - done) * self.spent / (done - self.first)
        if not self.drawn and (done == self.total or time.perf_counter() >= self.next_line):
            self.next_line = time.perf_counter() + PLAIN
            self.say(
                " · ".join([f"{self.name} {done}/{self.total}", *figures, f"{timedelta(seconds=round(left))} left"])
            )
        if done % self.every and done != self.total:
            return
        entry = {"step": done, "seconds": self.seconds, "lr": rate, "norm": round(norm, 4)}
        entry |= {"loss": round(sum(terms.values()), 6)} | {n: round(v, 4) for n, v in self.running.items()}
        entry |= {f"{name}_per_second": round(value, 1) for name, value in speed.items()}
        self.write(entry | {"seconds_left": round(left, 1)})

    def validated(self, done: int, figures: Mapping[str, float]) -> None:
        self.validation = dict(figures)
        if figures:
            rounded = {k: round(v, 4) for k, v in figures.items()}
            self.write({"step": done, "seconds": self.seconds, "validation": rounded})


def _lines_until(file: Path, step: int) -> list[str]:
    """The lines of a log up to a step; what a killed run wrote after its last state, or only in part, is left out."""
    kept = []
    for line in file.read_text().splitlines() if step and file.is_file() else ():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    return kept


def versions() -> dict[str, str]:
    """Of the software that the numbers depend on."""
    packages = ("torch", "transformers", "accelerate", "peft")
    return {"vtc": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


def provenance(job: Job, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What made the weights: seed, stages, times, versions. Names no machine."""
    return {
        "seed": job.seed,
        "stages": reports,
        "seconds": round(sum(report["seconds"] for report in reports), 1),
        "hardware": {
            "device": torch.cuda.get_device_name() if distributed.device(job.backbone.device).type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
        "components": job.deciding(WEIGHTS)["versions"],
        "contents": contents(recipe(job)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


LOG = "training.jsonl"  # beside the weights


def gathered_logs(folder: Path, stages: Sequence[str]) -> str:
    """Every stage's log as one, each line naming its stage."""
    lines = [(name, line) for name in stages for line in (folder / name / "log.jsonl").read_text().splitlines()]
    return "".join(json.dumps({"stage": name} | json.loads(line)) + "\n" for name, line in lines)
