"""The comparison as a table: for the console, CSV, Markdown and HTML; and which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from vtc.report.collection import Setting, number
from vtc.report.runs import ALL, Run
from vtc.report.split import Split
from vtc.statistics import (
    Estimate,
    Z,
    ends,
    holm,
    resampled,
    side_by_side,
    sign_flips,
    smallest_difference,
    standard_errors,
    verdict,
)
from vtc.statistics.compare import shares
from vtc.terminal import table

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

GROUP_TITLES = {ALL: "mean", "understanding": "underst.", "discriminative": "discrim."}


def short(task: str, tasks: Sequence[str]) -> str:
    """A task's name without the prefix that all tasks share (`pocket_`)."""
    prefix = task.split("_")[0] + "_"
    return task.removeprefix(prefix) if len(tasks) > 1 and all(t.startswith(prefix) for t in tasks) else task


def costs(setting: Setting) -> list[tuple[str, Callable[[Run], str]]]:
    """The columns of costs: FLOPs of decoder and method; where measured, those with the tower, how much sooner the
    first token comes, and the method's own work as a share of the time until then."""
    shown: list[tuple[str, Callable[[Run], str]]] = [("FLOPs", lambda r: percent(r.flops_ratio))]
    if any(r.cost("ttft_speedup") is not None for r in setting.runs):
        shown += [
            ("with tower", lambda r: percent(r.cost("flops_ratio_with_vision"))),
            ("speed-up", lambda r: _text(r.cost("ttft_speedup"), "{:.2f}×")),
            ("own work", lambda r: _text(r.cost("method_share"), "{:.0%}").replace("%", " %")),
        ]
    return shown


def columns(setting: Setting) -> list[str]:
    """The means to show: all tasks, and each group where there are several."""
    return [ALL, *setting.groups] if len(setting.groups) > 1 else [ALL]


