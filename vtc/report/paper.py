"""The papers' numbers, `benchmarks/paper/*.csv`, and ours beside them where backbone, method and benchmark match.

A row of a file is one printed number: where it stands (paper, table or figure, page, section), in which row and column,
of which benchmark and metric, its value, what is printed as its spread (the standard deviation over LLaVolta's three
runs), its unit, and, in vtc's words, the backbone, the method and the visual tokens that it is of. `benchmark` is the
name that suites give a task as `about.<task>.paper`. A page is empty where the text at hand doesn't tell it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vtc import results, shipped
from vtc.errors import unknown
from vtc.report.runs import Run
from vtc.statistics import Estimate

FOLDER = "benchmarks/paper"
FULL = {"%": 100.0, "of 2000": 2000.0, "of 5": 5.0}  # unit of a score → the full one
# Metrics that a task's headline is; of captions a result holds several, and theirs are told apart by their names.
HEADLINES = ("accuracy", "F1", "perception score", "judged score", "judged accuracy")
GALLERIES = {"Flickr30k": "Flickr30k", "COCO": "MSCOCO"}  # a benchmark of retrieval → how mteb's tasks of it begin
CAPTIONS = {"BLEU-4": "bleu4", "CIDEr": "cider", "METEOR": "meteor", "ROUGE-L": "rougel"}


@dataclass(frozen=True)
class Printed:
    """One number of a paper, see the module.

    Attributes:
        paper: name of the file; printed: the value with its digits; the others: columns of the file.
    """

    paper: str
    source: str
    page: str
    section: str
    block: str
    row: str
    column: str
    benchmark: str
    metric: str
    value: float
    printed: str
    spread: float | None
    unit: str
    backbone: str
    method: str
    tokens: float | None

    @property
    def reference(self) -> str:
        """What `report.reference` calls its table or figure: `llavolta_table3`."""
        return f"{self.paper}_{self.source.replace(' ', '')}"

    @property
    def label(self) -> str:
        """The row as printed, with the heading above it where there is one."""
        return f"{self.block}: {self.row}" if self.block else self.row

    @property
    def share(self) -> float | None:
        """The value as a share of the full score; None for what is no score."""
        return self.value / FULL[self.unit] if self.benchmark and self.unit in FULL else None


@cache
def numbers() -> tuple[Printed, ...]:
    """Every number of the papers, as printed, in the order of the files.

    Raises:
        ValueError: a file that isn't as the module says.
    """
    out: list[Printed] = []
    for file in sorted(shipped.path(FOLDER).glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            out += [_printed(file, row) for row in csv.DictReader(lines)]
    return tuple(out)


def _printed(file: Path, row: dict[str, str]) -> Printed:
    try:
        known = {**row, "value": float(row["value"]), "printed": row["value"]}
        known |= {key: float(row[key]) if row[key] else None for key in ("spread", "tokens")}
        return Printed(paper=file.stem, **known)  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: {row}: {error}") from error


@cache
def printed_of() -> dict[tuple[str, str], list[Printed]]:
    """Backbone and method → their numbers that are scores."""
    out: dict[tuple[str, str], list[Printed]] = {}
    for number in numbers():
        if number.share is not None:
            out.setdefault((number.backbone, number.method), []).append(number)
    return out


def references() -> list[str]:
    """The tables and figures that numbers were typed from: `fwd2bot_table1`, …"""
    return list(dict.fromkeys(number.reference for number in numbers()))


def check(reference: str | None) -> None:
    """Refuses a table or figure that there are no numbers of.

    Raises:
        UserError: there are none.
    """
    if reference is not None and reference not in references():
        raise unknown("report.reference", reference, references())


def of(reference: str) -> list[Printed]:
    """The numbers of a table or figure.

    Raises:
        UserError: as `check`.
    """
    check(reference)
    return [number for number in numbers() if number.reference == reference]


# Beside ours ---------------------------------------------------------------------------------------------------------


def ours(number: Printed, run: Run) -> Estimate | None:
    """What a run has of a printed number, as a share of the full score: the same backbone, method, visual tokens where
    they are printed, benchmark and metric. None where it has nothing."""
    if number.share is None or (number.backbone, number.method) != (run.result["backbone"]["name"], run.method):
        return None
    if number.tokens is not None and run.tokens is not None and abs(number.tokens - run.tokens) > 0.5:
        return None
    if (place := _embedded(number)) is not None:
        row = run.rows.get(place[0]) or {}
        value = (row.get("metrics") or {}).get(place[1])
        return None if value is None else Estimate(value, row.get("stderr") if row["metric"] == place[1] else None)
    about = (run.config.get("benchmark") or {}).get("about") or {}
    for task, row in run.rows.items():
        if (about.get(task) or {}).get("paper") != number.benchmark:
            continue
        if number.metric in HEADLINES:
            return Estimate(results.share(row) or 0.0, results.share(row, "stderr"))
        wanted = CAPTIONS.get(number.metric)
        for name, value in (row.get("metrics") or {}).items():
            if wanted and re.sub(r"[^a-z0-9]", "", name.lower()).endswith(wanted):
                headline = re.sub(r"[^a-z0-9]", "", str(row.get("metric")).lower()).endswith(wanted)
                return Estimate(value, row.get("stderr") if headline else None)
    return None


def _embedded(number: Printed) -> tuple[str, str] | None:
    """The task and its metric that are a number of retrieval, or of SugarCrepe's categories; None of other numbers."""
    if match := re.fullmatch(r"R@(\d+) (text to image|image to text)", number.metric):
        if number.benchmark == "NoCaps":
            return "nocaps_retrieval", f"{match[2].replace(' ', '_')}_R@{match[1]}"
        way = "T2I" if match[2] == "text to image" else "I2T"
        return f"{GALLERIES[number.benchmark]}{way}Retrieval", f"hit_rate_at_{match[1]}"
    if match := re.fullmatch(r"(add|replace|swap) (attribute|object|relation) accuracy", number.metric):
        return "sugarcrepe", f"{match[1]}_{match[2][:3]}"
    return None


