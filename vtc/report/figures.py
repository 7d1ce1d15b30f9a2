"""Static figures beside the trade-offs (`vtc.report.plots`): retained score by budget, methods by task, significance
and the cost of training, in a paper's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtc.allowed import brief
from vtc.report.collection import Setting, commonest_budget, number
from vtc.report.plots import AXES, DASHES, LONGEST, MARKERS, PALETTE, chosen, grey, pareto, save, style
from vtc.report.runs import ALL, Run
from vtc.report.tables import short
from vtc.statistics.differences import LEVEL

LARGEST = 6  # tables that figures are drawn of
ROWS = 60  # methods of a heat map, the best ones: more could not be read
NUMBERS = 400  # cells up to which a heat map has its numbers in it


def draw(
    setting: Setting, differences: Sequence[Mapping[str, Any]], stem: str, folder: Path, suffixes: Sequence[str]
) -> list[Path]:
    """Every figure that a table has the numbers for, as `<figure>-<stem>` with each of the suffixes.

    Args:
        differences: as `vtc.report.tables.differences` gives them.

    Returns:
        the files, each with the first of the suffixes.
    """
    files = [pareto(setting, axis, folder / f"pareto-{axis}-{stem}.png", suffixes) for axis in AXES]
    files.append(curves(setting, folder / f"curves-{stem}.png", suffixes))
    files.append(heat(setting, folder / f"tasks-{stem}.png", suffixes))
    files.append(significance(setting, differences, folder / f"significance-{stem}.png", suffixes))
    files.append(training(setting, folder / f"training-{stem}.png", suffixes))
    return [file.with_suffix(suffixes[0]) for file in files if file]


def _compressed(setting: Setting) -> list[Run]:
    return [run for run in setting.runs if not run.is_baseline]


def _at_budget(setting: Setting) -> list[Run]:
    """The runs at the budget that most methods have, the best first."""
    usual = commonest_budget(setting)
    mine = [run for run in _compressed(setting) if run.tokens == usual and usual is not None]
    return sorted(mine, key=lambda run: -run.score().value)[:ROWS]


def curves(setting: Setting, file: Path, suffixes: Sequence[str] = (".png",)) -> Path | None:
    """Share of the uncompressed score that methods with several budgets retain; None where there is none."""
    methods: dict[str, dict[float, float]] = {}
    for run in sorted(_compressed(setting), key=lambda run: run.tokens or 0):
        if run.tokens and (share := run.retained()) is not None:
            methods.setdefault(run.label, {})[run.tokens] = share
    several = {label: points for label, points in methods.items() if len(points) > 1}
    if not several:
        return None
    runs = [run for run in _compressed(setting) if run.label in several]
    coloured = [label for label in chosen(setting, runs, AXES["tokens"][0]) if label in several]
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6.4, 4.4))
        grey(ax, [([*p], [*p.values()]) for label, p in several.items() if label not in coloured])
        for at, label in enumerate(coloured):
            points = several[label]
            ax.plot(
                [*points],
                [*points.values()],
                label=brief(label, LONGEST).replace("_", "\u200b_", label.startswith("_")),
                color=PALETTE[at % len(PALETTE)],
                marker=MARKERS[(at + at // len(PALETTE)) % len(MARKERS)],
                linestyle=DASHES[(at // len(PALETTE)) % len(DASHES)],
            )
        ax.axhline(1.0, color="0.35", linestyle="--", linewidth=1.2)
        budgets = sorted({tokens for points in several.values() for tokens in points})
        ax.set_xscale("log", base=2)
        kept = [t for at, t in enumerate(budgets) if at == 0 or t / budgets[at - 1] > 1.15][:12]
        ax.set_xticks(kept, [number(t) for t in kept])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        ax.set_xlabel("visual tokens an image has left (log scale)")
        ax.set_ylabel("retained of the uncompressed score")
        ax.set_title(brief(setting.name, 60), loc="left", fontweight="bold")
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return _saved(figure, file, suffixes)


def heat(setting: Setting, file: Path, suffixes: Sequence[str] = (".png",)) -> Path | None:
    """Methods × tasks at the commonest budget: what each retains; None where no run states it."""
    runs = [run for run in _at_budget(setting) if any(row.get("retained") is not None for row in run.rows.values())]
    if not runs:
        return None
    table = [[run.rows[t].get("retained") if t in run.rows else None for t in setting.tasks] for run in runs]
    tasks = [brief(short(task, setting.tasks), 24) for task in setting.tasks]
    shares = np.array(table, dtype=float)
    with style() as plt:
        figure, ax = _grid(plt, shares, [run.label for run in runs], tasks, "Blues", (0.4, 1.0))
        if shares.size <= NUMBERS:
            for (row, column), share in np.ndenumerate(shares):
                if share == share:
                    white = "white" if share > 0.75 else "black"
                    cell = ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=white)
                    cell.set_in_layout(False)  # it lies within the axes, and measuring hundreds takes a second
        title = f"{brief(setting.name, 40)}: retained at {number(runs[0].tokens)} tokens, %"
        ax.set_title(title, loc="left", fontweight="bold", fontsize=10)
        return _saved(figure, file, suffixes)


def significance(
    setting: Setting, differences: Sequence[Mapping[str, Any]], file: Path, suffixes: Sequence[str] = (".png",)
) -> Path | None:
    """Row minus column at the commonest budget, white where Holm can't tell them apart; None below two methods."""
    runs = _at_budget(setting)
    place = {run.label: at for at, run in enumerate(runs)}
    if len(runs) < 2:
        return None
    table = np.zeros((len(runs), len(runs)))
    for row in differences:
        if (
            row["tokens"] == runs[0].tokens
            and {row["better"], row["worse"]} <= place.keys()
            and (row["p_holm"] or 1.0) < LEVEL
        ):
            better, worse = place[row["better"]], place[row["worse"]]
            table[better, worse], table[worse, better] = row["difference"], -row["difference"]
    names, most = [run.label for run in runs], max(0.01, float(np.abs(table).max()))
    with style() as plt:
        figure, ax = _grid(plt, table, names, names, "RdBu", (-most, most))
        title = f"{brief(setting.name, 40)}: row minus column, {number(runs[0].tokens)} tokens"
        ax.set_title(title, loc="left", fontweight="bold", fontsize=10)
        figure.colorbar(ax.images[0], ax=ax, shrink=0.6, label="mean score; white: can't tell apart")
        return _saved(figure, file, suffixes)


