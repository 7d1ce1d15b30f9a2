"""Where does the time of a prefill and of a decoding step go, and how far from the machine's limit is each part?

    python benchmarks/speed/time_by_part.py --out benchmarks/results/speed/time-by-part.json

What `action=profile` states (`vtc.profiling.limits`), for some methods at 64 tokens: LLaVA-1.5 7B's shape at 1/8 of its
width, one row up to the first token, a decoding step of `--batch` rows. Times are the wall clock's, so that this one
needs a quiet machine. `limit` is the longer of arithmetic, at the rate that each matrix product has by itself, and of
moving weights and cache once.
"""

from __future__ import annotations

from promised import built
from turns import Session, arguments

from vtc.profiling.limits import limits
from vtc.settings import ProfileSettings


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--methods", nargs="*", default=["avgpool", "fastv", "divprune", "visionzip", "sparsevlm"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[64])
    parser.add_argument("--batch", type=int, default=4, help="rows of a decoding step")
    options = parser.parse_args()
    session = Session(options, ("method", "asked"), batch=options.batch)
    for case in session.missing([{"method": m, "asked": t} for m in options.methods for t in options.tokens]):
        backbone = session.load()
        method = built(case["method"], case["asked"], backbone)
        protocol = ProfileSettings(batch_size=options.batch, repeats=3, first_token_repeats=options.rounds)
        session.add({**case, "rounds": options.rounds, **limits(backbone, method, protocol)})


if __name__ == "__main__":
    main()
