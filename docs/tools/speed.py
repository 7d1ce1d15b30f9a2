"""The parts of docs/speed.md and its plots, from benchmarks/results/speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc.report import tables

RESULTS = "benchmarks/results/speed"
IMAGES = "docs/images"
FULL = 576  # visual tokens of LLaVA-1.5
MISSING = "Not measured yet.\n"
SHARES = ("avgpool", "fastv", "victor", "llavolta", "visionzip", "divprune")
OWN = {0.02: ("fastv", "divprune", "visionzip", "dart"), 0.05: ("pyramiddrop", "sparsevlm", "cdpruner", "kmeans")}
FIRST_PASS = ("fwd2bot", "voco")  # whose own pass of the LLM over the image is their price
Rows = list[dict[str, Any]]


def stored(root: Path, name: str) -> dict[str, Any] | None:
    path = root / RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rows(root: Path, name: str) -> Rows:
    measured = stored(root, name)
    return [] if measured is None else measured["rows"]


def spread(quartiles: list[float], digits: int = 2) -> str:
    """`3.41 (3.30 to 3.52)`: the median, and the quartiles."""
    low, middle, high = quartiles
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def made_by(root: Path, *names: str) -> str:
    """The commands of these results, and what they ran on."""
    known = [m for m in (stored(root, name) for name in names) if m is not None]
    commands = " · ".join(f"`{m['command']}`" for m in known)
    about = known[0]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return f"{commands}: {about['device']}, {about['dtype']}, threads: {about['threads']}, {versions}."


# -- parts
def targets_part(root: Path) -> str:
    """What the speed of vtc is held to, and the figures."""
    promised = {
        (r["method"], r["asked"], r["batch"]): r for n in ("promised", "promised-batch-4") for r in rows(root, n)
    }
    if not promised:
        return MISSING
    cells: list[list[str]] = []

    def add(target: str, figure: str, reached: bool, whole: bool = True) -> None:
        verdict = "**not reached**" if not reached else "reached" if whole else "not all measured"
        cells.append([target, figure, verdict])

    for batch in (1, 4):
        for tokens, least in ((192, 0.9), (64, 0.9), (16, 0.85)):
            found = {m: promised[m, tokens, batch]["realised"] for m in SHARES if (m, tokens, batch) in promised}
            if found:
                figure = ", ".join(f"{m} {share:.2f}" for m, share in found.items())
                target = f"share of the promise realised ≥ {least}: {tokens} tokens, batch {batch}"
                add(target, figure, min(found.values()) >= least, whole=len(found) == len(SHARES))
            beside = {m: r for m in SHARES if "control" in (r := promised.get((m, tokens, batch), {}))}
            if beside:
                figure = ", ".join(f"{m} {r['of_control']:.2f}" for m, r in beside.items())
                target = f"… of what transformers itself gains: {tokens} tokens, batch {batch}"
                cells.append([target, figure, "control"])
        none = promised.get(("none", 16, batch))
        if none:
            times = [1 / v for v in reversed(none["measured"])]
            add(f"nothing dropped ≤ 1.02 × plain transformers, batch {batch}", spread(times, 3), times[1] <= 1.02)
    for most, names in OWN.items():
        found = {m: [r["own"][1] for k, r in promised.items() if k[0] == m and k[2] == 1] for m in names}
        shares = {m: max(own) for m, own in found.items() if own}
        figure = ", ".join(f"{m} {percent(share, 1)}" for m, share in shares.items())
        target = f"own work ≤ {percent(most)} of the uncompressed prefill, whichever of the budgets"
        add(target, figure, len(shares) == len(names) and max(shares.values()) <= most)
    slow = {
        f"{m} at {r['tokens'] or 0}: {r['measured'][1]:.2f}"
        for (m, asked, batch), r in promised.items()
        if batch == 1
        and asked <= 64
        and (r["tokens"] or 0) <= 64  # PPE by itself drops nothing
        and m not in (*FIRST_PASS, "none")
        and r["measured"][1] < 1
    }
    add("no method at ≤ 64 tokens is slower than none (but for those that read the image with the LLM first)",
        ", ".join(sorted(slow)) or "none is", not slow)  # fmt: skip
    decoding = {r["method"]: r for r in rows(root, "decode")}
    if plain := decoding.get("none"):
        figure = f"{spread(plain['speedup'])} ×, {'the same' if plain['same_tokens'] else 'other'} tokens"
        add("a compiled decoding step ≥ 2.5 × as fast as `generate()`: pocket, 16 rows, 128 tokens, uncompressed",
            figure, plain["speedup"][1] >= 2.5 and plain["same_tokens"])  # fmt: skip
    shape = rows(root, "decode-shape")
    for count in sorted({r["rows"] for r in shape}):
        shares = {r["method"]: r["limit"] for r in shape if r["rows"] == count}
        figure = ", ".join(f"{m} {share:.2f}" for m, share in shares.items())
        target = f"≥ 0.7 of the bandwidth limit at 1/8 width, {count} row{'' if count == 1 else 's'}"
        add(target, figure, min(shares.values()) >= 0.7)
        alone = [r["products"] for r in shape if r["rows"] == count]
        cells.append(["… the products with all weights alone, as torch multiplies", f"{max(alone):.2f}", "control"])
    for name, most, target in (
        ("sweep", 0.4, "a sweep of 12 points ≤ 40 % of the time of 12 commands"),
        ("evaluation", 0.5, "pocket, a method and its baseline, ≤ half of the time of the code before this page"),
    ):
        if measured := stored(root, name):
            low, high = (percent(share) for share in measured["spread"]["wall"])
            figure = f"{percent(measured['ratio']['wall'])} ({low} to {high})"
            add(target, figure, measured["ratio"]["wall"] <= most)
    return tables.markdown(["target", "figure", ""], cells) + "\n"


def promised_part(root: Path) -> str:
    """Every method: promise, measurement, share, own work."""
    found = rows(root, "promised")
    if not found:
        return MISSING
    cells = [
        [
            r["method"],
            "all" if r["method"] == "none" else str(r["tokens"] or 0),
            f"{r['promised']:.2f}",
            spread(r["measured"]),
            percent(r["realised"]),
            f"{r['control'][1]:.2f}" if "control" in r else "–",
            percent(r["of_control"]) if "control" in r else "–",
            percent(r["own"][1], 1),
        ]
        for r in sorted(found, key=lambda r: (r["method"], r["asked"]))
    ]
    header = ["method", "tokens", "promised", "measured", "realised", "control", "of it", "own work"]
    drawn = "![Measured against promised speed-up, every method](images/speed-promised.png)"
    return f"{drawn}\n\n{tables.markdown(header, cells)}\n\n{made_by(root, 'promised')}\n"


def larger_part(root: Path) -> str:
    """Other batches, and an image of 2,880 tokens."""
    names = ("promised-batch-4", "promised-batches", "promised-2880")
    cells = [
        [
            "2,880" if name == "promised-2880" else "576",
            str(r["batch"]),
            r["method"],
            str(r["tokens"]),
            f"{r['promised']:.2f}",
            spread(r["measured"]),
            percent(r["realised"]),
        ]
        for name in names
        for r in rows(root, name)
        if r["method"] != "none"
    ]
    if not cells:
        return MISSING
    header = ["visual tokens", "batch", "method", "left", "promised", "measured", "realised"]
    return tables.markdown(header, cells) + f"\n\n{made_by(root, *names)}\n"


def published_part(root: Path) -> str:
    """FastV here and as published."""
    found = rows(root, "published")
    if not found:
        return MISSING
    cells = [
        [str(r["asked"]), str(r["batch"]), r["way"], spread(r["speedup"]), f"{r['vtc_is_faster'][1]:.2f}",
         f"{r['difference']:.1g}"]
        for r in found
    ]  # fmt: skip
    header = ["tokens", "batch", "way", "speed-up", "vtc is faster by", "difference of logits"]
    return tables.markdown(header, cells) + f"\n\n{made_by(root, 'published')}\n"


def decoding_part(root: Path) -> str:
    """Steps in each way, by what is cached."""
    names = ("decode", "decode-shape")
    cells = [
        [
            str(stored(root, name)["backbone"]),  # type: ignore[index]
            str(r["rows"]),
            r["method"],
            f"{r['step_ms'][1]:.1f}",
            spread(r["speedup"]),
            f"{r['compiling'][1]:.2f}",
            "yes" if r["same_tokens"] else "no",
            f"{r['limit']:.2f}",
            f"{r['first_call_s']:.0f} s",
        ]
        for name in names
        for r in rows(root, name)
    ]
    if not cells:
        return MISSING
    header = ["backbone", "rows", "method:tokens", "step, ms", "against `generate()` uncompressed",
              "… under the same method", "same tokens", "of the limit", "first call"]  # fmt: skip
    drawn = (
        "![Milliseconds a step by what is cached](images/speed-decoding.png)\n\n"
        if len(rows(root, names[1])) > 1
        else ""
    )
    return drawn + tables.markdown(header, cells) + f"\n\n{made_by(root, *names)}\n"


def by_part_part(root: Path) -> str:
    """Where the time goes."""
    found = rows(root, "time-by-part")
    if not found:
        return MISSING
    order = ("tower", "projector", "method", "prefill", "decode")
    shown = [("none", found[-1]["parts_uncompressed"]), *((f"{r['method']}, {r['asked']}", r["parts"]) for r in found)]

    def cell(part: dict[str, Any]) -> str:
        return f"{part['ms']:.1f}" + (f" ({percent(part['efficiency'])})" if part["efficiency"] else "")

    cells = [[label, *(cell(parts[name]) for name in order)] for label, parts in shown]
    header = ["", "tower", "projector", "own work", "rest of the prefill", "a decoding step"]
    return tables.markdown(header, cells) + f"\n\nMilliseconds, and of the limit. {made_by(root, 'time-by-part')}\n"


PARTS: dict[str, Callable[[Path], str]] = {
    "speed_targets": targets_part,
    "speed_promised": promised_part,
    "speed_larger": larger_part,
    "speed_published": published_part,
    "speed_decoding": decoding_part,
    "speed_by_part": by_part_part,
}


# -- the table of results
def at_shape(root: Path, method: str, share: float) -> tuple[str, str]:
    """At 7B's shape, where `share` of the visual tokens is left: the speed-up to the first token, and the method's own
    work as a share of the uncompressed prefill; – where they weren't measured."""
    fitting = [
        r
        for r in rows(root, "promised")
        if r["method"] == method and r["tokens"] and abs(r["tokens"] / FULL - share) < 1e-3
    ]
    return (f"{fitting[0]['measured'][1]:.2f}×", percent(fitting[0]["own"][1], 1)) if fitting else ("–", "–")


