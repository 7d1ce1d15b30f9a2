"""How much sooner a stored image is asked than its picture, beside how many fewer FLOPs it takes.

    python benchmarks/store/ttft.py --shape pocket --out benchmarks/store/ttft.json
    python benchmarks/store/ttft.py --shape llava --out benchmarks/store/ttft.json      # LLaVA-1.5 7B, widths / 8
    python benchmarks/store/ttft.py --shape llava --text 64 --out benchmarks/store/ttft.json   # as on the speed page

Ways to the first new token take turns, each from the text of a question: with the open picture, which is prepared and
compressed; with the part of the prompt that is the image, in memory (`stored`); the same by a pass that was compiled
beforehand (`compiled`); and with a row of a LanceDB table, read and unpacked (`table`). The method is the same.
Times are the process's own, which other programs don't lengthen; a turn's ratio is that of neighbours in time, and the
median of these is reported. FLOPs are counted by torch while each way runs. `products` is the control: the matrix
products of the stored way's decoder by themselves. A short prompt makes thin ones, for which weights are read from
memory as they are for an image's; where these alone are behind the FLOPs, nothing around them can make up for it.
How thin they are is the question's doing: `--text` makes it longer, to the tokens of text that the prompts of the speed
page have beside the image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES = {
    "pocket": ["backbone=pocket"],
    "llava": ["action=profile", "backbone=llava15_7b", "weights=random", "profile.width=8", "dtype=float32"],
}
METHODS = (["method=fwd2bot", "tokens=16"], ["method=avgpool", "tokens=16"])
QUESTION = "is there a red circle left of a blue square in this picture ?"
NEEDED = 0.85


def pictures(backbone: Any, count: int) -> list[Any]:
    from PIL import Image

    side = backbone.shape.vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def text_tokens(backbone: Any, method: Any, question: str, image: Any) -> int:
    """Of a prompt with a compressed image, those that aren't the image's."""
    from vtc.engine.stored import Reading

    return Reading(backbone, method).begin([question], [image]).shape[1] - len(image.tokens)


def asked(backbone: Any, method: Any, image: Any, text: int | None) -> str:
    """The question, its words over and over until the prompt has `text` tokens beside the image's."""
    if text is None:
        return QUESTION
    words = itertools.cycle(QUESTION.split())
    question = next(words)
    while text_tokens(backbone, method, question, image) < text:
        question += " " + next(words)
    return question


def ways(
    backbone: Any, method: Any, batch: int, text: int | None, folder: str
) -> tuple[dict[str, Callable[[], Any]], int]:
    """picture, stored, compiled, table: each a call that ends with the first new token of every row; and `products`.
    Beside them how many tokens of text a prompt has."""
    from vtc.engine import answer, compress_images, compressing
    from vtc.engine.stored import Reading
    from vtc.profiling.latency import generate
    from vtc.store.packing import packed, unit, unpacked
    from vtc.store.table import Row, Table

    images = pictures(backbone, batch)
    compressed, vectors = compress_images(backbone, method, images)
    questions = [asked(backbone, method, compressed[0], text)] * batch
    table = Table.make(f"{folder}/{backbone.name}-{method.name}-{batch}", backbone.shape.width, "float16", {})
    rows = [
        Row(
            f"/{n}", f"{n:064x}", 1, datetime.now(timezone.utc), 1, 1, vector=v, thumbnail=b"",
            **packed(image, "float16"),
        )
        for n, (image, v) in enumerate(zip(compressed, unit(vectors), strict=True))
    ]  # fmt: skip
    table.put(rows)
    paths = [row.path for row in rows]

    def picture() -> None:
        prepared = backbone.inputs(questions, [[image] for image in images])
        with torch.inference_mode(), compressing(backbone, method):
            generate(backbone, prepared, 1)

    def read() -> None:
        kept = [unpacked(row, backbone.shape.width, backbone.position_axes) for row in table.of(paths)]
        answer(backbone, method, questions, kept, 1)

    def stored() -> None:
        answer(backbone, method, questions, compressed, 1)

    def compiled() -> None:
        answer(backbone, method, questions, compressed, 1, compiled=True)

    rows_of_prompts = Reading(backbone, method).begin(questions, compressed).shape[:2].numel()
    runs = {
        "picture": picture, "stored": stored, "compiled": compiled, "table": read,
        "products": products(backbone, method, rows_of_prompts),
    }  # fmt: skip
    return runs, text_tokens(backbone, method, questions[0], compressed[0])