def training(setting: Setting, file: Path, suffixes: Sequence[str] = (".png",)) -> Path | None:
    """Score at the commonest budget against the hours that training took; None below two trained methods."""
    runs = [run for run in _at_budget(setting) if run.training_seconds]
    if len(runs) < 2:
        return None
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6.4, 4.4))
        for at, run in enumerate(runs):
            score, hours = run.score(), (run.training_seconds or 0.0) / 3600
            color, marker = PALETTE[at % len(PALETTE)], MARKERS[(at + at // len(PALETTE)) % len(MARKERS)]
            look = {"color": color, "marker": marker, "capsize": 3, "linestyle": ""}
            ax.errorbar(hours, score.value, yerr=score.half or 0.0, label=brief(run.label, LONGEST), **look)
        if (whole := setting.reference(ALL)) is not None:
            ax.axhline(whole, color="0.35", linestyle="--", linewidth=1.2, label="uncompressed")
        ax.set_xscale("log")
        ax.set_xlabel("hours of training (log scale)")
        ax.set_ylabel("mean task score")
        ax.set_title(f"{brief(setting.name, 40)}, {number(runs[0].tokens)} tokens", loc="left", fontweight="bold")
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return _saved(figure, file, suffixes)


def _grid(plt: Any, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], colors: str, ends: tuple) -> Any:
    """A heat map with its names, and its axes."""
    figure, ax = plt.subplots(figsize=(2.6 + 0.42 * len(columns), 1.6 + 0.22 * len(rows)))
    ax.imshow(table, cmap=colors, vmin=ends[0], vmax=ends[1], aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(rows)), [brief(name, 36) for name in rows], fontsize=8)
    ax.set_xticks(range(len(columns)), [brief(name, 36) for name in columns], rotation=45, ha="right", fontsize=8)
    ax.tick_params(length=0)
    return figure, ax


def _saved(figure: Any, file: Path, suffixes: Sequence[str]) -> Path:
    return save(figure, file, suffixes, tight=True)
