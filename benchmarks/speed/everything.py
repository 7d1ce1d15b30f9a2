"""All results of `docs/speed.md`, one script after the other, in bits of a few minutes.

    python benchmarks/speed/everything.py                  # on a CPU: an eighth of the width; about 50 minutes
    python benchmarks/speed/everything.py --device cuda    # the real shape, in bfloat16
    python benchmarks/speed/everything.py --first 4 --under "nice -n -5"

It goes on where it was stopped. `--under` is a command that each bit runs under, one that keeps the machine quiet.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path("benchmarks/speed")  # in the root, where everything runs
LARGE = "--backbone llava_next_vicuna_7b --image-size 672 --methods fastv victor llavolta visionzip divprune"
SHAPE = ("decode.py --backbone llava15_7b --width {width} --rounds 3 "
         "--methods none divprune:192 divprune:64 divprune:16")  # fmt: skip
CLAIMED = "avgpool fastv victor llavolta visionzip divprune"
# Results and the commands that make them, in the order of their weight. The second one of a result adds to it.
PLAN = [
    ("promised", f"promised.py --rounds 11 --methods {CLAIMED}"),
    ("decode", "decode.py --rounds 25"),
    ("time-by-part", "time_by_part.py"),
    ("promised", "promised.py"),
    ("promised-batch-4", f"promised.py --batch 4 --rounds 3 --methods {CLAIMED}"),
    ("decode-shape", f"{SHAPE} --rows 1"),
    ("decode-shape", f"{SHAPE} --rows 4"),
    ("published", "published.py"),
    ("promised-2880", f"promised.py {LARGE} --tokens 64 192 --rounds 3"),
    ("promised-batches", "promised.py --batch 2 8 16 --rounds 3 --tokens 64 --methods avgpool fastv"),
]  # fmt: skip
ON_A_GPU = [
    ("protocol", "protocol.py"),
    ("protocol-compiled", "protocol.py --compiled"),
    ("promised-batches", "promised.py --batch 32 --rounds 3 --tokens 64 --methods avgpool fastv"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed"))
    parser.add_argument("--first", type=int, default=99, help="only the first so many")
    parser.add_argument("--minutes", type=float, default=2, help="of a bit")
    parser.add_argument("--under", default="", help="a command that each bit runs under")
    options = parser.parse_args()
    os.chdir(Path(__file__).parents[2])
    width, suffix = (8, "") if options.device == "cpu" else (1, f"-{options.device}")
    plan = PLAN if options.device == "cpu" else PLAN + ON_A_GPU
    for name, command in plan[: options.first]:
        script, *words = command.format(width=width).split()
        path = options.out / f"{name}{suffix}.json"
        line = [*shlex.split(options.under), sys.executable, str(HERE / script), *words, "--out", str(path)]
        line += ["--minutes", f"{options.minutes:g}"]
        if options.device != "cpu":
            stored = name == "decode"  # pocket's own weights
            line += ["--device", options.device, "--dtype", "bfloat16", *([] if stored else ["--width", str(width)])]
        print(f"{name}: {shlex.join(line[-len(words) - 4 :])}", flush=True)
        before = -1
        while (size := path.stat().st_size if path.is_file() else 0) != before:  # until a bit adds no row
            before, began = size, time.monotonic()
            code = subprocess.run(line, check=False).returncode
            if code:
                return code
            if time.monotonic() - began < 60 * options.minutes:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
