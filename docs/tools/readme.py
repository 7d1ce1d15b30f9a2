"""Fills the marked parts of README.md and of pages of docs/, so that no number is typed by hand.

    python docs/tools/readme.py            # the pages and docs/images/ from benchmarks/results/ and conf/benchmark/
                                           # (and docs/ablations.md, all of which `vtc.ablations.page` makes)
    python docs/tools/readme.py --check    # exit code 1 if a page would change

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`: `result` is the table that `make bench` prints,
`equal` the one table of methods that are trained alike, `budgets` its rows budget by budget, `shipped` the rows of the
weights that are shipped, `rates` the learning rates that were tried, `scenes` rows on other scenes (`equal.py`),
`method` the example method's file, `orders` the papers' order of methods against that of the one table, `claims` what
the papers conclude, `pairs` Fwd2Bot and Victor against others at equal tokens, `stages` what LLaVolta's stages cost and
what they lead to, `shape` the memory of every method on a LLaVA-1.5 of 7B's shape, `suites` what the benchmark suites
are made of, `floors` what can be guessed at pocket's tasks.
They are made of committed files; `suites` and `options`, what there is, by `catalogue.py`; `support`, which method
works on which family, of the code (`support.py`); `evidence`, what stands behind each method, of both (`evidence.py`).
`store_…` are made by `store_tables.py`, `speed_…`, what docs/speed.md states, by `speed.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import catalogue
import equal
import orders
import pocket
import speed
import store_tables
import verdicts

from vtc import results, shipped
from vtc.ablations import claims
from vtc.ablations import page as ablations
from vtc.ablations.experiments import Claim
from vtc.report import plots, tables
from vtc.report.collection import Setting, number
from vtc.report.runs import Run
from vtc.statistics import Estimate

PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "results",
            "findings",
            "pocket",
            "profile",
            "evaluate",
            "backbones",
            "methods",
            "reliability",
            "speed",
            "store",
        )
    ),
)
RESULTS = "benchmarks/results"
STAGES = f"{RESULTS}/llavolta-stages.json"
SHAPE = f"{RESULTS}/full-shape.json"
ATTACK = f"{RESULTS}/reliability.json"
IMAGES = "docs/images"
EXAMPLE = "examples/vtc-plugin-example/src/vtc_plugin_example/loudest.py"
BUDGETS = (4, 16, 36, 64)  # of the tables in docs/results.md …
SHOWN = 16  # … of which this one is open
TRAINED = ("fwd2bot", "victor")
AGAINST = ("avgpool", "fastv", "llavolta", "random", "random-layer2")
MAIN = {"backbone": "pocket", "method": "fwd2bot", "benchmark": "pocket", "tokens": 16}
PART = re.compile(r"(<!-- begin (?P<name>\w+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def committed(root: Path) -> list[Path]:
    """The result files under `benchmarks/results`, but for those of the ablations, which have a page of their own."""
    paths = []
    for path in sorted((root / RESULTS).rglob("*.json")):
        if path.is_relative_to(root / RESULTS / "ablations"):
            continue
        try:
            results.load(path)
        except ValueError:
            continue  # something else that is kept beside the results
        paths.append(path)
    return paths


def main_result(root: Path) -> dict[str, Any] | None:
    """The newest committed result of the main job, on all samples; rows of the one table have no costs."""
    fitting = []
    for path in committed(root):
        if path.is_relative_to(root / equal.RESULTS / "rows"):
            continue
        result = results.load(path)
        config = result["config"]
        whole = {key: config[key]["name"] for key in ("backbone", "method", "benchmark")} | {"tokens": config["tokens"]}
        if whole == MAIN and config["benchmark"].get("limit") is None and config.get("checkpoint") == "auto":
            fitting.append(result)
    return max(fitting, key=lambda r: r["run"]["created"], default=None)


def result_part(root: Path) -> str:
    from vtc.evaluation import display

    result = main_result(root)
    if result is None:
        return "No result is committed yet. `make bench` makes one and prints its table.\n"
    table = display.markdown(result)
    return re.sub(r"^# (.*)$", r"**\1**", table, count=1, flags=re.MULTILINE).strip() + "\n"


def budgets_part(root: Path) -> str:
    setting = equal.setting(root)
    return by_budget(setting, root) if setting is not None else f"Nothing is finished yet: {equal.COMMAND}.\n"


def by_budget(setting: Setting, root: Path) -> str:
    """The rows of each budget in a table of its own, groups of tasks and costs beside the mean."""
    budgets = [t for t in BUDGETS if any(r.tokens == t and not r.is_baseline for r in setting.runs)]
    others = [r for r in setting.runs if r.tokens not in budgets]
    lines = []
    for tokens in budgets:
        table = tables.markdown(*ranking(setting, [r for r in setting.runs if r.tokens == tokens], root))
        if absent := _absent(setting, tokens):
            table += f"\n\n{absent}"
        heading = f"{tokens} of {number(setting.runs[0].result['budget']['visual_tokens_in'])} visual tokens"
        if tokens == SHOWN or len(budgets) == 1:
            lines += [f"**{heading}**", "", table, ""]
        else:
            lines += [f"<details><summary><b>{heading}</b></summary>", "", table, "", "</details>", ""]
    if others:
        lines += ["**No compression, and other budgets**", "", tables.markdown(*ranking(setting, others, root)), ""]
    if speed.rows(root, "promised"):
        quicker = (
            "speed-up to the first token and own work, in percent of the uncompressed prefill's time, are those at the "
            "shape of LLaVA-1.5 7B with the same share of its visual tokens ([Speed](speed.md)), as pocket is too "
            "small to show them"
        )
    else:
        quicker = "the speed-up is that of the time to the first token of one row, own work the method's share of it"
    lines.append(
        "Sorted by the mean of all tasks. ± is half a 95 % confidence interval; FLOPs are those of a prefill, decoder "
        f"and method, relative to no compression; {quicker}. With p-values, task by task: "
        f"`python -m vtc action=report report.inputs=[{equal.RESULTS}/rows]`."
    )
    return "\n".join(lines) + "\n"


def ranking(setting: Setting, runs: Sequence[Run], root: Path) -> tuple[list[str], list[list[str]]]:
    """Some runs by their mean score, the best first: header and rows, without single tasks. Speed-up and own work are
    those at the shape of a real model (`speed.py`): pocket is too small to show them."""
    means, shown = tables.columns(setting)[1:], dict(tables.costs(setting))
    full = float(setting.runs[0].result["budget"]["visual_tokens_in"])
    if speed.rows(root, "promised"):

        def at_shape(run: Run) -> tuple[str, str]:
            if run.label != run.method:  # measured as the method comes
                return "–", "–"
            return speed.at_shape(root, run.method, (run.tokens or full) / full)

        shown["speed-up"] = lambda run: at_shape(run)[0]
        shown["own work"] = lambda run: at_shape(run)[1]
    header = [
        "method",
        "mean",
        "retained",
        *(tables.GROUP_TITLES.get(g, g) for g in means),
        *shown,
    ]
    several = len({r.tokens for r in runs}) > 1
    rows = []
    for run in sorted(runs, key=lambda r: -r.score().value):
        row = [run.label, tables.interval(run.score()), tables.percent(run.retained())]
        row += [tables.interval(run.score(group)) for group in means]
        row += [show(run) for show in shown.values()]
        rows.append([row[0], number(run.tokens), *row[1:]] if several else row)
    return ([header[0], "tokens", *header[1:]] if several else header), rows


def _absent(setting: Setting, tokens: int) -> str:
    """Which methods have no row at a budget: they can't leave so many tokens of this image, or were not run."""
    from vtc.interface import BackboneShape, TowerShape
    from vtc.methods import make

    backbone, shape = setting.runs[0].result["backbone"], None
    if sizes := backbone.get("shape"):
        shape = BackboneShape(
            **sizes
            | {
                "name": backbone["name"],
                "grid": sizes["grid"] and tuple(sizes["grid"]),
                "vision": TowerShape(**sizes["vision"]),
            }
        )
    reasons: dict[str, list[str]] = {"Not offered": [], "Not run": []}
    present = {r.method for r in setting.runs if r.tokens == tokens}
    for name in sorted({r.method for r in setting.runs if not r.is_baseline} - present):
        if shape is not None and tokens not in make(name, None, shape).offers():
            reasons["Not offered"].append(name)
        else:
            reasons["Not run"].append(name)
    return " ".join(f"{why} at this budget: {', '.join(names)}." for why, names in reasons.items() if names)


