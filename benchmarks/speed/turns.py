"""What the scripts of this folder share: a model of a real shape, a clock, turns, and rows that are kept when done.

A row is written to the result file as soon as it is measured. The same command goes on where it stopped, by an
interrupt or by `--minutes`, and measures no row twice; each row says of which commit it is. With another shape or on
another machine take another file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vtc import results
from vtc.backbones.base import Backbone
from vtc.configuration import parse
from vtc.evaluation.record import git_commit
from vtc.profiling import latency
from vtc.profiling.run import device_name

TEXT, SEED = 64, 0


def arguments(about: str | None, rounds: int, **defaults: Any) -> argparse.ArgumentParser:
    """Those that every script takes."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n\n")[0])
    parser.add_argument("--backbone", default=defaults.get("backbone", "llava15_7b"))
    parser.add_argument("--image-size", default=None, help="of a family of dynamic resolution")
    parser.add_argument(
        "--width", type=int, default=defaults.get("width", 8), help="widths are divided by it; 0: stored weights"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further row after so many")
    parser.add_argument("--out", type=Path, default=None)
    return parser


class Session:
    """One process of a script: its model, its clock and its rows.

    Attributes:
        rows: those of the file and those of this process.
    """

    def __init__(self, options: argparse.Namespace, keys: Sequence[str], **about: Any) -> None:
        """With the options that `arguments` gives.

        Args:
            keys: the entries of a row by which it is known.
            about: what the file says beside the rows.
        """
        self.options, self.keys, self.about = options, keys, about
        self.began = time.monotonic()
        if options.device == "cpu":
            torch.set_num_threads(1)
        path = options.out
        known = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
        self.rows: list[dict[str, Any]] = known.get("rows", [])
        self._backbone: Backbone | None = None
        self._commit = git_commit()

    def load(self, fresh: bool = False) -> Backbone:
        """The model; `fresh`: without the adapters that a method has left in it."""
        if fresh:
            self._backbone = None
        if self._backbone is None:
            o = self.options
            words = ["action=profile", f"backbone={o.backbone}", f"device={o.device}", f"dtype={o.dtype}"]
            words += ["weights=random", f"profile.width={o.width}"] if o.width else []
            words += [f"backbone.image_size={o.image_size}"] if o.image_size else []
            self._backbone = parse(words).load()[0]
        return self._backbone

    def clock(self) -> float:
        """Seconds: of the process on a CPU, which other programs hardly lengthen; on an accelerator the wall clock when
        it has done its work."""
        if self.options.device == "cpu":
            return time.process_time()
        latency.synchronise(torch.device(self.options.device))
        return time.perf_counter()

    def seconds(self, run: Callable[[], Any]) -> float:
        start = self.clock()
        run()
        return self.clock() - start

    def turns(self, runs: Mapping[Any, Callable[[], Any]], rounds: int) -> Iterator[dict[Any, float]]:
        """Seconds of each run, round by round; forwards and backwards in turn, so that nobody always goes second."""
        for run in runs.values():  # the first call allocates, and compiles
            run()
        for turn in range(rounds):
            order = list(runs) if turn % 2 == 0 else list(reversed(runs))
            yield {name: self.seconds(runs[name]) for name in order}

    def missing(self, cases: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The cases that the file has no row of, until the time is over."""
        done = {tuple(row[key] for key in self.keys) for row in self.rows}
        open_cases = [case for case in cases if tuple(case[key] for key in self.keys) not in done]
        for number, case in enumerate(open_cases):
            if time.monotonic() - self.began > 60 * self.options.minutes:
                print(f"{len(open_cases) - number} of {len(cases)} rows are missing: the same command goes on")
                return
            yield case

    def add(self, row: dict[str, Any]) -> None:
        """Prints a row, and writes the file with it."""
        row = row | {"commit": self._commit}
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        if self.options.out is not None:
            results.write_json(self.options.out, self.about | {**self._machine(), "rows": self.rows})

    def _machine(self) -> dict[str, Any]:
        words = re.sub(r" --minutes \S+", "", " ".join(sys.argv[1:]))
        return {
            "command": f"python benchmarks/speed/{Path(sys.argv[0]).name} {words}",
            "backbone": self.options.backbone,
            "width": self.options.width,
            "device": device_name(torch.device(self.options.device)),
            "dtype": self.options.dtype,
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
        }


def quartiles(values: Sequence[float], digits: int = 4) -> list[float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return [round(v, digits) for v in (low, middle, high)]
