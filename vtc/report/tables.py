"""The comparison as a table: for the console, CSV, Markdown and HTML; and which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

from vtc.report.collection import Setting, number
from vtc.report.runs import ALL, Run
from vtc.statistics import Estimate, holm, question_weights, side_by_side, sign_flips
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
    at the same number of tokens.

    Args:
        advance: is called after each pair.
    """
    out: list[dict[str, Any]] = []
    for tokens, pairs in same_budget(setting).items():
        known = [run for run in dict.fromkeys(chain(*pairs)) if run.samples is not None]
        samples = Samples(known) if known else None
        for a, b in pairs:
            p_value, test = samples.significance(a, b) if samples and a in known and b in known else None, "paired"
            if p_value is None:
                p_value, test = unpaired(a, b)
            out.append(
                {
                    "tokens": tokens,
                    "better": a.label,
                    "worse": b.label,
                    "difference": a.score().value - b.score().value,
                    "p_value": p_value,
                    "test": test,
                }
            )
            advance()
    adjusted = holm([row["p_value"] for row in out], [row["tokens"] for row in out])
    return [row | {"p_holm": p} for row, p in zip(out, adjusted, strict=True)]


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
        self.scores = {run: table[at].to_numpy(float) for at, run in enumerate(runs)}
        self.weights: dict[bytes, Any] = {}  # by which questions are scored: in most tables the same for all pairs

    def significance(self, a: Run, b: Run) -> float | None:
        """p-value that the means of two runs differ; None where not every task has pairs of samples."""
        differences = self.scores[a] - self.scores[b]
        scored = differences == differences
        key = scored.tobytes()
        if key not in self.weights:
            shared = self.questions[scored]
            every = set(shared.unique("task")) >= set(a.rows)
            self.weights[key] = question_weights(shared, a.scales) if every else None
        weights = self.weights[key]
        return None if weights is None else sign_flips(weights * differences[scored])


def unpaired(a: Run, b: Run) -> tuple[float | None, str]:
    """p-value that the means of two runs differ, by their standard errors."""
    x, y = a.score(), b.score()
    if not x.stderr and not y.stderr:
        return None, "no standard errors"
    z = (x.value - y.value) / math.hypot(x.stderr or 0.0, y.stderr or 0.0)
    return math.erfc(abs(z) / math.sqrt(2)), "unpaired"


def difference_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The pairs for eyes."""
    header = ["tokens", "better", "worse", "difference", "p", "p (Holm)", "test"]
    forms: list[Callable[[Any], str]] = [number, str, str, "{:+.3f}".format, p_text, p_text, str]
    keys = ("tokens", "better", "worse", "difference", "p_value", "p_holm", "test")
    return header, [[form(row[key]) for form, key in zip(forms, keys, strict=True)] for row in rows]


def p_text(p: float | None) -> str:
    return "<0.001" if p is not None and p < 0.001 else _text(p, "{:.3f}")