# -- plots
def plot(root: Path) -> None:
    """docs/images/speed-promised.png and speed-decoding.png, of what has been measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if found := [r for r in rows(root, "promised") if r["method"] != "none"]:
        figure, axes = plt.subplots(figsize=(7, 5.5))
        limit = 1.05 * max(max(r["promised"], r["measured"][2]) for r in found)
        axes.plot([0, limit], [0, limit], color="0.6", linewidth=1, label="all of the promise")
        axes.plot([0, limit], [0, 0.9 * limit], color="0.6", linewidth=1, linestyle=":", label="0.9 of it")
        axes.axhline(1, color="0.85", linewidth=1)
        for tokens, marker in ((16, "o"), (64, "s"), (192, "^")):
            own = [r for r in found if r["asked"] == tokens]
            x, y = [r["promised"] for r in own], [r["measured"][1] for r in own]
            error = [
                [r["measured"][1] - r["measured"][0] for r in own],
                [r["measured"][2] - r["measured"][1] for r in own],
            ]
            axes.errorbar(x, y, yerror(error), fmt=marker, markersize=5, linewidth=0.8, label=f"{tokens} tokens")
        named: list[tuple[float, float]] = []  # a name stands where there is room for it, those of the lowest first
        for r in sorted(found, key=lambda r: r["realised"]):
            x, y = r["promised"], r["measured"][1]
            if r["realised"] < 0.85 and all(abs(x - u) > 0.16 * limit or abs(y - v) > 0.03 * limit for u, v in named):
                axes.annotate(r["method"], (x, y), fontsize=7, xytext=(6, -9), textcoords="offset points")
                named.append((x, y))
        axes.set(xlabel="speed-up that the FLOPs promise", ylabel="speed-up measured, quartiles", xlim=(0, limit),
                 ylim=(0, limit))  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        figure.savefig(root / IMAGES / "speed-promised.png", dpi=130)
        plt.close(figure)
    if len(found := rows(root, "decode-shape")) > 1:
        figure, axes = plt.subplots(figsize=(7, 1 + 0.5 * len(found)))
        names = [f"{r['method']}, {r['rows']} row{'' if r['rows'] == 1 else 's'}" for r in found]
        steps = [r["step_ms"][1] for r in found]
        generate = [r["step_ms"][1] * r["compiling"][1] for r in found]
        place = range(len(found))
        axes.barh([p + 0.2 for p in place], generate, 0.38, label="generate()", color="0.75")
        axes.barh([p - 0.2 for p in place], steps, 0.38, label="compiled step")
        axes.plot([s * r["limit"] for s, r in zip(steps, found, strict=True)], [p - 0.2 for p in place], "k|",
                  markersize=12, label="limit of the bandwidth")  # fmt: skip
        axes.set_yticks(list(place), names)
        axes.invert_yaxis()
        axes.set(xlabel="ms a step")
        axes.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        figure.savefig(root / IMAGES / "speed-decoding.png", dpi=130)
        plt.close(figure)


def yerror(error: list[list[float]]) -> list[list[float]]:
    """Rounding must not make a length negative."""
    return [[max(0.0, value) for value in side] for side in error]
