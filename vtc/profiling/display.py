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


def rows(costs: dict[str, Any], stored: float | None = None) -> list[tuple[str, str, str]]:
    """(what, this method, uncompressed) of an efficiency section.

    Args:
        stored: bytes in 16 bit of an image's tokens, uncompressed.
    """
    vision, vision_plain = costs["vision_flops"], costs["vision_flops_uncompressed"]
    answer, plain = costs["answer_flops"], costs["prefill_flops_uncompressed"]
    ttft, decoding = costs["ttft_ms"], costs["decode_ms_per_token"]
    out = [
        ("vision FLOPs, tower and projector", f"{number(vision)} ({vision / vision_plain:.2f}×)", number(vision_plain)),
        ("prefill FLOPs, decoder and method", f"{number(costs['prefill_flops'])} ({costs['flops_ratio']:.2f}×)",
         number(plain)),
        ("… of an image compressed beforehand", f"{number(answer)} ({answer / plain:.2f}×)", number(plain)),
    ]  # fmt: skip
    if ttft is not None:
        out += [
            ("TTFT, one row", f"{ttft['median']:.1f} ms", f"{costs['ttft_ms_uncompressed']['median']:.1f} ms"),
            ("… of the method itself", f"{costs['method_ms']:.1f} ms ({100 * costs['method_share']:.0f} %)", "–"),
        ]
    if decoding is not None:
        plain_ms = f"{costs['decode_ms_per_token_uncompressed']:.1f} ms"
        out.append((f"decoding, a step of {costs['protocol']['batch_size']} rows", f"{decoding:.1f} ms", plain_ms))
    if answer > 0.995 * costs["prefill_flops"]:  # others compress an image anew for whatever is asked of it
        del out[2]
    for n, value in costs["throughput"].items():
        gain, other = costs["speedup_by_tokens"][n], costs["throughput_uncompressed"][n]
        out.append(
            (f"throughput, {n} new tokens", f"{number(value)} tokens/s ({gain:.2f}×)", f"{number(other)} tokens/s")
        )
    for what, key in (("KV cache after the prefill", "kv_cache_bytes"), ("peak GPU memory", "peak_memory_bytes")):
        if costs[key] is not None:
            out.append((what, number(costs[key], "B"), number(costs[f"{key}_uncompressed"], "B")))
    out.append(("stored per image, 16 bit", number(costs["storage_bytes_per_image"], "B"), number(stored, "B")))
    out.append(("extra parameters", number(costs["extra_parameters"]), "0"))
    return out


def table(title: str, cells: list[tuple[str, str, str]], protocol: dict[str, Any]) -> Table:
    """Rows of costs under their title, with how they were measured."""
    caption = f"{protocol['prompt_tokens']} text tokens a prompt, {protocol['device']}"
    if protocol["repeats"]:
        caption = f"batch {protocol['batch_size']}, {caption}; decoding: {protocol.get('decoding', 'generate')}"
    out = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    out.add_column("", no_wrap=True)
    out.add_column("this method", justify="right", no_wrap=True)
    out.add_column("uncompressed", justify="right", no_wrap=True)
    for row in cells:
        out.add_row(*row)
    return out


def limits_table(measured: dict[str, Any], protocol: dict[str, Any]) -> Table:
    """Parts beside their limits (`vtc.profiling.limits.limits`), and under them what the method gains."""
    here, gain = measured["machine"], measured["speedup"]
    caption = (
        f"limit: the longer of arithmetic (up to {number(here['best_flops_per_second'], 'FLOP/s')}) and memory "
        f"({number(here['bandwidth_bytes_per_second'], 'B/s')}); an operation starts in {here['launch_us']:.1f} µs.\n"
        f"Up to the first token: {gain['promised']:.2f}× promised by FLOPs, {gain['measured']:.2f}× measured, "
        f"{100 * gain['realised']:.0f} % of it realised"
    )
    out = Table(title="parts and their limits", caption=caption, title_justify="left", caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in ("ms", "limit", "efficiency", "bound by", "uncompressed, ms"):
        out.add_column(name, justify="right", no_wrap=True)
    words = {"method": "the method's own work", "decode": f"a decoding step, {protocol['batch_size']} rows"}
    for name, part in measured["parts"].items():
        efficiency = "–" if part["efficiency"] is None else f"{100 * part['efficiency']:.0f} %"
        other = measured["parts_uncompressed"][name]["ms"]
        cells = (f"{part['ms']:.2f}", f"{part['limit_ms']:.2f}", efficiency, part["bound"], f"{other:.2f}")
        out.add_row(words.get(name, name), *cells)
    return out
