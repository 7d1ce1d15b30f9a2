"""Pareto plots: what a method's score costs, in visual tokens and in prefill FLOPs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.allowed import brief
from vtc.report.collection import Setting, commonest_budget
from vtc.report.runs import ALL, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008): told apart with every common colour blindness. Markers and dashes tell the same in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
LONGEST = 48  # letters of a name in a legend
MOST = 10  # methods that are told apart by colour and marker in one plot
SUFFIXES = (".png", ".svg", ".pdf")
UNDATED: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}  # the same results give the same files
# As papers want it: letters stay letters that can be searched (type 42), lines are thin.
PRINT = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "vtc", "axes.linewidth": 0.8}
Cost = Callable[[Run], "float | None"]
AXES: dict[str, tuple[Cost, str]] = {
    "tokens": (lambda run: run.tokens, "visual tokens an image has left (log scale)"),
    "flops": (lambda run: run.flops_ratio, "prefill FLOPs, relative to uncompressed (log scale)"),
    "ttft": (lambda run: run.measured("ttft_ms", "median"), "time to the first token, ms (log scale)"),
    "throughput": (lambda run: run.measured("throughput"), "throughput, tokens a second (log scale)"),
    "bytes": (lambda run: run.cost("kv_cache_bytes"), "KV cache, bytes (log scale)"),
}
MORE = ("throughput",)  # of which more is better
GROUPED = ("tokens", "flops")  # against which each group of tasks has a panel too
MEASURED = ("ttft", "throughput")  # with noise, which a line between two runs would draw
PANEL_TITLES = {ALL: "all tasks", "understanding": "understanding", "discriminative": "discriminative"}


def pareto(setting: Setting, axis: str, file: Path, suffixes: Sequence[str] = (".png",)) -> Path | None:
    """Score against one of the `AXES` as `file`, with each of the `suffixes`.

    There is a panel for all tasks and, of the `GROUPED`, one for each group of them.

    Error bars are 95 % confidence intervals; the dashed line is the uncompressed backbone, the dotted one a blind one.
    Of more than `MOST` methods those in colour are on the Pareto front of all tasks somewhere, or the best at the
    commonest budget; the others are grey.
    Where all have the same cost they stand side by side, and the best are in colour.
    None, and no file, where fewer than two runs know their cost.
    """
    cost, words = AXES[axis]
    points = [r for r in setting.runs if not r.is_baseline and cost(r)]
    if len({(r.label, cost(r)) for r in points}) < 2:
        return None
    words += ", side by side" if _is_one([cost(r) or 0.0 for r in points]) else ""
    panels = [ALL, *setting.groups] if len(setting.groups) > 1 and axis in GROUPED else [ALL]
    with style() as plt:
        figure, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels) + 0.6, 4.4), squeeze=False, sharex=True)
        for panel, ax in zip(panels, axes[0], strict=True):
            _draw(ax, setting, points, panel, axis)
            ax.set_title(PANEL_TITLES.get(panel, panel), fontsize=11)
            ax.set_xlabel(words)
        axes[0][0].set_ylabel("mean task score")
        handles, names = axes[0][0].get_legend_handles_labels()
        widest = 0.085 * max(map(len, names), default=1) + 0.6  # inches, of a name with its line
        across = max(1, min(len(names), int(figure.get_figwidth() / widest)))
        rows = math.ceil(len(names) / across)
        figure.suptitle(brief(setting.name, 45 * len(panels)), fontsize=12, fontweight="bold", x=0.01, ha="left")
        figure.set_figheight(4.4 + 0.22 * (rows - 1))
        width, height = figure.get_size_inches()
        # Margins in inches: of ticks "0.0" to "1.0" and one line of words, which measuring finds too, in a second.
        figure.subplots_adjust(
            left=0.66 / width,
            right=1 - 0.12 / width,
            bottom=(0.95 + 0.22 * (rows - 1)) / height,
            top=1 - 0.68 / height,
            wspace=0.46 / (width / len(panels) - 0.6),
        )
        figure.legend(handles, names, loc="lower center", ncol=across, frameon=False)
        save(figure, file, suffixes)
    return file


@contextmanager
def style() -> Iterator[Any]:
    """matplotlib's pyplot as figures for papers are drawn with it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    spines = {f"axes.spines.{side}": False for side in ("top", "right")}
    rules: dict[Any, Any] = {"font.size": 10, "text.parse_math": False, **PRINT, **spines}
    with plt.rc_context(rules), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label in a script that the font lacks is drawn as boxes
        yield plt


def save(figure: Any, file: Path, suffixes: Sequence[str], tight: bool = False) -> Path:
    """Writes a figure with each of the suffixes, and closes it.

    Args:
        tight: cut to what is drawn.
    """
    from matplotlib import pyplot as plt

    file.parent.mkdir(parents=True, exist_ok=True)
    box = None
    if tight:  # measured once; bbox_inches="tight" draws a figure once more for each file
        box = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    for suffix in suffixes:
        own = {"pil_kwargs": {"compress_level": 2}} if suffix == ".png" else {}  # a tenth larger, half the time
        figure.savefig(file.with_suffix(suffix), dpi=150, metadata=UNDATED.get(suffix), bbox_inches=box, **own)
    plt.close(figure)
    return file


