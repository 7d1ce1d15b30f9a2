"""How much faster is a compiled decoding step than one of `generate()`, at the same tokens?

    python benchmarks/speed/decode.py --out benchmarks/results/speed-decode.json
    python benchmarks/speed/decode.py --backbone llava15_7b --width 8 --rows 1 --out benchmarks/results/decode-wide.json

Pocket with its own weights, 16 rows, 128 new tokens, uncompressed and under methods that leave the cache shorter; or
any choice's shape with random weights. `generate()` and the compiled step take turns; a step is the difference
between 128 new tokens and the first two, which both make in the same way, divided by 126. Ratios are of the same
round. `limit` is what moving weights and cache once takes at this machine's bandwidth, as a share of the compiled
step (1 is as fast as can be).

On a CPU it is the time of the process on one thread, on a GPU the wall clock. About 5 minutes for pocket on one core,
most of it compiling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vtc import results
from vtc.backbones.base import Backbone
from vtc.configuration import parse
from vtc.engine import compressing
from vtc.interface import Compressor
from vtc.methods import build
from vtc.profiling import latency, machine
from vtc.profiling.limits import work_of
from vtc.profiling.parts import DECODE

TEXT, FIRST, SEED = 64, 2, 0


def measure(backbone: Backbone, method: Compressor, rows: int, count: int, rounds: int) -> dict[str, Any]:
    """One method: the same tokens, and how long a step takes in both ways."""
    inputs = latency.example(backbone, rows, TEXT)
    on_cpu, device = backbone.device.type == "cpu", backbone.device

    def answer(new_tokens: int, compiled: bool) -> tuple[torch.Tensor, str | None]:
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode(), compressing(backbone, method, compiled) as engine:
            return backbone.model.generate(**inputs, **options), engine.decoding

    def seconds(run: Callable[[], Any]) -> float:
        latency.synchronise(device)
        start = time.process_time() if on_cpu else time.perf_counter()
        run()
        latency.synchronise(device)
        return (time.process_time() if on_cpu else time.perf_counter()) - start

    began = time.perf_counter()
    tokens, how = answer(count, True)
    compiling = time.perf_counter() - began
    same = bool(torch.equal(tokens, answer(count, False)[0]))
    ratios, steps = [], []
    for _ in range(rounds):
        first = seconds(lambda: answer(FIRST, False))
        plain = seconds(lambda: answer(count, False)) - first
        fast = seconds(lambda: answer(count, True)) - first
        ratios.append(plain / fast)
        steps.append(fast / (count - FIRST))
    here = machine.measure(device, backbone.dtype, [machine.Product(1, 256, 256, 256)])
    work = work_of(backbone, method, latency.example(backbone, 1, TEXT), inputs)[DECODE]
    return {
        "method": method.name,
        "tokens": method.tokens,
        "decoding": how,
        "same_tokens": same,
        "speedup": [round(v, 3) for v in statistics.quantiles(ratios, n=4)],
        "step_ms": round(1e3 * statistics.median(steps), 3),
        "limit": round(work.bytes / here.bandwidth / statistics.median(steps), 3),
        "first_call_s": round(compiling, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--width", type=int, default=0, help="0: stored weights; else random ones at 1/width")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--methods", nargs="*", default=["none", "divprune:16", "fastv:16"], help="name or name:tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    words = ["action=profile", f"backbone={options.backbone}", f"device={options.device}", f"dtype={options.dtype}"]
    words += ["weights=random", f"profile.width={options.width}"] if options.width else []
    backbone = parse(words).load()[0]
    rows = []
    for each in options.methods:
        name, _, tokens = each.partition(":")
        torch.manual_seed(SEED)
        method = build(name, int(tokens) if tokens else None, backbone.shape).to(backbone.device, backbone.dtype).eval()
        method.attach(backbone)
        rows.append(measure(backbone, method, options.rows, options.new_tokens, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "command": " ".join(["python", "benchmarks/speed/decode.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "rows": rows,
    }
    if options.out:
        results.write_json(options.out, result)


if __name__ == "__main__":
    main()
