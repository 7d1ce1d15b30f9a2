"""A result for eyes: tables on the console and `summary.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from vtc import results, terminal
from vtc.profiling import display as profiling
from vtc.statistics import Estimate

MINIATURE = "pocket is a miniature: it shows the order of methods, not the numbers of a real LVLM"
OWN_DATA = (
    "backbone pocket knows its own drawn scenes and their words only: these scores say that the data are read as they "
    "should be, not how a model would do; give backbone=… for that"
)
PICTURES = {"grey": "every picture was grey", "other": "every picture was another sample's"}
METRICS = {"CIDEr": "CIDEr/10", "exact_match": "exact match"}
COLUMNS = ("task", "metric", "n", "score", "blind", "bag", "uncompressed", "retained", "agreement", "p")
LEAST = ("bag", "metric", "agreement", "n", "blind", "p", "uncompressed")  # what goes first where the screen is narrow
INTERVAL = "± is half the 95 % interval over samples"
AGREEMENT = "; agreement: the share of the answers that are the uncompressed model's, in the same words"


def score(value: float | None, error: float | None = None) -> str:
    """`0.870 ±0.024`, the half width of the 95 % interval; `–` where there is none.

    Args:
        error: the standard error.
    """
    if value is None:
        return "–"
    digits, half = 3 if abs(value) < 10 else 1, Estimate(value, error).half
    return f"{value:.{digits}f}" + (f" ±{half:.{digits}f}" if half is not None else "")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def p_value(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def near_floor(row: dict[str, Any]) -> bool:
    """Whether a score can't be told from its higher floor: less than two standard errors above it."""
    floors = [row[f] for f in ("blind", "bag") if row.get(f) is not None]
    return bool(floors) and row["value"] is not None and row["value"] - 2 * (row["stderr"] or 0.0) <= max(floors)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The score table's cells: a row a task, and the means."""
    out: list[tuple[str, ...]] = []
    for row in result["scores"]:
        bad = f" ({row['bad']} bad)" if row.get("bad") else ""
        out.append((row["task"], METRICS.get(row["metric"], row["metric"]), f"{row['n']}{bad}", *_cells(row)))
    for group, mean in (result.get("means") or {}).items():
        out.append((f"mean, {group}", f"{mean['tasks']} tasks", str(mean["n"]), *_cells(mean)))
    return out


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the scores; agreement where the result states any (those of earlier versions don't)."""
    lines, at = rows(result), COLUMNS.index("agreement")
    if any(line[at] != "–" for line in lines):
        return COLUMNS, lines
    return tuple(c for c in COLUMNS if c != "agreement"), [line[:at] + line[at + 1 :] for line in lines]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The numbers of a task, or of a mean; a task that can't be told from its floor is marked."""
    value = score(row["value"], row["stderr"]) + ("†" if "task" in row and near_floor(row) else "")
    floors = [score(row.get(floor)) for floor in ("blind", "bag")]
    shares = (percent(row["retained"]), percent(row.get("agreement")))
    return value, *floors, score(row["baseline"]), *shares, p_value(row["p_value"])


def title(result: dict[str, Any]) -> str:
    budget, method = result["budget"], result["method"]
    name = method["name"] + (f", {method['tokens']} tokens" if method.get("tokens") is not None else "")
    name += " in the mean" if budget.get("spread") is not None else ""
    if method.get("parts"):
        name = " + ".join(f"{part['name']} {part['tokens']}" for part in method["parts"]) + " tokens"
    kept = f"{budget['visual_tokens_in']:.4g} → {budget['visual_tokens_out']:.4g} visual tokens"
    return f"{name} on {result['backbone']['name']} ({kept})"


def costs_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, this method, uncompressed) of what it costs."""
    budget = result["budget"]
    tokens = budget["visual_tokens_in"]
    return [
        ("visual tokens at the end", f"{budget['visual_tokens_out']:.4g}{_spread(budget)}", f"{tokens:.4g}"),
        ("visual tokens, mean over layers", f"{budget['layer_average_tokens']:.4g}", f"{tokens:.4g}"),
        ("compression ratio", f"{budget['compression_ratio']:.2f}×", "1.00×"),
        *profiling.rows(result["efficiency"], 2 * tokens * result["backbone"]["shape"]["width"]),
    ]


def _spread(budget: dict[str, Any]) -> str:
    """How the images differ, where the budget is a mean over them."""
    spread = budget.get("spread")
    return f" ± {spread['tokens_sd']:.3g}, {spread['tokens_least']:g} to {spread['tokens_most']:g}" if spread else ""


def remarks(result: dict[str, Any]) -> list[str]:
    """Lines under the tables: what a mark means, what went wrong, what pocket is."""
    lines = []
    if any(near_floor(row) for row in result["scores"]):
        lines.append("† within two standard errors of a floor (blind: no image; bag: attributes without their binding)")
    divided = [f"{row['task']} / {row['scale']:g}" for row in result["scores"] if row.get("scale", 1.0) != 1.0]
    if divided:
        lines.append(f"in the mean: {', '.join(divided)}")
    unjudged = [f"{row['task']} {row['unjudged']}" for row in result["scores"] if row.get("unjudged")]
    if unjudged:
        lines.append(f"samples without a verdict of the judge: {', '.join(unjudged)}")
    if aside := result["run"].get("decoding", {}).get("set_aside"):
        settings = ", ".join(f"{key}={value}" for key, value in aside.items())
        lines.append(f"answers are greedy; of the checkpoint's generation settings these are set aside: {settings}")
    bad = result["bad_samples"]
    if bad["count"]:
        first = bad["samples"][0]
        lines.append(
            f"{bad['count']} bad samples are not in the scores; "
            f"the first: {first['task']} {first['id']}: {first['error']}"
        )
    config = result["config"]["benchmark"]
    if (picture := config.get("picture", "own")) != "own":
        lines.append(f"{PICTURES[picture]}; uncompressed: with the right pictures (benchmark.picture={picture})")
    if config["name"].startswith("pocket"):
        lines.append(MINIATURE)
    elif result["backbone"]["name"].startswith("pocket"):
        lines.append(OWN_DATA)
    return lines


def scores(result: dict[str, Any], width: int) -> Table:
    """The scores for a screen of `width` columns."""
    tasks, (header, lines) = len(result["scores"]), table(result)
    return terminal.table(
        title(result),
        header,
        lines,
        width,
        least=LEAST,
        left=("metric",),
        caption=INTERVAL,
        elsewhere=f"{results.SUMMARY} has all",
        style=lambda at: "bold" if at >= tasks else None,
    )


def costs(result: dict[str, Any]) -> Table:
    return profiling.table("costs", costs_rows(result), result["efficiency"]["protocol"])


def _markdown_table(head: tuple[str, ...], cells: Sequence[tuple[str, ...]], left: int) -> list[str]:
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in (head, tuple(rule), *cells)]


def markdown(result: dict[str, Any]) -> str:
    """`summary.md`."""
    run = result["run"]
    return "\n".join(
        [
            f"# {title(result)}",
            "",
            f"`{run['command']}` · run {run['id']} · {run['created']} · {run['device']} · {run['dtype']}",
            "",
            *_markdown_table(*table(result), 2),
            "",
            f"{INTERVAL}{AGREEMENT if 'agreement' in table(result)[0] else ''}.",
            "",
            *_markdown_table(("cost", "this method", "uncompressed"), costs_rows(result), 1),
            "",
            *(line + "\n" for line in remarks(result)),
            "",
        ]
    )