def method_part(root: Path) -> str:
    return f"```python\n{(root / EXAMPLE).read_text(encoding='utf-8')}```\n"


def pairs_part(root: Path) -> str:
    """Fwd2Bot and Victor against the methods that the three papers share, at equal tokens, by group of tasks."""
    runs, rows = equal.outcomes(root), []
    for tokens in BUDGETS:
        statements = [
            Claim(group, "", f"{method}-{tokens}", f"{other}-{tokens}", (group,))
            for method in TRAINED
            for other in AGAINST
            for group in results.GROUPS
            if f"{method}-{tokens}" in runs and f"{other}-{tokens}" in runs
        ]
        for found in claims.judge(statements, runs):  # corrected over those of a budget
            names = (name.removesuffix(f"-{tokens}") for name in (found.claim.better, found.claim.worse))
            shown, p_holm = orders.difference(found)
            seeds = str(found.seeds)
            rows.append([str(tokens), found.claim.text, *names, shown, tables.p_text(found.p), p_holm, seeds])
    if not rows:
        return f"None of them is there yet: {equal.COMMAND}.\n"
    header = ["tokens", "tasks", "method", "against", "difference (95 %)", "p", "p (Holm)", "seeds"]
    return tables.markdown(header, rows) + "\n"


def orders_part(root: Path) -> str:
    """What the papers' tables say of each pair of methods, and what the rows of the one table say."""
    return orders.part(root, equal.outcomes(root))