def frame(setting: Setting) -> pd.DataFrame:
    """One row a run, numbers unrounded, as in `table.csv`. `<x>_ci95` is half the width of the interval of `<x>`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run in setting.runs:
        budget = run.result["budget"]
        row: dict[str, Any] = {
            "setting": setting.name,
            "method": run.label,
            "tokens": run.tokens,
            "tokens_sd": (budget.get("spread") or {}).get("tokens_sd"),
            "tokens_in": budget.get("visual_tokens_in"),
            "layer_average_tokens": budget.get("layer_average_tokens"),
            "compression_ratio": budget.get("compression_ratio"),
            "flops_ratio": run.flops_ratio,
            "flops_ratio_with_vision": run.cost("flops_ratio_with_vision"),
            "prefill_flops": run.cost("prefill_flops"),
            "ttft_speedup": run.cost("ttft_speedup"),
            "throughput_speedup": run.cost("speedup"),
            "method_share": run.cost("method_share"),
        }
        for group in columns(setting):
            name = "mean" if group == ALL else group
            score = run.score(group)
            row |= {name: score.value, f"{name}_ci95": score.half, f"{name}_retained": run.retained(group)}
            row[f"{name}_agreement"] = run.agreement(group)
        for task in setting.tasks:
            row |= {task: (score := run.scores[task]).value, f"{task}_ci95": score.half}
        rows.append(row | {"run": run.id, "created": run.created, "file": str(run.path)})
    return pd.DataFrame(rows)


def cells(setting: Setting) -> tuple[list[str], list[list[str]]]:
    """The table for eyes: header and rows."""
    means = columns(setting)
    shown = costs(setting)
    header = ["method", "tokens", *(name for name, _ in shown)]
    for group in means:
        header += [GROUP_TITLES.get(group, group), "retained"]
    header += [short(t, setting.tasks) for t in setting.tasks]
    rows = []
    for run in setting.runs:
        row = [run.label, number(run.tokens), *(show(run) for _, show in shown)]
        for group in means:
            row += [interval(run.score(group)), percent(run.retained(group))]
        rows.append(row + [interval(run.scores[t]) for t in setting.tasks])
    return header, rows + floors(setting, means)


def floors(setting: Setting, means: Sequence[str]) -> list[list[str]]:
    """Rows for a model that sees nothing, and for one that sees attributes but not which belong together."""
    out, run = [], setting.runs[0]
    for key, name in (("blind", "blind floor"), ("bag", "bag-of-attributes floor")):
        known = [_text(run.rows[t].get(key), "{:.3f}") for t in setting.tasks]
        if set(known) != {"–"}:
            row = [name, "–", *["–"] * len(costs(setting))]
            for group in means:
                row += [_text(run.mean(key, group), "{:.3f}"), "–"]
            out.append(row + known)
    return out


def interval(score: Estimate) -> str:
    """`0.873 ±0.012`: a score and half its 95 % confidence interval."""
    return f"{score.value:.3f}" + (f" ±{score.half:.3f}" if score.half is not None else "")


def percent(value: float | None) -> str:
    return _text(value, "{:.1%}").replace("%", " %")


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others align right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def console(setting: Setting, width: int) -> Table:
    """The table for a terminal of `width` columns: methods and means; single tasks are in the files. The budget and the
    mean over all tasks stay whatever the width."""
    header, rows = cells(setting)
    shown = 2 + len(costs(setting)) + 2 * len(columns(setting))  # what stands before the columns of single tasks
    names, titles = ["method", "tokens"], [GROUP_TITLES.get(group, group) for group in columns(setting)]
    for name in header[2:shown]:  # each mean has its own share of the baseline's
        names.append(f"{names[-1]} {name}" if name == "retained" else name)
    groups = [part for name in titles[1:] for part in (f"{name} retained", name)]
    least = ["own work", "with tower", *groups, "speed-up", f"{titles[0]} retained", "FLOPs"]
    return table(
        setting.name,
        names,
        [row[:shown] for row in rows],
        width,
        least=least,
        caption="± is half the 95 % interval over samples",
        elsewhere="table.csv has all",
        style=lambda at: "dim" if rows[at][0].endswith("floor") else None,
    )


def differences(setting: Setting, advance: Callable[[], Any] = lambda: None) -> list[dict[str, Any]]:
    """Every pair of methods at the same number of tokens: difference of their means and whether it may be chance.

    Paired by question where both runs have their samples beside them (`vtc.statistics`), else a z-test on the two
    standard errors, which is blind to pairs and so errs on the careful side. `p_holm` corrects for the number of pairs
    at the same number of tokens, and `verdict` says of the corrected one whether these samples tell the two apart.
    `low` and `high` are the ends of the difference's 95 % interval, by a paired bootstrap where samples are paired;
    `smallest` is the difference that so many samples would show, before any correction, in 80 % of cases.

    Args:
        advance: is called after each pair.
    """
    out: list[dict[str, Any]] = []
    for tokens, pairs in same_budget(setting).items():
        known = [run for run in dict.fromkeys(chain(*pairs)) if run.samples is not None]
        samples = Samples(known) if known else None
        for a, b in pairs:
            row = samples.compare(a, b) if samples and a in known and b in known else None
            row = row or unpaired(a, b)
            out.append(
                {
                    "tokens": tokens,
                    "better": a.label,
                    "worse": b.label,
                    "difference": a.score().value - b.score().value,
                    **row,
                }
            )
            advance()
    adjusted = holm([row["p_value"] for row in out], [row["tokens"] for row in out])
    return [row | {"p_holm": p, "verdict": verdict(p)} for row, p in zip(out, adjusted, strict=True)]


def same_budget(setting: Setting) -> dict[float, list[tuple[Run, Run]]]:
    """Number of tokens → the pairs of methods that leave so many, the better one first."""
    at: dict[float, list[Run]] = {}
    for run in sorted(setting.runs, key=lambda r: -r.score().value):
        if run.tokens is not None and not run.is_baseline:
            at.setdefault(run.tokens, []).append(run)
    return {tokens: list(combinations(at[tokens], 2)) for tokens in sorted(at)}


class Samples:
    """Scores of several runs, question by question."""

    def __init__(self, runs: Sequence[Run]) -> None:
        table = side_by_side([run.samples for run in runs])
        self.questions = table.index
        self.place = {run: at for at, run in enumerate(runs)}
        self.scores = table.to_numpy(float)
        # By which questions are scored, in most tables the same for all pairs: what these are worth.
        self.designs: dict[bytes, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None] = {}

    def compare(self, a: Run, b: Run) -> dict[str, Any] | None:
        """Interval, p-value and smallest difference of two runs' means; None where not every task has pairs."""
        pair = [self.place[a], self.place[b]]
        scored = ~np.isnan(self.scores[:, pair]).any(axis=1)
        if (key := scored.tobytes()) not in self.designs:
            self.designs[key] = self._design(scored, a)
        if (design := self.designs[key]) is None:
            return None
        places, added, cell_of, drawn = design
        x, y = places[pair]
        differences = added[:, x] - added[:, y]
        (low, high), (error,) = (
            ends(drawn[:, [x]] - drawn[:, [y]], differences.sum())[0],
            standard_errors(differences, cell_of),
        )
        p = sign_flips(differences, CERTAIN)
        return _compared(float(low), float(high), float(error), p, "paired")

    def _design(self, scored: np.ndarray, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Of runs that have a score on the same questions at least: their columns in what follows, what each question
        (or cluster of them) adds to each of their means, its cell, and the means resampled."""
        shared = self.questions[scored]
        if not set(shared.unique("task")) >= set(run.rows):
            return None
        whole = ~np.isnan(self.scores[scored]).any(axis=0)
        places = np.where(whole, np.cumsum(whole) - 1, -1)
        table = self.scores[np.ix_(scored, whole)].T
        added, cell_of = shares(table, shared, run.scales)
        return places, added.T, cell_of, resampled(added.T, cell_of)


CERTAIN = 1e-12  # of a p-value that is surely smaller the report states its bound


def _compared(low: float | None, high: float | None, error: float | None, p: float | None, test: str) -> dict[str, Any]:
    smallest = None if error is None else float(smallest_difference(error))
    return {"low": low, "high": high, "smallest": smallest, "p_value": p, "test": test}


def unpaired(a: Run, b: Run) -> dict[str, Any]:
    """The same by the two runs' standard errors."""
    x, y = a.score(), b.score()
    if not x.stderr and not y.stderr:
        return _compared(None, None, None, None, "no standard errors")
    difference, error = x.value - y.value, math.hypot(x.stderr or 0.0, y.stderr or 0.0)
    p = math.erfc(abs(difference / error) / math.sqrt(2))
    return _compared(difference - Z * error, difference + Z * error, error, p, "unpaired")


def difference_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The pairs for eyes."""
    header = [
        "tokens",
        "better",
        "worse",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "verdict",
        "smallest",
        "test",
    ]
    out = []
    for row in rows:
        ends = "–" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        line = [number(row["tokens"]), row["better"], row["worse"], f"{row['difference']:+.3f}", ends]
        line += [p_text(row["p_value"]), p_text(row["p_holm"]), row["verdict"]]
        out.append([*line, _text(row["smallest"], "{:.3f}"), row["test"]])
    return header, out


def split_cells(rows: Sequence[Split]) -> tuple[list[str], list[list[str]]]:
    """VTC-Bench's split for eyes."""
    header = ["tokens", "method", "hard", "n hard", "easy", "n easy"]
    return header, [
        [
            number(row.run.tokens),
            row.run.label,
            interval(row.hard) if row.hard else "–",
            str(row.n_hard),
            interval(row.easy) if row.easy else "–",
            str(row.n_easy),
        ]
        for row in rows
    ]


def p_text(p: float | None) -> str:
    return "<0.001" if p is not None and p < 0.001 else _text(p, "{:.3f}")
