"""What of docs/store.md is made of `benchmarks/store`: a function a part, for `readme.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtc.store import table

FOLDER = "benchmarks/store"
FAR = 10**9


def _read(root: Path, name: str) -> Any:
    return json.loads((root / FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _where_measured(name: str, part: Callable[[Path], str]) -> Callable[[Path], str]:
    def text(root: Path) -> str:
        if not (root / FOLDER / f"{name}.json").is_file():
            return f"\nNot measured yet: `python {FOLDER}/{name}.py`.\n\n"
        return part(root)

    return text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def scale_part(root: Path) -> str:
    """Sizes from 10⁴ rows on, and what the last two of a width extrapolate to."""
    content = _read(root, "scale")
    rows, far = [], []
    for size in content["sizes"]:
        rows.append(
            [
                str(size["width"]), f"{size['rows']:,}", "IVF-RaBitQ" if size["indexed"] else "none",
                _time(size["seconds_to_build"]) if size["indexed"] else "–", f"{size['p50_ms']:.1f}",
                f"{size['p95_ms']:.1f}", f"{size['first_p95_ms']:.1f}",
                f"{size['processor_p95_ms']:.1f}", f"{size['recall_at_10']:.3f}", _bytes(size["memory_bytes"]),
                _bytes(size["bytes"]), f"{size['bytes'] / size['bytes_of_embeddings']:.2f}",
            ]
        )  # fmt: skip
    for width in dict.fromkeys(size["width"] for size in content["sizes"]):
        own = [size for size in content["sizes"] if size["width"] == width and size["indexed"]]
        if len(own) < 2:
            continue
        before, last = own[-2:]
        steps, further = math.log(last["rows"] / before["rows"]), math.log(FAR / last["rows"])

        def at_far(key: str, last: Any = last, before: Any = before, steps: Any = steps, further: Any = further) -> Any:
            slope = math.log(last[key] / before[key]) / steps
            return last[key] * math.exp(slope * further), slope

        build, power = at_far("seconds_to_build")
        found, slope = at_far("processor_p50_ms")
        far.append(
            f"Width {width}, by the slope between {before['rows']:,} and {last['rows']:,} rows: at 10⁹ rows "
            f"{_bytes(FAR * last['bytes'] / last['rows'])} on the disk, an index in {_time(build)} "
            f"(rows to the power of {power:.2f}), a search in {_time(found / 1000)} of the processor's time "
            f"(power {slope:.2f}), if both went on so. But a search reads {_bytes(_read_codes(FAR, width))} of the "
            f"index's codes there, {_bytes(_read_codes(last['rows'], width))} of {last['rows']:,} rows: memory's "
            "bandwidth would decide.\n"
        )
    header = [
        "width",
        "rows",
        "index",
        "made in",
        "p50, ms",
        "p95, ms",
        "p95 of the first, ms",
        "p95, processor, ms",
        "recall@10",
        "memory",
        "disk",
        "of embeddings",
    ]
    return "\n" + _table(header, rows) + "\n" + "\n".join(far) + ("\n" if far else "")


def _read_codes(rows: int, width: int) -> float:
    """Bytes of the codes, one bit a number, in the lists that a search reads."""
    return table.probed(rows, width) / table.lists(rows) * rows * width / 8


def kills_part(root: Path) -> str:
    content = _read(root, "kills")
    running = [kill for kill in content["kills"] if kill["was_running"]]
    there = ", ".join(str(kill["images"]) for kill in content["kills"])
    once, same = content["each_once_after_kills"], all(content["same_after_kills"].values())
    two = content["each_once_of_two_writers"] and content["two_writers_ended_well"]
    alike = all(content["same_of_two_writers"].values())
    return (
        f"\n{content['images']:,} pictures and {content['broken']} broken files, `{content['method']}` on "
        f"{content['model']}: {len(running)} of {len(content['kills'])} `kill -9` met a running writer, with {there} "
        "images in the store by then. Indexed to the end, each picture is there exactly once: "
        f"**{_yes(once)}**; paths, hashes, embeddings and searches are those of an undisturbed store: "
        f"**{_yes(same)}**. Two processes at once: each picture exactly once: **{_yes(two)}**; the same store: "
        f"**{_yes(alike)}**.\n\n"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def ttft_part(root: Path) -> str:
    content, rows = _read(root, "ttft"), []
    for shape, name in (("pocket", "pocket"), ("llava", "LLaVA-1.5 7B, widths / 8")):
        for row in content.get(shape, ()):
            ratios = []
            for way in ("stored", "compiled"):
                low, high = row[f"{way}_times_ratio_quartiles"]
                ratios.append(f"{row[f'{way}_times_ratio']:.2f} ({low:.2f} to {high:.2f})")
            rows.append(
                [
                    name, f"`{row['method']}`", str(row["batch"]), str(row["text"]), f"{row['picture_ms']:.1f}",
                    f"{row['stored_ms']:.1f}", f"{row['compiled_ms']:.1f}", f"{row['table_ms']:.1f}",
                    f"{row['flops_ratio']:.2f}", *ratios, f"{row['stored_of_flops_ratio']:.2f}",
                    f"{row['compiled_of_flops_ratio']:.2f}", f"{row['products_of_flops_ratio']:.2f}",
                ]
            )  # fmt: skip
    header = [
        "model", "method", "batch", "tokens of text", "from the picture, ms", "stored, ms", "compiled, ms",
        "read from the table, ms", "FLOPs ratio", "time ratio (quartiles)", "compiled",
        "of the FLOPs ratio", "compiled", "products alone",
    ]  # fmt: skip
    return "\n" + _table(header, rows) + "\n"


def bytes_part(root: Path) -> str:
    rows = [
        [
            f"`{row['method']}`", row["precision"], f"{row['of_tokens']:,}", f"{row['expected']:,.0f}",
            f"{row['bytes_an_image']:,.0f}", f"{row['ratio']:.3f}", f"{row['thumbnail']:,.0f}",
        ]
        for row in _read(root, "bytes")["rows"]
    ]  # fmt: skip
    header = ["method", "precision", "tokens", "with what is said", "on the disk", "ratio", "thumbnail, beside it"]
    return "\n" + _table(header, rows) + "\n"


def precision_part(root: Path) -> str:
    content, rows = _read(root, "precision"), []
    for row in content["rows"]:
        rows.append(
            [
                str(row["tokens"]), row["task"].removeprefix("pocket2_"), f"{row['picture']:.3f}",
                f"{row['float16']:.3f}", f"{row['int8']:.3f}", f"{row['loss']:+.4f} ± {1.96 * row['loss_stderr']:.4f}",
                f"{100 * row['same_answers_as_picture']:.1f} %", f"{100 * row['same_answers']:.1f} %",
            ]
        )  # fmt: skip
    means = ", ".join(f"{loss:+.4f} at {tokens} tokens" for tokens, loss in content["mean_loss"].items())
    header = ["tokens", "task", "picture", "float16", "int8", "loss of int8 (95 %)",
              "answers of float16 as from the picture", "of int8 as of float16"]  # fmt: skip
    return "\n" + _table(header, rows) + f"\nMean loss of the seven tasks: {means}.\n\n"


def retrieval_part(root: Path) -> str:
    content = _read(root, "retrieval")
    values: dict[str, dict[str, str]] = {}
    for row in content["rows"]:
        half = f" ± {1.96 * row['stderr_by_group']:.3f}" if "stderr_by_group" in row else ""
        values.setdefault(row["run"], {})[row["task"]] = f"{row['value']:.3f}{half}"
    rows = [[run, own["retrieval"], own["hard_captions"]] for run, own in values.items()]
    orders = [
        [
            f"{row['better']} > {row['worse']}", row["task"], row["paper"],
            f"{row['difference']:+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})", row["here"],
        ]
        for row in content["orders"]
    ]  # fmt: skip
    return (
        "\n" + _table(["", "retrieval, R@1", "hard captions"], rows) + "\n"
        + _table(["order", "task", "paper", "difference here (95 %)", ""], orders) + "\n"
    )  # fmt: skip


PARTS = {
    f"store_{name}": _where_measured(name, part)
    for name, part in {
        "scale": scale_part,
        "kills": kills_part,
        "ttft": ttft_part,
        "bytes": bytes_part,
        "precision": precision_part,
        "retrieval": retrieval_part,
    }.items()
}