def claims_part(root: Path) -> str:
    return verdicts.part(root, equal.outcomes(root))


def stages_part(root: Path) -> str:
    """LLaVolta: cost of a training step in each stage, and the scores after one stage and after four."""
    if not (root / STAGES).is_file():
        return "Not measured yet.\n"
    measured = json.loads((root / STAGES).read_text(encoding="utf-8"))
    cells = []
    for row in measured["stages"]:
        time = row["step_time_ratio"]
        spread = f"{time['median']:.2f} ({time['min']:.2f} to {time['max']:.2f})"
        cells.append([row["stage"], f"{row['compression_ratio']:.2f}", f"{row['step_flops_ratio']:.2f}", spread])
    whole = measured["four_stages_against_single"]
    cells.append(["all four", "", f"{whole['step_flops_ratio']:.2f}", f"{whole['step_time_ratio']:.2f}"])
    head = ["stage (layers of 32)", "CR of the decoder", "FLOPs of a step", "time of a step, median (range)"]
    lines = [tables.markdown(head, cells), ""]
    lines.append(f"`{measured['command']}`, {measured['rounds']} interleaved rounds, relative to an uncompressed step.")
    done, scored = equal.pieces(root), []
    for name, words in ((equal.WHOLE, "single stage (the base model)"), (equal.STAGED, "four stages")):
        for piece in next(iter(done.get(name, {}).values()), []):
            means = [piece.result["means"][group] for group in results.GROUPS]
            scored.append([words, *(tables.interval(Estimate(m["value"], m["stderr"])) for m in means)])
    if len(scored) > 1:
        lines += ["", tables.markdown(["trained in", *results.GROUPS], scored)]
    return "\n".join(lines) + "\n"