def beside(runs: Iterable[Run]) -> list[tuple[Printed, Run, Estimate]]:
    """Every printed number that a run has too, with the run's score: what plots draw behind ours. Where a run's
    configuration isn't the printed row's in all (a stage scheme, say), the labels of both say so."""
    known = printed_of()
    pairs = ((number, run) for run in runs for number in known.get((run.result["backbone"]["name"], run.method), ()))
    return [(number, run, score) for number, run in pairs if (score := ours(number, run)) is not None]


def side_by_side(reference: str, runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """A table of a paper, number by number, with ours beside it where there is one: header and rows."""
    header = ["row", "column", "printed", "unit", "ours", "difference", "run"]
    rows = []
    for number in of(reference):
        value = number.printed + (f" (sd {number.spread:g})" if number.spread is not None else "")
        line = [number.label, number.column, value, number.unit]
        matching = [(run, score) for run in runs if (score := ours(number, run)) is not None]
        for run, score in matching:
            full = FULL[number.unit]
            half = f" ±{full * score.half:.2f}" if score.half is not None else ""
            mine = full * score.value
            rows.append([*line, f"{mine:.2f}{half}", f"{mine - number.value:+.2f}", run.label])
        if not matching:
            rows.append([*line, "–", "–", ""])
    return header, rows


def printed_table(reference: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table of a paper as it is printed, a row a row: (heading, header, rows) of each of its parts."""
    out = []
    for block in dict.fromkeys(number.block for number in of(reference)):
        printed = [number for number in of(reference) if number.block == block]
        columns = list(dict.fromkeys(number.column for number in printed))
        values: dict[str, dict[str, str]] = {}
        for number in printed:
            spread = f" ({number.spread:g})" if number.spread is not None else ""
            values.setdefault(number.row, {})[number.column] = number.printed + spread
        rows = [[row, *(cells.get(column, "–") for column in columns)] for row, cells in values.items()]
        out.append((block, ["row", *columns], rows))
    return out


def title(reference: str) -> str:
    """Where a table or figure stands."""
    number = of(reference)[0]
    where = [number.source, *([f"page {number.page}"] if number.page else []), f"section {number.section}"]
    return f"{number.paper}, {', '.join(where)}"


def printed_means(printed: Sequence[Printed]) -> list[tuple[str, float, float]]:
    """(row, mean as printed, mean of the row's scores) of each row of a table that prints one: scores as shares of
    their full ones, lengths as they are."""
    out = []
    for label in dict.fromkeys(n.label for n in printed):
        row = [n for n in printed if n.label == label]
        for mean in (n for n in row if n.metric.startswith("mean")):
            kind = mean.metric.removeprefix("mean").strip()
            parts = [n for n in row if n.benchmark and (not kind or n.metric == kind)]
            full = FULL.get(mean.unit, 1.0)
            values = [full * n.share if n.share is not None else n.value for n in parts]
            out.append((f"{label}, {mean.column}", mean.value, sum(values) / len(values)))
    return out