def flops(run: Callable[[], Any]) -> float:
    from vtc.profiling.counter import flop_counter

    with flop_counter() as counter:
        run()
    return float(counter.get_total_flops())


def products(backbone: Any, method: Any, rows: int) -> Callable[[], Any]:
    """The decoder's linear layers under the method's adapter, one after the other over `rows` tokens, and nothing else:
    no attention, no norms, no adding up. Each reads its own weights, as in a pass."""
    own = [
        (module.weight, torch.randn(rows, module.in_features, dtype=module.weight.dtype))
        for name, module in backbone.decoder.layers.named_modules()
        if isinstance(module, torch.nn.Linear) and (".lora_" not in name or name.endswith(f".{method.adapter}"))
    ]

    def run() -> None:
        with torch.inference_mode():
            for weight, x in own:
                torch.nn.functional.linear(x, weight)

    return run


def measure(backbone: Any, method: Any, batch: int, text: int | None, turns: int, folder: str) -> dict[str, Any]:
    runs, tokens = ways(backbone, method, batch, text, folder)
    counted = {name: flops(runs[name]) for name in ("picture", "stored")}
    for run in runs.values():
        run()
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name in sorted(runs, reverse=bool(turn % 2)):
            began = time.process_time()
            runs[name]()
            spent[name].append(time.process_time() - began)
    ratio = counted["picture"] / counted["stored"]
    told: dict[str, Any] = {"batch": batch, "text": tokens, "turns": turns}
    told |= {"flops": counted, "flops_ratio": round(ratio, 3)}
    for name, times in spent.items():
        told[f"{name}_ms"] = round(1000 * statistics.median(times), 2)
    for name in ("stored", "compiled", "table", "products"):
        quarters = np.percentile(np.divide(spent["picture"], spent[name]), (25, 50, 75))
        told[f"{name}_times_ratio"] = round(float(quarters[1]), 3)
        told[f"{name}_times_ratio_quartiles"] = [round(float(quarters[0]), 3), round(float(quarters[2]), 3)]
        told[f"{name}_of_flops_ratio"] = round(float(quarters[1]) / ratio, 3)
    return told | {"enough": max(told["stored_of_flops_ratio"], told["compiled_of_flops_ratio"]) >= NEEDED}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="pocket")
    parser.add_argument("--methods", help="names of some, with a comma between them")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--text", type=int, help="tokens of a prompt beside the image's; else a short question")
    parser.add_argument("--turns", type=int, help="of batch 1; a third of it of batch 16")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from vtc.configuration import parse
    from vtc.evaluation.record import git_commit

    torch.manual_seed(0)
    turns = arguments.turns or (60 if arguments.shape == "pocket" else 9)
    rows: list[dict[str, Any]] = []
    longer = f" --text {arguments.text}" if arguments.text else ""
    made = {
        "command": f"python benchmarks/store/ttft.py --shape {arguments.shape}{longer}",
        "commit": git_commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for words in METHODS:
            if arguments.methods and words[0].removeprefix("method=") not in arguments.methods.split(","):
                continue
            backbone, method = parse([*SHAPES[arguments.shape], *words]).load()
            for batch in map(int, arguments.batches.split(",")):
                rounds = max(3, turns // (1 if batch == 1 else 3))
                told = measure(backbone, method, batch, arguments.text, rounds, folder)
                rows.append({"method": " ".join(words), **told, **made})
                print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        content = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
        measured = {_key(row) for row in rows}
        before = [row for row in content.get(arguments.shape, ()) if _key(row) not in measured]
        content[arguments.shape] = before + rows
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["batch"], row["text"]


if __name__ == "__main__":
    main()