def shape_part(root: Path) -> str:
    """What every method keeps and needs on a LLaVA-1.5 of 7B's depth and number of tokens."""
    if not (root / SHAPE).is_file():
        return "Not measured yet.\n"
    measured = json.loads((root / SHAPE).read_text(encoding="utf-8"))
    cells, refused = [], []
    for row in measured["methods"]:
        if "refused" in row:
            refused.append(f"{row['method']}: {row['refused']}")
            continue
        kept = "exact" if row["exact"] else ", ".join(map(str, row["tokens_out"]))
        budget = "all" if row["tokens"] is None else str(row["tokens"])
        cells.append([row["method"], budget, kept, f"{row['peak_bytes'] / 1e6:,.0f}", f"{row['seconds']:.1f}"])
    shape, width = measured["shape"], measured["width"]
    of = "the shape of LLaVA-1.5 7B" if width == 1 else f"LLaVA-1.5 7B at 1/{width} of its width"
    lines = [
        f"Random weights in {of}: {shape['depth']} layers of width {shape['width']}, {shape['visual_tokens']} visual "
        f"tokens, {measured['parameters'] / 1e6:,.0f} M parameters, {measured['dtype']}, "
        f"{measured['weight_bytes'] / 1e6:,.0f} MB of weights. {measured['batch']} rows of different lengths, "
        f"8 new tokens; memory above the loaded model.",
        "",
        tables.markdown(["method", "visual tokens", "left", "peak, MB", f"s on {measured['device']}"], cells),
        "",
        f"`{measured['command']}`, threads: {measured['threads']}.",
        *(f"Refused: {line}." for line in refused),
    ]
    return "\n".join(lines) + "\n"


def support_part(root: Path) -> str:
    import support  # builds methods, and so imports torch

    return support.part()


def evidence_part(root: Path) -> str:
    """What stands behind each method."""
    import evidence  # imports every method's class, and so torch

    return evidence.part(root)


def attack_part(root: Path) -> str:
    """What became of every kind of attack."""
    if not (root / ATTACK).is_file():
        return "Not measured yet.\n"
    record = json.loads((root / ATTACK).read_text(encoding="utf-8"))
    verdicts = ("right", "silent", "traceback", "hang", "wordy", "refused")
    rows = []
    for kind, cases in record["cases"].items():
        rows.append([kind, str(cases), *(str(record["counts"][kind].get(verdict, 0)) for verdict in verdicts)])
    return "\n" + tables.markdown(["kind", "cases", *verdicts], rows) + "\n\n"


PARTS: dict[str, Callable[[Path], str]] = {
    "result": result_part,
    "budgets": budgets_part,
    "method": method_part,
    "orders": orders_part,
    "claims": claims_part,
    "floors": pocket.floors_part,
    **equal.PARTS,
    "pairs": pairs_part,
    "stages": stages_part,
    "shape": shape_part,
    "attack": attack_part,
    **store_tables.PARTS,
    "suites": catalogue.suites_part,
    "support": support_part,
    "evidence": evidence_part,
    "options": catalogue.options_part,
    **speed.PARTS,
}


def image(axis: str) -> Path:
    return Path(IMAGES) / f"pareto-{axis}.png"


def filled(text: str, root: Path) -> str:
    """`text` with every marked part made anew.

    Raises:
        KeyError: a part that nobody makes.
    """
    return PART.sub(lambda part: part[1] + PARTS[part["name"]](root) + part[3], text)


def main(argv: list[str]) -> int:
    root = shipped.root()
    texts = {name: (root / name).read_text(encoding="utf-8") for name in PAGES}
    stale = {name: new for name, text in texts.items() if (new := filled(text, root)) != text}
    if "--check" in argv:
        for name in PAGES:
            print(f"{name} is {'out of date: python docs/tools/readme.py' if name in stale else 'up to date'}")
        return int(bool(stale))
    setting = equal.setting(root)
    if setting is not None:
        for axis in ("tokens", "flops"):
            plots.pareto(setting, axis, root / image(axis))
    speed.plot(root)
    equal.plot(root)
    for name in PAGES:
        if name in stale:
            results.write_text(root / name, stale[name])
        print(f"{name}: {'changed' if name in stale else 'as it was'}")
    return ablations.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
