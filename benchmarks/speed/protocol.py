"""Victor's protocol: new tokens a second of batches of 16, prompts of 64 text tokens, 2 and 128 new tokens.

    python benchmarks/speed/protocol.py --width 1 --device cuda --dtype bfloat16 --out protocol.json

What `action=profile` measures (`vtc.profiling.efficiency`), for some methods at equal tokens; `speedup` is the quotient
of the throughputs at 128 new tokens. With `--compiled` answers are decoded by the compiled step, on both sides.
"""

from __future__ import annotations

from promised import built
from turns import TEXT, Session, arguments

from vtc.profiling import efficiency
from vtc.settings import ProfileSettings

KEPT = ("speedup", "speedup_by_tokens", "ttft_speedup", "throughput", "throughput_uncompressed", "flops_ratio",
        "peak_memory_bytes", "peak_memory_bytes_uncompressed", "protocol")  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--methods", nargs="*", default=["victor", "fastv", "avgpool", "divprune", "visionzip"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[8, 16, 64])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, nargs=2, default=[2, 128])
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    session = Session(options, ("method", "asked", "compiled"), batch=options.batch)
    protocol = ProfileSettings(
        batch_size=options.batch,
        prompt_tokens=TEXT,
        new_tokens=tuple(options.new_tokens),
        repeats=options.rounds,
        first_token_repeats=options.rounds,
        compiled=options.compiled,
    )
    cases = [{"method": m, "asked": t, "compiled": options.compiled} for m in options.methods for t in options.tokens]
    for case in session.missing(cases):
        backbone = session.load()
        method = built(case["method"], case["asked"], backbone)
        costs = efficiency(backbone, method, protocol)
        session.add({**case, "tokens": method.tokens, **{key: costs[key] for key in KEPT}})


if __name__ == "__main__":
    main()
