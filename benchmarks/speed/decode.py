"""How much faster is a compiled decoding step than one of `generate()`, at the same tokens?

    python benchmarks/speed/decode.py --out benchmarks/results/speed/decode.json
    python benchmarks/speed/decode.py --backbone llava15_7b --width 8 --rows 4 --methods none divprune:192 divprune:16

Pocket with its own weights, 16 rows, 128 new tokens, uncompressed and under methods that leave the cache shorter; or
any choice's shape with random weights. `generate()` uncompressed, `generate()` under the method and the compiled step
take turns; a step is the difference between 128 new tokens and the first two, which all make in the same way, divided
by 126. Ratios are of the same round: `speedup` to `generate()` uncompressed, `compiling` to `generate()` under the same
method. `limit` is what moving weights and cache once takes at this machine's bandwidth, as a share of the compiled step
(1 is as fast as can be); `products` is the same share of the products with all weights alone, as torch multiplies that
many rows, which take turns with the rest. `first_call_s` is the first answer, with all that is compiled for it: nothing
is taken from an earlier process.

On a CPU it is the time of the process on one thread, on a GPU the wall clock. About 3 minutes for pocket on one core,
most of it compiling.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import torch
from turns import SEED, TEXT, Session, arguments, quartiles

from vtc.engine import compressing
from vtc.interface import Compressor
from vtc.methods import build
from vtc.profiling import latency, machine
from vtc.profiling.limits import work_of
from vtc.profiling.parts import DECODE

FIRST = 2
PASSES = 8  # over all weights, for the time of the products alone


def measure(session: Session, method: Compressor, bandwidth: float, rows: int, count: int) -> dict[str, Any]:
    """One method: the same tokens, and how long a step takes in each way."""
    backbone = session.load()
    inputs, none = latency.example(backbone, rows, TEXT), build("none", None, backbone.shape)

    def answer(under: Compressor, new_tokens: int, compiled: bool) -> tuple[torch.Tensor, str | None]:
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode(), compressing(backbone, under, compiled) as engine:
            return backbone.model.generate(**inputs, **options), engine.decoding

    began = time.perf_counter()
    tokens, how = answer(method, count, True)
    compiling = time.perf_counter() - began
    same = bool(torch.equal(tokens, answer(method, count, False)[0]))
    runs = {
        "plain, first": lambda: answer(none, FIRST, False),
        "plain": lambda: answer(none, count, False),
        "first": lambda: answer(method, FIRST, False),
        "generate": lambda: answer(method, count, False),
        "compiled": lambda: answer(method, count, True),
    }
    if method.name == "none":
        runs = {name: runs[name] for name in ("first", "generate", "compiled")}
    weights = [m.weight for m in [*backbone.decoder.modules(), backbone.model.get_output_embeddings()]
               if isinstance(m, torch.nn.Linear)]  # fmt: skip
    inputs_of = {width: torch.randn(rows, width).to(weights[0]) for width in {w.shape[1] for w in weights}}

    def multiply() -> None:
        with torch.inference_mode():
            for weight in weights * PASSES:
                torch.nn.functional.linear(inputs_of[weight.shape[1]], weight)

    runs["products"] = multiply
    gains, compiled_gains, steps, products = [], [], [], []
    for turn in session.turns(runs, session.options.rounds):
        eager, fast = turn["generate"] - turn["first"], turn["compiled"] - turn["first"]
        plain = turn["plain"] - turn["plain, first"] if "plain" in turn else eager
        gains.append(plain / fast)
        compiled_gains.append(eager / fast)
        steps.append(fast / (count - FIRST))
        products.append(turn["products"] / PASSES)
    work = work_of(backbone, method, latency.example(backbone, 1, TEXT), inputs)[DECODE]
    return {
        "decoding": how,
        "same_tokens": same,
        "speedup": quartiles(gains, 3),
        "compiling": quartiles(compiled_gains, 3),
        "step_ms": quartiles([1e3 * step for step in steps], 3),
        "limit": round(work.bytes / bandwidth / statistics.median(steps), 3),
        "products": round(sum(w.nbytes for w in weights) / bandwidth / statistics.median(products), 3),
        "bytes": work.bytes,
        "bandwidth": round(bandwidth),
        "first_call_s": round(compiling, 1),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=7, backbone="pocket", width=0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--methods", nargs="*", default=["none", "divprune:16", "fastv:16"], help="name or name:tokens")
    options = parser.parse_args()
    session = Session(options, ("method", "rows", "new_tokens"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # the compiler's, which outlives a process otherwise
        decode(session, options)


def decode(session: Session, options: argparse.Namespace) -> None:
    cases = [{"method": each, "rows": options.rows, "new_tokens": options.new_tokens} for each in options.methods]
    for case in session.missing(cases):
        backbone = session.load()
        here = machine.measure(backbone.device, backbone.dtype, [machine.Product(1, 256, 256, 256)])
        name, _, tokens = case["method"].partition(":")
        torch.manual_seed(SEED)
        method = build(name, int(tokens) if tokens else None, backbone.shape).to(backbone.device, backbone.dtype).eval()
        method.attach(backbone)
        measured = measure(session, method, here.bandwidth, options.rows, options.new_tokens)
        session.add({**case, "tokens": method.tokens, "rounds": options.rounds, **measured})


if __name__ == "__main__":
    main()