def chosen(setting: Setting, points: Sequence[Run], cost: Cost, sign: int = 1) -> list[str]:
    """Methods that are drawn in colour: all, or of more than `MOST` those on the front and, as far as that leaves
    colours, the best at the budget that most methods have; the best where all cost the same."""
    if len(setting.methods) <= MOST:
        return setting.methods
    if _is_one([cost(r) or 0.0 for r in points]):
        return list(dict.fromkeys(r.label for r in sorted(points, key=lambda r: -r.score().value)))[:MOST]
    leading, budget = front(points, cost, sign), commonest_budget(setting)
    best = sorted((r for r in points if r.tokens == budget), key=lambda r: -r.score().value)
    named = [*leading, *[label for label in dict.fromkeys(r.label for r in best) if label not in leading]]
    return named[: max(MOST, len(leading))]


def grey(ax: Axes, lines: Sequence[tuple[Sequence[float], Sequence[float]]], joined: bool = True) -> None:
    """Methods that aren't in colour, as one line with gaps: hundreds are drawn as fast as one."""
    x = [value for xs, _ in lines for value in (*xs, math.nan)]
    y = [value for _, ys in lines for value in (*ys, math.nan)]
    if x:
        ax.plot(x, y, label="others", color="0.75", marker=".", linewidth=0.8 if joined else 0, zorder=1)


def _draw(ax: Axes, setting: Setting, points: Sequence[Run], panel: str, axis: str) -> None:
    cost = AXES[axis][0]
    costs = [cost(r) or 0.0 for r in points]
    ranked = list(dict.fromkeys(r.label for r in sorted(points, key=lambda r: -r.score().value)))
    one = _is_one(costs)
    shown = chosen(setting, points, cost, -1 if axis in MORE else 1)
    methods: dict[str, list[Run]] = {}
    for run in sorted(points, key=lambda r: cost(r) or 0):
        methods.setdefault(run.label, []).append(run)
    others = []
    for label in sorted(ranked, key=lambda m: (m in shown, setting.methods.index(m))):
        mine = methods[label]
        scores = [r.score(panel) for r in mine]
        beside = 2 ** (0.8 * (ranked.index(label) + 0.5) / len(ranked) - 0.4) if one else 1.0
        x, y = [beside * (cost(r) or math.nan) for r in mine], [s.value for s in scores]
        if label not in shown:
            others.append((x, y))
            continue
        at = shown.index(label)
        ax.errorbar(
            x,
            y,
            yerr=[s.half or 0.0 for s in scores],
            label=brief(label, LONGEST).replace(
                "_", "\u200b_", label.startswith("_")
            ),  # `_` first hides it in a legend
            color=PALETTE[at % len(PALETTE)],
            marker=MARKERS[(at + at // len(PALETTE)) % len(MARKERS)],
            linestyle="" if axis in MEASURED else DASHES[(at // len(PALETTE)) % len(DASHES)],
            markersize=6,
            linewidth=1.6,
            elinewidth=1.2,
            capsize=3,
        )
    grey(ax, others, joined=axis not in MEASURED)
    _reference_lines(ax, setting, panel)
    ax.set_xscale("log", base=2)
    if one:
        ax.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    ax.set_xticks(
        ticks := _ticks(costs, axis == "tokens"), [f"{100 * t:g} %" if axis == "flops" else f"{t:.4g}" for t in ticks]
    )
    ax.minorticks_off()
    ax.grid(alpha=0.25, linewidth=0.6)


def front(points: Sequence[Run], cost: Cost, sign: int = 1) -> list[str]:
    """Methods of which a run is beaten by none that costs as much or less (more, where `sign` is -1), in the order of
    `points`."""
    best: set[Run] = set()
    highest, at = -math.inf, math.nan
    for run in sorted(points, key=lambda r: (sign * (cost(r) or 0), -r.score().value)):
        score, place = run.score().value, cost(run) or 0
        if score > highest or (score == highest and place == at):
            best.add(run)
            highest, at = score, place
    return list(dict.fromkeys(run.label for run in points if run in best))


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


def _ticks(costs: Sequence[float], counts: bool, share: float = 0.09, most: int = 12) -> list[float]:
    """Where a log axis is labelled: token counts themselves, or round numbers, none so close to another that their
    words would meet; of token counts the commonest stay.

    Args:
        share: of the axis, that a label takes.
    """
    candidates: Sequence[float] = sorted(set(costs), key=lambda cost: (-costs.count(cost), cost))
    if not counts or len(candidates) > most:
        low, high = 0.85 * min(costs), 1.15 * max(costs)
        steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [step * 10.0**decade for decade in decades for step in steps]
        candidates = [tick for tick in candidates if low <= tick <= high]
    ticks: list[float] = []
    apart = max(0.2, share * math.log(max(costs) / min(costs)))
    for tick in candidates:
        if all(abs(math.log(tick / other)) >= apart for other in ticks):
            ticks.append(tick)
    return sorted(ticks)


def _is_one(costs: Sequence[float]) -> bool:
    return max(costs) < 1.01 * min(costs)
