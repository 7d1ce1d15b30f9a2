"""How much of the speed-up that its FLOPs promise does each method realise up to the first token?

    python benchmarks/speed/promised.py --out benchmarks/results/speed-promised.json

Random weights in LLaVA-1.5 7B's shape at 1/8 of its width: 32 layers, 576 visual and 64 text tokens. Every method, at
16, 64 and 192 tokens or as near as it offers, takes turns with the uncompressed model under the engine (`none`) and
with the model as transformers has it (`plain`); times are ratios to `plain` of the same round, medians with
quartiles. On a CPU it is the time of the process on one thread, on a GPU the wall clock. The promise is the quotient
of FLOPs, those of tower, projector and the method's own work among them. `own` is the method's own work as a share of
the plain prefill.

`--batch 4` and, for 2,880 visual tokens, `--backbone llava_next_vicuna_7b --image-size 672` measure other shapes;
`--width 1 --device cuda --dtype bfloat16` is the real one. About 20 minutes on one core; `--rounds`, `--methods` and
`--tokens` shorten it.
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
from vtc.errors import UserError
from vtc.interface import Compressor, flops
from vtc.methods import build, make
from vtc.profiling import latency, parts
from vtc.profiling.run import count_passes
from vtc.registry import methods

TEXT, SEED = 64, 0


def nearest(name: str, tokens: int, backbone: Backbone) -> int | None:
    """The number that the method offers next to `tokens`; None for `none`."""
    if name == "none":
        return None
    return min(make(name, None, backbone.shape).offers(), key=lambda n: abs(n - tokens))


def prefill(backbone: Backbone, inputs: Any, method: Compressor | None) -> Callable[[], None]:
    """A pass over the prompt, under `method`; None: as transformers has it."""

    def run() -> None:
        with torch.inference_mode():
            if method is None:
                backbone.model(**inputs, use_cache=True, logits_to_keep=1)
                return
            with compressing(backbone, method):
                backbone.model(**inputs, use_cache=True, logits_to_keep=1)

    return run


def work(backbone: Backbone, method: Compressor, inputs: Any) -> float:
    """FLOPs up to the first token."""
    ran = count_passes(backbone, method, inputs)
    decoder = flops.total(backbone.shape, ran.prefill) + flops.head(backbone.shape)
    return decoder + ran.method_flops + ran.vision_flops


def quartiles(values: list[float]) -> list[float]:
    return [round(v, 4) for v in statistics.quantiles(values, n=4)]


def measure(load: Callable[[], Backbone], name: str, tokens: int, batch: int, rounds: int) -> dict[str, Any]:
    """One method at one budget, in turns with the uncompressed model."""
    backbone = load()
    inputs, one = latency.example(backbone, batch, TEXT), latency.example(backbone, 1, TEXT)
    torch.manual_seed(SEED)
    method = build(name, nearest(name, tokens, backbone), backbone.shape).to(backbone.device, backbone.dtype).eval()
    promised = work(backbone, build("none", None, backbone.shape), one) / work(backbone, method, one)
    on_cpu = backbone.device.type == "cpu"

    def clock() -> float:
        latency.synchronise(backbone.device)
        return time.process_time() if on_cpu else time.perf_counter()

    def seconds(run: Callable[[], None]) -> float:
        start = clock()
        run()
        return clock() - start

    plain, compressed = prefill(backbone, inputs, None), prefill(backbone, inputs, method)
    method.attach(backbone)
    plain(), compressed()
    gains, own = [], []
    for turn in range(rounds):
        runs = [plain, compressed] if turn % 2 == 0 else [compressed, plain]
        spent = {run: seconds(run) for run in runs}
        gains.append(spent[plain] / spent[compressed])
        with parts.metering(backbone, method, clock, decoder=False) as regions:
            compressed()
        own.append(regions[parts.METHOD] / spent[plain])
    return {
        "method": name,
        "tokens": method.tokens,
        "promised": round(promised, 4),
        "measured": quartiles(gains),
        "realised": round(statistics.median(gains) / promised, 4),
        "own": quartiles(own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbone", default="llava15_7b")
    parser.add_argument("--image-size", default=None, help="of a family of dynamic resolution")
    parser.add_argument("--width", type=int, default=8, help="what the widths are divided by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--methods", nargs="*", default=[], help="default: every registered one")
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64, 192])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    words = ["action=profile", f"backbone={options.backbone}", "weights=random", f"profile.width={options.width}"]
    words += [f"device={options.device}", f"dtype={options.dtype}"]
    words += [f"backbone.image_size={options.image_size}"] if options.image_size else []
    job, began = parse(words), time.perf_counter()
    held: list[Backbone] = []

    def load(fresh: bool = False) -> Backbone:
        if fresh:
            held.clear()
        if not held:
            held.append(job.load()[0])
        return held[0]

    rows: list[dict[str, Any]] = []
    for name in options.methods or methods.names():
        for tokens in [0] if name == "none" else options.tokens:
            try:
                row = measure(load, name, tokens, options.batch, options.rounds)
            except UserError as error:  # adapters of another method are in the way: once more on a fresh model
                if "adapters" not in str(error):
                    row = {"method": name, "tokens": tokens, "refused": str(error)}
                else:
                    load(fresh=True)
                    row = measure(load, name, tokens, options.batch, options.rounds)
            print(json.dumps(row), flush=True)
            rows.append(row)
    result = {
        "command": " ".join(["python", "benchmarks/speed/promised.py", *sys.argv[1:]]),
        "seconds": round(time.perf_counter() - began),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": options.batch,
        "rounds": options.rounds,
        "visual_tokens": load().shape.visual_tokens,
        "text_tokens": TEXT,
        "rows": rows,
    }
    if options.out:
        results.write_json(options.out, result)


if __name__ == "__main__":
    main()
