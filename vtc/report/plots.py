"""Pareto plots: what a method's score costs, in visual tokens and in prefill FLOPs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.allowed import brief
from vtc.report.collection import Setting
from vtc.report.runs import ALL, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008): told apart with every common colour blindness. Markers and dashes tell the same in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
MOST = 10  # methods that are told apart by colour and marker in one plot
SUFFIXES = (".png", ".svg", ".pdf")
UNDATED: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}  # the same results give the same files
# As papers want it: letters stay letters that can be searched (type 42), lines are thin.
PRINT = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "vtc", "axes.linewidth": 0.8}
AXES: dict[str, tuple[Callable[[Run], float | None], str]] = {
    "tokens": (lambda run: run.tokens, "visual tokens an image has left (log scale)"),
    "flops": (lambda run: run.flops_ratio, "prefill FLOPs, relative to uncompressed (log scale)"),
}
PANEL_TITLES = {ALL: "all tasks", "understanding": "understanding", "discriminative": "discriminative"}


def pareto(setting: Setting, axis: str, file: Path, suffixes: Sequence[str] = (".png",)) -> Path | None:
    """Score against `axis` (`tokens` or `flops`) as `file`, with each of the `suffixes`.

    There is a panel for all tasks and one for each group of them.

    Error bars are 95 % confidence intervals; the dashed line is the uncompressed backbone, the dotted one a blind one.
    Of more than `MOST` methods those in colour are on the Pareto front of all tasks somewhere; the others are grey.
    Where all have the same cost they stand side by side, and the best are in colour.
    None, and no file, where fewer than two runs know their cost.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cost, words = AXES[axis]
    points = [r for r in setting.runs if not r.is_baseline and cost(r)]
    if len({(r.label, cost(r)) for r in points}) < 2:
        return None
    words += ", side by side" if _is_one([cost(r) or 0.0 for r in points]) else ""
    panels = [ALL, *setting.groups] if len(setting.groups) > 1 else [ALL]
    spines = {f"axes.spines.{side}": False for side in ("top", "right")}
    style: dict[Any, Any] = {"font.size": 10, "text.parse_math": False, **PRINT, **spines}
    with plt.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label in a script that the font lacks is drawn as boxes
        figure, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels) + 0.6, 4.4), squeeze=False, sharex=True)
        for panel, ax in zip(panels, axes[0], strict=True):
            _draw(ax, setting, points, panel, cost)
            ax.set_title(PANEL_TITLES.get(panel, panel), fontsize=11)
            ax.set_xlabel(words)
        axes[0][0].set_ylabel("mean task score")
        handles, names = axes[0][0].get_legend_handles_labels()
        rows = min(8, math.ceil(len(names) / max(1, min(len(names), 3 * len(panels)))))
        figure.suptitle(brief(setting.name, 45 * len(panels)), fontsize=12, fontweight="bold", x=0.01, ha="left")
        figure.tight_layout(rect=(0, 0.075 * rows, 1, 0.99))
        figure.legend(handles, names, loc="lower center", ncol=min(len(names), 3 * len(panels)), frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        for suffix in suffixes:
            figure.savefig(file.with_suffix(suffix), dpi=150, metadata=UNDATED.get(suffix))
        plt.close(figure)
    return file


def _draw(ax: Axes, setting: Setting, points: Sequence[Run], panel: str, cost: Callable[[Run], float | None]) -> None:
    costs = [cost(r) or 0.0 for r in points]
    ranked = list(dict.fromkeys(r.label for r in sorted(points, key=lambda r: -r.score().value)))
    one = _is_one(costs)
    shown = setting.methods if len(setting.methods) <= MOST else ranked[:MOST] if one else front(points, cost)
    for label in sorted(ranked, key=lambda m: (m in shown, setting.methods.index(m))):
        mine = sorted((r for r in points if r.label == label), key=lambda r: cost(r) or 0)
        scores = [r.score(panel) for r in mine]
        beside = 2 ** (0.8 * (ranked.index(label) + 0.5) / len(ranked) - 0.4) if one else 1.0
        x, y = [beside * (cost(r) or math.nan) for r in mine], [s.value for s in scores]
        if label not in shown:
            first = "others" not in ax.get_legend_handles_labels()[1]
            ax.plot(x, y, label="others" if first else None, color="0.75", marker=".", linewidth=0.8, zorder=1)
            continue
        at = shown.index(label)
        ax.errorbar(
            x,
            y,
            yerr=[s.half or 0.0 for s in scores],
            label=brief(label, 60).replace("_", "\u200b_", label.startswith("_")),  # `_` first hides it in a legend
            color=PALETTE[at % len(PALETTE)],
            marker=MARKERS[at % len(MARKERS)],
            linestyle=DASHES[(at // len(PALETTE)) % len(DASHES)],
            markersize=6,
            linewidth=1.6,
            elinewidth=1.2,
            capsize=3,
        )
    _reference_lines(ax, setting, panel)
    ax.set_xscale("log", base=2)
    if one:
        ax.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    ax.set_xticks(ticks := _ticks(costs), [f"{100 * t:g} %" if _shares(costs) else f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.25, linewidth=0.6)


def front(points: Sequence[Run], cost: Callable[[Run], float | None]) -> list[str]:
    """Methods of which a run is beaten by none that costs as much or less, in the order of `points`."""
    best = [
        run
        for run in points
        if not any(
            (cost(other) or 0) <= (cost(run) or 0)
            and other.score().value >= run.score().value
            and (cost(other), other.score().value) != (cost(run), run.score().value)
            for other in points
        )
    ]
    return list(dict.fromkeys(run.label for run in best))


def _reference_lines(ax: Axes, setting: Setting, panel: str) -> None:
    """The uncompressed backbone that most rows name, and the blind floor."""
    whole = setting.reference(panel)
    for score in (run.score(panel) for run in setting.runs if run.is_baseline):
        if score.half and whole is not None and math.isclose(score.value, whole):
            ax.axhspan(score.value - score.half, score.value + score.half, color="0.5", alpha=0.12, linewidth=0)
    for value, style, label in (
        (whole, "--", "uncompressed"),
        (setting.runs[0].mean("blind", panel), ":", "blind (no image)"),
    ):
        if value is not None:
            ax.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=label)


def _ticks(costs: Sequence[float], apart: float = 1.22) -> list[float]:
    """Where a log axis is labelled: token counts themselves, or round shares; the first stands for those too close."""
    candidates: Sequence[float] = sorted(set(costs))
    if _shares(costs):
        steps = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
        candidates = [s for s in steps if 0.85 * min(costs) <= s <= 1.15 * max(costs)]
    ticks: list[float] = []
    for tick in candidates:
        if not ticks or tick / ticks[-1] >= apart:
            ticks.append(tick)
    return ticks


def _is_one(costs: Sequence[float]) -> bool:
    return max(costs) < 1.01 * min(costs)


def _shares(costs: Sequence[float]) -> bool:
    """Shares of the uncompressed cost (a method that runs the decoder twice goes beyond 1), not token counts."""
    return min(costs) < 1
