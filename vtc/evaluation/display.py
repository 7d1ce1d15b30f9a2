"""A result for eyes: tables on the console and `summary.md`."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from vtc.profiling.display import number

MINIATURE = "pocket is a miniature: it shows the order of methods, not the numbers of a real LVLM"
METRICS = {"CIDEr": "CIDEr/10", "exact_match": "exact match"}
COLUMNS = ("task", "metric", "n", "score", "blind", "bag", "uncompressed", "retained", "p")


def score(value: float | None, error: float | None = None) -> str:
    """`0.870 ± 0.024`; `–` where there is none."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


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
        mark = "†" if near_floor(row) else ""
        bad = f" ({row['bad']} bad)" if row.get("bad") else ""
        out.append(
            (row["task"], METRICS.get(row["metric"], row["metric"]), f"{row['n']}{bad}",
             score(row["value"], row["stderr"]) + mark,
             score(row.get("blind")), score(row.get("bag")), score(row["baseline"]), percent(row["retained"]),
             p_value(row["p_value"]))
        )  # fmt: skip
    for group, mean in (result.get("means") or {}).items():
        out.append(
            (f"mean, {group}", f"{mean['tasks']} tasks", str(mean["n"]), score(mean["value"], mean["stderr"]),
             score(mean.get("blind")), score(mean.get("bag")), score(mean["baseline"]), percent(mean["retained"]),
             p_value(mean["p_value"]))
        )  # fmt: skip
    return out


def title(result: dict[str, Any]) -> str:
    budget, method = result["budget"], result["method"]
    name = method["name"] + (f", {method['tokens']} tokens" if method.get("tokens") is not None else "")
    if method.get("parts"):
        name = " + ".join(f"{part['name']} {part['tokens']}" for part in method["parts"]) + " tokens"
    kept = f"{budget['visual_tokens_in']:.4g} → {budget['visual_tokens_out']:.4g} visual tokens"
    return f"{name} on {result['backbone']['name']} ({kept})"


def costs_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """(what, this method, uncompressed) of what it costs."""
    budget, e = result["budget"], result["efficiency"]
    tokens = budget["visual_tokens_in"]
    one_row = "one row"
    out: list[tuple[str, ...]] = [
        ("visual tokens at the end", f"{budget['visual_tokens_out']:.4g}", f"{tokens:.4g}"),
        ("visual tokens, mean over layers", f"{budget['layer_average_tokens']:.4g}", f"{tokens:.4g}"),
        ("compression ratio", f"{budget['compression_ratio']:.2f}×", "1.00×"),
        *_vision(e),
        ("prefill FLOPs, decoder and method", f"{number(e['prefill_flops'])} ({e['flops_ratio']:.2f}×)",
         number(e["prefill_flops_uncompressed"])),
        *_stored(e),
        (f"TTFT, {one_row}", f"{e['ttft_ms']['median']:.1f} ms", f"{e['ttft_ms_uncompressed']['median']:.1f} ms"),
        *_own(e),
        (f"decoding, a step of {e['protocol']['batch_size']} rows", f"{e['decode_ms_per_token']:.1f} ms",
         f"{e['decode_ms_per_token_uncompressed']:.1f} ms"),
    ]  # fmt: skip
    for n, value in e["throughput"].items():
        gain = f" ({e['speedup_by_tokens'][n]:.2f}×)"
        plain = e["throughput_uncompressed"][n]
        out.append((f"throughput, {n} new tokens", f"{number(value)} tokens/s{gain}", f"{number(plain)} tokens/s"))
    out.append(
        ("KV cache after the prefill", number(e["kv_cache_bytes"], "B"), number(e["kv_cache_bytes_uncompressed"], "B"))
    )
    if e["peak_memory_bytes"] is not None:
        out.append(
            ("peak GPU memory", number(e["peak_memory_bytes"], "B"), number(e["peak_memory_bytes_uncompressed"], "B"))
        )
    full = 2 * tokens * result["backbone"]["shape"]["width"]
    out.append(("stored per image, 16 bit", number(e["storage_bytes_per_image"], "B"), number(full, "B")))
    out.append(("extra parameters", number(e["extra_parameters"]), "0"))
    return out


def _vision(e: dict[str, Any]) -> list[tuple[str, ...]]:
    """The row of the tower and the projector, where methods can save too. Results of earlier versions have none."""
    if "vision_flops_uncompressed" not in e:
        return []
    mine, plain = e["vision_flops"], e["vision_flops_uncompressed"]
    return [("vision FLOPs, tower and projector", f"{number(mine)} ({mine / plain:.2f}×)", number(plain))]


def _own(e: dict[str, Any]) -> list[tuple[str, ...]]:
    """The row of the method's own work in a prefill. Results of earlier versions have none."""
    if "method_ms" not in e:
        return []
    return [("… of the method itself", f"{e['method_ms']:.1f} ms ({100 * e['method_share']:.0f} %)", "–")]


def _stored(e: dict[str, Any]) -> list[tuple[str, ...]]:
    """The row of methods that compress an image once, beforehand, whatever is asked of it later (Fwd2Bot)."""
    answer, full = e["answer_flops"], e["prefill_flops_uncompressed"]
    if answer > 0.995 * e["prefill_flops"]:
        return []
    return [("… of an image compressed beforehand", f"{number(answer)} ({answer / full:.2f}×)", number(full))]


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
    bad = result["bad_samples"]
    if bad["count"]:
        first = bad["samples"][0]
        lines.append(
            f"{bad['count']} bad samples are not in the scores; "
            f"the first: {first['task']} {first['id']}: {first['error']}"
        )
    if result["config"]["benchmark"]["name"] == "pocket":
        lines.append(MINIATURE)
    return lines


def scores(result: dict[str, Any]) -> Table:
    table = Table(title=title(result), title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", no_wrap=True)
    cells = rows(result)
    means = len(result.get("means") or {})
    for i, row in enumerate(cells):
        table.add_row(
            *map(escape, row),
            style="bold" if i >= len(cells) - means else None,
            end_section=i == len(cells) - means - 1,
        )
    return table


def costs(result: dict[str, Any]) -> Table:
    protocol = result["efficiency"]["protocol"]
    caption = f"{protocol['prompt_tokens']} text tokens a prompt, batch {protocol['batch_size']}, {protocol['device']}"
    table = Table(title="costs", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("this method", justify="right", no_wrap=True)
    table.add_column("uncompressed", justify="right", no_wrap=True)
    for row in costs_rows(result):
        table.add_row(*map(escape, row))
    return table


def _markdown_table(head: tuple[str, ...], cells: list[tuple[str, ...]], left: int) -> list[str]:
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
            *_markdown_table(COLUMNS, rows(result), 2),
            "",
            *_markdown_table(("cost", "this method", "uncompressed"), costs_rows(result), 1),
            "",
            *(line + "\n" for line in remarks(result)),
            "",
        ]
    )
