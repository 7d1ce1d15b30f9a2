"""The one table of pocket's second edition (`benchmarks/pocket/table.py`): what is finished of it, and its loss curves.

A score is the mean over the nine tasks, each a share of its full score. Its interval is over samples, look-alikes as
one, and where there are several seeds over these too (`vtc.statistics.paired_estimate`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vtc import results
from vtc.ablations.claims import Outcome
from vtc.registry import methods
from vtc.report import plots, tables
from vtc.report.collection import Setting, settings
from vtc.report.runs import Run
from vtc.statistics import by_question, paired_estimate, question_weights
from vtc.statistics.compare import cells, clusters

RESULTS = "benchmarks/results/pocket2"
TABLE = "benchmarks/pocket/table.yaml"
SCENES = "scenes.json"
IMAGE = "docs/images/pocket2-losses.png"
LOG, MANIFEST, PIECE = "training.jsonl", "training.json", "piece.json"
FLOORS = {"blind": "floor: text alone", "bag": "floor: text, and a bag of attributes"}
LEARNING = "none"  # of the trained ones: no compression, learning for as many steps
WHOLE = "uncompressed"  # of the controls: the model that the methods start from
SHIPPED = "-shipped"  # behind the name of a method: with the weights of `checkpoint=auto`
STAGED = "llavolta-four"  # of the controls: that which learnt in LLaVolta's four stages
COMMAND = "`python benchmarks/pocket/table.py`"


@dataclass(frozen=True)
class Piece:
    """A finished row.

    Attributes:
        name: of a method or a control in table.yaml; tokens: None: without a budget.
    """

    folder: Path
    name: str
    tokens: int | None
    seed: int

    @functools.cached_property
    def result(self) -> Mapping[str, Any]:
        return results.load(self.folder)

    @functools.cached_property
    def scores(self) -> Any:
        """Those of the samples, as shares of their tasks' full scores."""
        scales = {row["task"]: float(row.get("scale") or 1.0) for row in self.result["scores"]}
        scores = by_question(results.samples(self.folder))
        return scores / scores.index.get_level_values("task").map(scales).to_numpy(float)

    @functools.cached_property
    def training(self) -> Mapping[str, Any] | None:
        """The manifest of its weights, where it was trained."""
        file = self.folder / MANIFEST
        manifest: Mapping[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return manifest


def values_of(root: Path) -> dict[str, Any]:
    """What table.yaml says."""
    values: dict[str, Any] = yaml.safe_load((root / TABLE).read_text(encoding="utf-8"))
    return values


def pieces(root: Path) -> dict[str, dict[int | None, list[Piece]]]:
    """Every finished row: name → tokens → seeds."""
    found: dict[str, dict[int | None, list[Piece]]] = {}
    for file in sorted((root / RESULTS / "rows").glob(f"*/{PIECE}")):
        about = json.loads(file.read_text(encoding="utf-8"))
        piece = Piece(file.parent, about["method"], about["tokens"], about["seed"])
        found.setdefault(piece.name, {}).setdefault(piece.tokens, []).append(piece)
    return found


@functools.cache
def setting(root: Path) -> Setting | None:
    """The finished rows of the first seed as a report sees them, under their names in table.yaml, options and controls
    apart; None where there is none."""
    values, done = values_of(root), pieces(root)
    names = {
        piece.folder / results.RESULT: name
        for name in (WHOLE, *values["trained"], *values["free"])
        if name != LEARNING
        for seeds in done.get(name, {}).values()
        for piece in seeds
        if piece.seed == 0
    }
    if not names:
        return None
    (found,), _ = settings([Run.read(path) for path in names])
    for run in found.runs:
        run.label = names[run.path]
    found.runs.sort(key=lambda run: (not run.is_baseline, run.label, run.tokens or 0))
    return found


@functools.cache
def outcomes(root: Path) -> dict[str, dict[int, Outcome]]:
    """What papers are held against: `method-tokens`, or the name alone of what has no budget → seed → outcome.

    What wasn't trained, and draws nothing or draws with one seed, is the same row under every seed.
    """
    seeds = values_of(root)["seeds"]
    found: dict[str, dict[int, Outcome]] = {}
    for name, own in pieces(root).items():
        for tokens, rows in own.items():
            runs = {row.seed: Outcome.read(row.folder) for row in rows}
            if not any(row.training for row in rows):
                runs = dict.fromkeys(sorted({seed for each in seeds.values() for seed in each}), runs[rows[0].seed])
            found[name if tokens is None else f"{name}-{tokens}"] = runs
    return found


def script(root: Path) -> Any:
    """The table as `benchmarks/pocket/table.py` knows it."""
    file = (root / TABLE).with_suffix(".py")
    spec = importlib.util.spec_from_file_location("pocket_table", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Table(values_of(root), root)


def progress(root: Path) -> str:
    """How many of the rows that table.yaml asks for are there, of rates beyond which none is left to be tried."""
    table = script(root)
    rows = [row for name in table.methods for row in table.rows(name)]
    final = sum(row.piece is not None for row in rows)
    return f"{final} of {len(rows)} rows are final, their rates among them; {COMMAND} goes on."


def estimate(seeds: Sequence[Piece], against: Sequence[Piece] | None = None) -> dict[str, Any]:
    """Mean score over the seeds of a method at a budget with its interval; or what it is above that of others, with
    its p-value."""
    index = seeds[0].scores.index
    table = np.stack([piece.scores[index].to_numpy(float) for piece in seeds])
    if against:
        table = table - np.stack([piece.scores[index].to_numpy(float) for piece in against]).mean(axis=0)
    weights = question_weights(index, {})
    return paired_estimate(table, weights, cells(index), flips=against is not None, groups=clusters(index))


def mean(seeds: Sequence[Piece] | None) -> str:
    """Over the tasks, with half of its 95 % interval."""
    if not seeds:
        return "–"
    found = estimate(seeds)
    return f"{found['difference']:.3f} ±{(found['high'] - found['low']) / 2:.3f}"


def _apart(seeds: Sequence[Piece]) -> str:
    """The smallest and the largest mean of several seeds."""
    means = [estimate([piece])["difference"] for piece in seeds]
    return f"{min(means):.3f} to {max(means):.3f}" if len(means) > 1 else "–"


def _learned(seeds: Sequence[Piece]) -> list[str]:
    """The learning rate and the FLOPs of a training; dashes without one."""
    manifest = seeds[0].training
    if manifest is None:
        return ["–", "–"]
    flops = [(stage.get("flops_per_step"), stage["steps"]) for stage in manifest["stages"]]
    total = None if any(each is None for each, _ in flops) else sum(each * steps for each, steps in flops)
    return [f"{manifest['training']['stages'][-1]['lr']:g}", "–" if total is None else f"{total / 1e12:.0f} T"]


def _budget(seeds: Sequence[Piece]) -> str:
    """Prefill FLOPs relative to the uncompressed model's."""
    return tables.percent(seeds[0].result["budget"].get("flops_ratio"))


def table_part(root: Path) -> str:
    """Methods by budget, the controls below them."""
    values, done = values_of(root), pieces(root)
    if not done:
        return f"Nothing of it is finished yet: {COMMAND}.\n"
    budgets, grid = values["budgets"], values["grid"]
    rows = []
    for name in [name for name in (*values["trained"], *values["free"]) if name in done and name != LEARNING]:
        own = done[name]
        shown = own.get(grid) or next(iter(own.values()))
        cells_of = [mean(own.get(tokens)) for tokens in budgets]
        row = [f"`{name}`", *cells_of, _apart(shown), _budget(shown), *_learned(shown)]
        rows.append((bool(own.get(grid)), estimate(shown)["difference"], row))
    rows.sort(key=lambda row: (not row[0], -row[1]))
    costs = [f"seeds at {grid}", f"FLOPs at {grid}", "rate", "training FLOPs"]
    header = ["method", *(f"{tokens} tokens" for tokens in budgets), *costs]
    lines = [tables.markdown(header, [row for *_, row in rows]), "", *_controls(values, done)]
    inside = [f"`{name}`" for name in (*values["trained"], *values["free"]) if name in done and _inside(done[name])]
    if inside:
        where = "Inside the LLM, where the prompt has read the picture before anything is dropped, act"
        floor = "`in-llm-floor-2` is what is answered with NOTHING of it left behind layer 2 of 6"
        lines += ["", f"{where} {', '.join(inside)}: {floor}."]
    lines += ["", progress(root)]
    return "\n".join(lines) + "\n"


def _inside(own: Mapping[int | None, list[Piece]]) -> bool:
    """Whether a method leaves more visual tokens in its first layers than in the last one, and the prompt sees them."""
    if methods.get(next(iter(own.values()))[0].result["method"]["name"]).bottleneck:
        return False
    budgets = [seeds[0].result["budget"] for seeds in own.values()]
    return any(b["layer_average_tokens"] > b["visual_tokens_out"] for b in budgets)


def _controls(values: Mapping[str, Any], done: Mapping[str, Mapping[int | None, list[Piece]]]) -> list[str]:
    """What a score is held against."""
    rows = []
    for name in [name for name in (LEARNING, *values["controls"]) if name in done]:
        seeds = next(iter(done[name].values()))
        words = "uncompressed, trained as long" if name == LEARNING else name
        rows.append([words, mean(seeds), _apart(seeds), _budget(seeds), *_learned(seeds)])
    any_row = next(iter(next(iter(done.values())).values()))[0]
    for floor, words in FLOORS.items():
        known = [share for row in any_row.result["scores"] if (share := results.share(row, floor)) is not None]
        if len(known) == len(any_row.result["scores"]):
            rows.append([words, f"{np.mean(known):.3f}", *["–"] * 4])
    header = ["control", "mean", "seeds", "FLOPs", "rate", "training FLOPs"]
    return [tables.markdown(header, rows)] if rows else []


def options_part(root: Path) -> str:
    """What an option of a method changes at the budget of the grid."""
    values, done = values_of(root), pieces(root)
    grid, rows = values["grid"], []
    for name, about in values["options"].items():
        own, plain = (done.get(of, {}).get(grid) for of in (name, about["method"]))
        if own and plain:
            found = estimate(own, plain)
            ends = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
            option = " ".join(word.removeprefix("method.") for word in about["score"])
            rows.append([f"`{about['method']}`", f"`{option}`", mean(own), ends, tables.p_text(found["p"])])
    if not rows:
        return f"None was scored yet: {COMMAND}.\n"
    return tables.markdown(["method", "option", f"mean at {grid}", "against its default", "p"], rows) + "\n"


def shipped_part(root: Path) -> str:
    """Rows with the shipped weights, and the steps of their recipes, beside the rows that were trained alike."""
    values, done = values_of(root), pieces(root)
    budgets, grid, rows = values["budgets"], values["grid"], []
    for name in [name for name in values["shipped"] if name in done]:
        own, alike = done[name], done.get(values["shipped"][name]["method"], {})
        shown = own.get(grid) or next(iter(own.values()))
        steps = sum(stage["steps"] for stage in shown[0].result["checkpoint"]["manifest"]["stages"])
        difference = estimate(shown, same) if (same := alike.get(shown[0].tokens)) else None
        words = f"{difference['difference']:+.3f}" if difference else "–"
        row = [f"`{values['shipped'][name]['method']}`", *(mean(own.get(tokens)) for tokens in budgets)]
        rows.append((estimate(shown)["difference"], [*row, f"{steps:,}", words]))
    if not rows:
        return f"None was scored yet: {COMMAND}.\n"
    header = ["method", *(f"{tokens} tokens" for tokens in budgets), f"steps at {grid}", "above its row up there"]
    return tables.markdown(header, [row for _, row in sorted(rows, key=lambda row: -row[0])]) + "\n"


def rates_part(root: Path) -> str:
    """The mean on validation scenes after each rate that was tried."""
    files = sorted((root / RESULTS / "rates").glob("*.json"))
    tried = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    if not tried:
        return f"None was tried yet: {COMMAND}.\n"
    rates = sorted({rate for each in tried.values() for rate in each}, key=float)
    table, rows = script(root), []
    for name, each in tried.items():
        best = table.rate(name)
        words = [f"{each[rate]['validation']['mean']:.3f}" if rate in each else "–" for rate in rates]
        rows.append([f"`{name}`", *(f"**{w}**" if float(r) == best else w for r, w in zip(rates, words, strict=True))])
    lines = [tables.markdown(["method", *(f"rate {rate}" for rate in rates)], rows)]
    if (root / IMAGE).is_file():
        lines += ["", f"![Loss of answers in training, method by method](images/{Path(IMAGE).name})"]
    return "\n".join(lines) + "\n"


def scenes_part(root: Path) -> str:
    """Rows again on scenes of other seeds: the mean, and the task that is furthest off."""
    file = root / RESULTS / SCENES
    if not file.is_file():
        return "None was scored again yet: `python benchmarks/pocket/scenes.py`.\n"
    rows = []
    for label, seeds in json.loads(file.read_text(encoding="utf-8")).items():
        for seed, found in seeds.items():
            tasks = dict(found["tasks"])
            mean = tasks.pop("mean")
            name, far = max(tasks.items(), key=lambda task: abs(task[1]["z"]))
            furthest = f"{name}: {far['score']:.3f}, published {far['published']:.3f} (z {far['z']:+.1f})"
            scores = [f"{mean['score']:.3f}", f"{mean['published']:.3f}", f"{mean['z']:+.1f}"]
            rows.append([f"`{label}`", seed, *scores, furthest])
    header = ["row", "scenes of seed", "mean", "published", "z", "the task that is furthest off"]
    return tables.markdown(header, rows) + "\n"


def plot(root: Path) -> None:
    """The loss of answers in each method's training at the budget of the grid, seed 0."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    values, done = values_of(root), pieces(root)
    shown = {}
    for name in values["trained"]:
        own = done.get(name, {})
        seeds = own.get(values["grid"]) or own.get(None) or []
        if seeds and (seeds[0].folder / LOG).is_file():
            shown[name] = seeds[0].folder / LOG
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(7, 4.2))
    styles = cycle(zip(plots.PALETTE * len(plots.DASHES), np.repeat(plots.DASHES, len(plots.PALETTE)), strict=True))
    for (name, file), (color, dash) in zip(shown.items(), styles, strict=False):
        log = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        steps = [(line["step"], line["answer"]) for line in log if "answer" in line]
        axes.plot(*zip(*steps, strict=True), color=color, linestyle=str(dash), linewidth=1.2, label=name)
    axes.set(xlabel="step", ylabel="loss of answers (log scale)", yscale="log")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(root / IMAGE, dpi=130)
    plt.close(figure)


PARTS = {
    "equal": table_part,
    "option_effects": options_part,
    "shipped": shipped_part,
    "rates": rates_part,
    "scenes": scenes_part,
}
