"""The one table of methods on pocket's second edition: trained alike, scored alike, with controls, piece by piece.

    python benchmarks/pocket/table.py --dry-run          # the jobs, which are done, and the time that is left
    python benchmarks/pocket/table.py --only victor      # of one method or control
    python benchmarks/pocket/table.py --minutes 90       # begins nothing that would end later
    python benchmarks/pocket/table.py --show             # what there is

`table.yaml` says what it is made of, and in which order: each budget and seed of all methods before the next one. Each
method is trained at three learning rates with seed 0 and 16 tokens, and at further ones while the best is the lowest or
the highest of them; the one with the best score on validation scenes serves all its budgets and seeds. Every finished
piece is a file below `benchmarks/results/pocket2`, which is committed, and isn't made again while what decides it
stays: `rates/<method>.json` with all rates that were tried, `rows/<method>-<tokens>-s<seed>` with scores and training,
those of the first seed at the grid's budget with `weights`. Other weights, and states of trainings, stay below
`--work`; an interrupted one goes on where it was. Each process uses one core; several at once, in the same `--work`,
share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout

from vtc import results
from vtc.ablations.page import without_paths
from vtc.ablations.run import keep
from vtc.checkpoint import MANIFEST
from vtc.configuration import parse
from vtc.folders import lock_of, replacing
from vtc.identity import digest
from vtc.job import Job, written

HERE = Path(__file__).parent
TABLE = HERE / "table.yaml"
TARGET = HERE.parent / "results" / "pocket2"
PIECE = "piece.json"  # beside a row: what decided it, and how long it took
WEIGHTS = "weights"  # beside a row of the first seed at the grid's budget: scoring it again takes no training
PARTS = ("trained", "free", "options", "shipped", "controls")  # of the table; a name is in one of them
WAIT = 20.0  # seconds until it is asked again whether another process has left a method


class Late(Exception):
    """A piece would end too late."""


@dataclass(frozen=True)
class Training:
    """One training of a method; `tokens` of None: for all budgets, or without any."""

    name: str
    words: tuple[str, ...]
    tokens: int | None
    seed: int
    rate: float

    @property
    def label(self) -> str:
        return f"{self.name}{'' if self.tokens is None else f'-{self.tokens}'}-s{self.seed}-lr{self.rate:g}"

    @property
    def command(self) -> list[str]:
        budget = [] if self.tokens is None else [f"tokens={self.tokens}"]
        return ["action=train", *self.words, *budget, f"seed={self.seed}", f"training.stages.0.lr={self.rate}"]


@dataclass(frozen=True)
class Row:
    """One line of the table: a method at a budget, with the weights of a training, or as it comes."""

    method: str
    label: str
    words: tuple[str, ...]
    tokens: int | None
    seed: int
    training: Training | None = None

    @property
    def owner(self) -> str:
        """Whose trainings it needs, which one process at a time makes."""
        return self.training.name if self.training else self.method

    @property
    def folder(self) -> Path:
        return TARGET / "rows" / self.label

    @property
    def command(self) -> list[str]:
        budget = [] if self.tokens is None else [f"tokens={self.tokens}"]
        return [*self.words, *budget, f"seed={self.seed}"]

    @property
    def identity(self) -> str:
        """What decides it, so far as the table says it; of code and weights the result itself tells the versions."""
        return digest({"score": self.command, "train": self.training and self.training.command})

    @property
    def piece(self) -> dict[str, Any] | None:
        """What is stored of it, where that is of the same words."""
        stored = _read(self.folder / PIECE)
        return stored if stored and stored["identity"] == self.identity else None


class Table:
    """Everything that `table.yaml` asks for.

    Args:
        work: where trainings and runs keep their states and weights.
    """

    def __init__(self, values: Mapping[str, Any], work: Path) -> None:
        self.values, self.work = values, work
        self.methods = [name for part in PARTS for name in values[part]]

    # -- what there is to do
    def rates_file(self, name: str) -> Path:
        return TARGET / "rates" / f"{name}.json"

    def trial(self, name: str, rate: float) -> Training:
        """A training on the grid of rates."""
        about = self.values["trained"][name]
        return self.training(name, None if about.get("elastic") else self.values["grid"], 0, rate)

    def training(self, name: str, tokens: int | None, seed: int, rate: float) -> Training:
        about = self.values["trained"][name]
        words = [*self.values["both"], f"method={about.get('method', name)}", *self.values["train"]]
        return Training(name, (*words, *about.get("train", ()), *about.get("both", ())), tokens, seed, float(rate))

    def tried(self, name: str) -> dict[str, Any]:
        """The rates that were tried: {rate: {validation, seconds, …}}, those of the same words."""
        stored = _read(self.rates_file(name)) or {}
        return {k: v for k, v in stored.items() if v["identity"] == digest(self.trial(name, float(k)).command)}

    def rates(self, name: str) -> list[float]:
        """Those that a method is tried with: the grid, and where the best one is its lowest or highest, the next one on
        that side, half or twice as large, until the best lies between others; `further` ones at most."""
        means = {float(rate): found["validation"]["mean"] for rate, found in self.tried(name).items()}
        rates = sorted(map(float, self.values["rates"]))
        for _ in range(self.values["further"]):
            if not means.keys() >= set(rates):
                break
            best = max(rates, key=means.__getitem__)
            if best not in (rates[0], rates[-1]):
                break
            rates = [best / 2, *rates] if best == rates[0] else [*rates, 2 * best]
        return rates

    def rate(self, name: str) -> float | None:
        """The one that did best on validation scenes; None until all were tried."""
        tried, rates = self.tried(name), [f"{rate:g}" for rate in self.rates(name)]
        if any(rate not in tried for rate in rates):
            return None
        return float(max(rates, key=lambda rate: tried[rate]["validation"]["mean"]))

    def rows(self, name: str) -> Iterator[Row]:
        """The rows of a method or a control; with a rate of 0 while its own isn't known."""
        values, score = self.values, (*self.values["both"], *self.values["score"])
        if name in values["controls"]:
            about = values["controls"][name]
            training = None
            words = (*score, *about["score"])
            if "of" in about:
                of = values["trained"][about["of"]]
                training = self.training(about["of"], about["tokens"], 0, self.rate(about["of"]) or 0.0)
                words = (*score, f"method={of.get('method', about['of'])}", *of.get("both", ()), *about["score"])
            yield Row(name, name, words, about.get("tokens"), 0, training)
        elif name not in values["trained"]:
            part = next(part for part in PARTS if name in values[part])
            about, budgets = values[part][name], [values["grid"]] if part == "options" else values["budgets"]
            words = (*score, f"method={about.get('method', name)}", *about.get("score", ()))
            for tokens in about.get("budgets", budgets):
                yield Row(name, f"{name}-{tokens}-s0", words, tokens, 0)
        else:
            about = values["trained"][name]
            words = (*score, f"method={about.get('method', name)}", *about.get("both", ()))
            for tokens in about.get("budgets", values["budgets"]):
                for seed in values["seeds"][tokens or values["grid"]]:
                    for_all = None if about.get("elastic") else tokens
                    training = self.training(name, for_all, seed, self.rate(name) or 0.0)
                    budget = "" if tokens is None else f"-{tokens}"
                    label = f"{name}{budget}-s{seed}" if tokens else f"{name}-trained-s{seed}"
                    yield Row(name, label, words, tokens, seed, training)

    # -- what it takes
    def seconds(self, name: str, kind: str) -> float:
        """Of a `training` or a `row` of a method: the median of those that were made, else what the file says."""
        known = [t["seconds"] for t in self.tried(name).values()] if name in self.values["trained"] else []
        if kind == "row":
            known = [p["seconds"] for p in map(_read, (TARGET / "rows").glob(f"{name}-*/{PIECE}")) if p]
        guess = self.values["seconds"]
        guessed = guess["row"] if kind == "row" else self.steps * guess["step"]
        return float(statistics.median(known) if known else guessed)

    @cached_property
    def steps(self) -> int:
        """Of a training."""
        training = parse(["action=train", *self.values["both"], *self.values["train"]]).training
        return sum(stage.steps or 0 for stage in training.stages) if training else 0

    def jobs(self, name: str) -> Iterator[tuple[Training | Row, bool]]:
        """Each training and each row of a method, and whether it is done; trials first."""
        if name in self.values["trained"]:
            tried = self.tried(name)
            for rate in self.rates(name):
                yield self.trial(name, rate), f"{rate:g}" in tried
        seen: set[str] = (
            {self.trial(name, r).label for r in self.rates(name)} if name in self.values["trained"] else set()
        )
        for row in self.rows(name):
            training = row.training
            if training and training.name == name and training.label not in seen:
                seen.add(training.label)
                own = [other for other in self.rows(name) if other.training == training]
                known = training.tokens == (
                    None if self.values["trained"][name].get("elastic") else self.values["grid"]
                )
                if not (training.rate == 0 and known and training.seed == 0):  # one of the trials will be it
                    yield training, all(other.piece for other in own)
            yield row, row.piece is not None

    # -- the work
    def run(self, names: Sequence[str], until: float, trials: bool = False) -> bool:
        """Makes what isn't there of some methods, a row at a time; those that another process is at are left to it.

        Args:
            trials: none of their rows, the trainings that choose their rates alone.

        Returns:
            Whether all of it is there now: not where something would have ended after `until`, or is made elsewhere.
        """
        late: set[str] = set()
        busy: set[str] = set()
        while row := self._next(names, late | busy, trials):
            try:
                with lock_of(self.work / "methods" / row.owner).acquire(blocking=False):
                    self._try_rates(row.owner, until) if trials else self._make(row, until)
                busy = set()
            except Timeout:
                busy.add(row.owner)
                if self._next(names, late | busy, trials) is None:
                    time.sleep(WAIT)
                    busy = set()
            except Late:
                late.add(row.owner)
        return self._next(names, trials=trials) is None

    def _next(self, names: Collection[str], without: Collection[str] = (), trials: bool = False) -> Row | None:
        """The first row that isn't there, in the order of budgets and seeds.

        Args:
            without: owners whose rows are left out.
            trials: a row counts as there when its rate is known.
        """
        rows = [row for name in self.methods if name in names for row in self.rows(name) if row.owner not in without]
        rows = [row for row in rows if not (row.training is None or row.training.rate if trials else row.piece)]
        order = [tuple(each) for each in self.values["order"]]
        return min(rows, key=lambda row: order.index((row.tokens or self.values["grid"], row.seed)), default=None)

    def _make(self, row: Row, until: float) -> None:
        """A row, with the trials of rates and the training that it needs."""
        weights, training = None, row.training
        if training is not None:
            self._try_rates(training.name, until)
            training = dataclasses.replace(training, rate=self.rate(training.name) or 0.0)
            row = dataclasses.replace(row, training=training)
            self._in_time(self.seconds(training.name, "training"), until)
            weights = self.weights(training)
        self._in_time(self.seconds(row.method, "row"), until)
        if row.piece is None:
            self._score(row, weights)

    @staticmethod
    def _in_time(seconds: float, until: float) -> None:
        if time.time() + seconds > until:
            raise Late

    def weights(self, training: Training) -> Path:
        """The checkpoint of a training: that beside a row, or made where it isn't there."""
        from vtc.training import train

        for row in self.rows(training.name):
            if row.training == training and row.piece is not None and (row.folder / WEIGHTS).is_dir():
                return row.folder / WEIGHTS
        folder = self.work / "training" / training.label
        words = [*training.command, written("training.folder", folder)]
        print(f"train · {training.label}", flush=True)
        return Path(train(parse(words)))

    def _try_rates(self, name: str, until: float) -> None:
        while rate := next((r for r in self.rates(name) if f"{r:g}" not in self.tried(name)), None):
            self._in_time(self.seconds(name, "training"), until)
            self._try(name, rate)

    def _try(self, name: str, rate: float) -> None:
        training = self.trial(name, rate)
        manifest = json.loads((self.weights(training) / MANIFEST).read_text(encoding="utf-8"))
        stage = manifest["stages"][-1]
        tried = self.tried(name) | {
            f"{rate:g}": {
                "identity": digest(training.command),
                "command": "python -m vtc " + " ".join(training.command),
                "validation": stage["validation"],
                "seconds": stage["seconds"],
                "steps": stage["steps"],
            }
        }
        results.write_text(self.rates_file(name), json.dumps(tried, indent=2) + "\n")

    def _score(self, row: Row, weights: Path | None) -> None:
        from vtc.evaluation import evaluate

        began = time.time()
        words = [*row.command, written("output_dir", self.work), *([written("checkpoint", weights)] if weights else [])]
        job: Job = dataclasses.replace(parse(words), overrides=tuple(row.command))
        print(f"score · {row.label}", flush=True)
        result = Path(evaluate(job))
        keep(result.parent, weights, row.folder)
        for file in (row.folder / results.RESULT, row.folder / "training.json"):
            if file.is_file():  # committed files name no machine
                results.write_json(file, without_paths(json.loads(file.read_text(encoding="utf-8"))))
        log = weights and weights / "training.jsonl"
        if log and log.is_file():  # the loss curve
            results.write_text(row.folder / log.name, log.read_text(encoding="utf-8"))
        if weights and row.training and row.method == row.training.name and self._is_first(row):
            copied(weights, row.folder / WEIGHTS)
        piece = {"identity": row.identity, "method": row.method, "tokens": row.tokens, "seed": row.seed}
        piece |= {"train": row.training and row.training.command, "seconds": round(time.time() - began, 1)}
        results.write_text(row.folder / PIECE, json.dumps(piece, indent=2) + "\n")

    def _is_first(self, row: Row) -> bool:
        return row.seed == 0 and row.tokens in (None, self.values["grid"])

    # -- what it shows
    def plan(self, names: list[str]) -> None:
        left, counts = 0.0, {"trainings": 0, "rows": 0, "done": 0}
        for name in names:
            for job, done in self.jobs(name):
                kind = "row" if isinstance(job, Row) else "training"
                seconds = 0.0 if done else self.seconds(name, kind)
                left += seconds
                counts["done" if done else kind + "s"] += 1
                print(f"{'done' if done else f'{seconds:5.0f} s'}  {kind:8}  {job.label}")
        size = sum(f.stat().st_size for f in TARGET.rglob("*") if f.is_file()) / 1e6
        print(f"{counts['trainings']} trainings and {counts['rows']} rows to do, {counts['done']} done ({size:.1f} MB)")
        print(f"{left / 3600:.1f} hours of one core")

    def show(self, names: list[str]) -> None:
        """Mean over the tasks, and over the seeds with their spread (one standard deviation)."""
        print("| row | seeds | mean | spread of seeds | understanding | discriminative | rate |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name in names:
            by_budget: dict[str, list[Row]] = {}
            for row in self.rows(name):
                if row.piece is not None:
                    by_budget.setdefault(row.label.rpartition("-s")[0] or row.label, []).append(row)
            for label, rows in by_budget.items():
                stored = [json.loads((row.folder / results.RESULT).read_text(encoding="utf-8")) for row in rows]
                groups = [{g: m["value"] for g, m in s["means"].items()} for s in stored]
                scores = [
                    statistics.mean(score["value"] / score.get("scale", 1.0) for score in s["scores"]) for s in stored
                ]
                spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "–"
                parts = [
                    f"{statistics.mean(g.get(of, float('nan')) for g in groups):.4f}"
                    for of in ("understanding", "discriminative")
                ]
                rate = rows[0].training and f"{rows[0].training.rate:g}"
                cells = [label, len(rows), f"{statistics.mean(scores):.4f}", spread, *parts, rate or "–"]
                print(f"| {' | '.join(map(str, cells))} |")


def copied(weights: Path, target: Path) -> None:
    """A checkpoint, without what names a machine."""
    with replacing(target) as fresh:
        manifest = json.loads((weights / MANIFEST).read_text(encoding="utf-8"))
        results.write_json(fresh / MANIFEST, without_paths(manifest))
        for file in weights.glob("*.safetensors"):
            shutil.copyfile(file, fresh / file.name)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do")
    parser.add_argument("--show", action="store_true", help="print what there is")
    parser.add_argument("--only", nargs="*", default=[], help="methods and controls")
    parser.add_argument("--trials", action="store_true", help="choose the rates alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing that would end later")
    parser.add_argument("--work", type=Path, default=Path("outputs/pocket2-table"), help="states and weights")
    options = parser.parse_args()
    table = Table(yaml.safe_load(TABLE.read_text(encoding="utf-8")), options.work)
    for name in options.only:
        if name not in table.methods:
            parser.error(f"--only {name}: allowed: {', '.join(table.methods)}")
    names = options.only or table.methods
    if options.dry_run or options.show:
        table.plan(names) if options.dry_run else table.show(names)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    whole = table.run(names, time.time() + 60 * options.minutes, options.trials)
    print("All of it is there." if whole else "There is more to do: the same command goes on with it.", flush=True)


if __name__ == "__main__":
    main()
