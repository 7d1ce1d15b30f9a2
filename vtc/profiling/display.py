"""Costs as a table for eyes."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def number(value: float | None, unit: str = "") -> str:
    """`1.25 G`, `830`, `–`: three digits and a power of a thousand."""
    if value is None:
        return "–"
    for power, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g} {name}{unit}"
    return f"{value:.3g} {unit}".strip()


def rows(costs: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, this method, uncompressed, quotient) of an efficiency section."""
    pairs = [
        ("vision FLOPs, tower and projector", "vision_flops", ""),
        ("prefill FLOPs, decoder and method", "prefill_flops", ""),
        ("TTFT, one row", "ttft_ms", "ms"),
        ("decoding, a step of the batch", "decode_ms_per_token", "ms"),
        ("KV cache of a row", "kv_cache_bytes", "B"),
        ("peak memory", "peak_memory_bytes", "B"),
    ]
    out: list[tuple[str, str, str, str]] = []
    for what, key, unit in pairs:
        mine, plain = costs.get(key), costs.get(f"{key}_uncompressed")
        if isinstance(mine, dict):
            mine, plain = mine["median"], plain["median"]  # type: ignore[index]
        if mine is not None and plain is not None:
            out.append((what, number(mine, unit), number(plain, unit), f"{mine / plain:.2f}×"))
    out.insert(2, ("… of the method itself", number(costs["method_flops"]), "", ""))
    own = f"{number(costs['method_ms'], 'ms')} ({100 * costs['method_share']:.1f} %)"
    out.insert(4, ("… of the method itself, share of it", own, "", ""))
    for n, value in costs["throughput"].items():
        plain = costs["throughput_uncompressed"][n]
        out.append(
            (f"throughput at {n} new tokens", number(value, "tok/s"), number(plain, "tok/s"), f"{value / plain:.2f}×")
        )
    out.append(("stored bytes per image, 16 bit", number(costs["storage_bytes_per_image"], "B"), "", ""))
    out.append(("extra parameters", number(costs["extra_parameters"]), "", ""))
    return out


def table(costs: dict[str, Any], backbone: str, method: str, tokens: int | None) -> Table:
    protocol = costs["protocol"]
    title = f"{method}" + (f", {tokens} tokens" if tokens is not None else "") + f" on {backbone}"
    caption = f"batch {protocol['batch_size']}, {protocol['prompt_tokens']} text tokens, {protocol['device']}"
    out = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    out.add_column("cost")
    for column in ("this method", "uncompressed", "relative"):
        out.add_column(column, justify="right")
    for row in rows(costs):
        out.add_row(*row)
    return out
