"""python benchmarks/reliability/attack.py --out benchmarks/results/reliability.json [--kinds overrides rows …]

What a user's mistakes, broken files and lost power do to vtc: every case is a command line in a folder of its own, and
what should become of it. A case goes wrong in one of these ways:

    silent      done without a word where it should have been refused, or with a wrong result
    traceback   ended with a traceback or an exit code that isn't vtc's
    hang        no answer within its time
    wordy       refused, but not in one line
    refused     refused where it should have worked

The commands run in processes forked from one that has imported torch, so that a case takes a second. Nothing is drawn
but from seed 0. The kinds are the modules beside this one; each has `cases(folder)`, which writes what its cases share.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

KINDS = ("overrides", "rows", "pictures", "checkpoints", "reports", "outputs", "kills")
WRONG = ("silent", "traceback", "hang", "wordy", "refused")
PROTOCOLS = (("vtc.settings", "ProfileSettings"), ("vtc.profiling.latency", "Protocol"))  # today's and an older name


@dataclass(frozen=True)
class Outcome:
    """What became of a command: its exit code (None: it was stopped), what it wrote, and where it ran."""

    code: int | None
    out: str
    err: str
    folder: Path


@dataclass(frozen=True)
class Case:
    """A command and what is right.

    Attributes:
        name: unique in its kind.
        argv: the command line.
        right: `refused` in one line, `works`, or `either` of the two.
        check: says what is wrong with the outcome of a command that worked; an empty text: nothing.
        prepare: writes the case's own files into the folder in which the command starts.
        before: runs in the process of the command, before it.
        kill: signal and seconds after the start; the command is then typed a second time.
        seconds: in which it has to answer.
    """

    name: str
    argv: Sequence[str]
    right: str = "either"
    check: Callable[[Outcome], str] = lambda outcome: ""
    prepare: Callable[[Path], object] = lambda folder: None
    before: Callable[[], object] = lambda: None
    kill: tuple[int, float] | None = None
    seconds: float = 120.0


def start(case: Case, folder: Path) -> int:
    """The process id of the case's command, which writes to files in `folder`."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code: int | str = 1
    try:
        os.setsid()
        os.chdir(folder)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            setattr(sys, name, os.fdopen(stream, "w", encoding="utf-8", buffering=1, closefd=False))
        case.before()
        from vtc.cli import run

        sys.argv = ["vtc", *case.argv]
        run()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def wait(child: int, seconds: float) -> int | None:
    """Its exit code, minus the signal that ended it; None where it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def finish(child: int, seconds: float) -> int | None:
    """As `wait`; a process that still runs then is ended."""
    if (code := wait(child, seconds)) is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return code


def run(case: Case, folder: Path) -> Outcome:
    case.prepare(folder)
    child = start(case, folder)
    if case.kill:
        number, after = case.kill
        if wait(child, after) is None:
            os.kill(child, number)
            code = finish(child, case.seconds)
            err = (folder / "stderr").read_text(errors="replace")
            done = code == 0  # it had ended just before the signal
            if number != signal.SIGKILL and not done and (code != 128 + number or "Traceback" in err):
                return Outcome(code, "", err, folder)
        child = start(case, folder)
    code = finish(child, case.seconds)
    text = {name: (folder / name).read_text(errors="replace") for name in ("stdout", "stderr")}
    return Outcome(code, text["stdout"], text["stderr"], folder)


def verdict(case: Case, outcome: Outcome) -> tuple[str, str]:
    """One of `right` and WRONG, and a line of what was seen."""
    complaint = outcome.err.strip().splitlines()
    if outcome.code is None:
        return "hang", f"no answer within {case.seconds:g} s"
    if outcome.code not in (0, 2) or "Traceback" in outcome.err:
        return "traceback", f"exit code {outcome.code}: {complaint[-1] if complaint else ''}"
    if outcome.code == 2:
        if case.right == "works":
            return "refused", complaint[-1] if complaint else "no word"
        lines = [line for line in complaint if line.startswith("vtc: ")]
        return ("right", lines[0]) if len(lines) == len(complaint) == 1 else ("wordy", f"{len(complaint)} lines")
    if case.right == "refused":
        return "silent", "worked"
    wrong = case.check(outcome)
    return ("silent", wrong) if wrong else ("right", "worked")


def attack(kind: str, shown: bool) -> list[dict[str, str]]:
    """What became of each case of a kind that didn't go right, and how many there were."""
    faults: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="vtc-attack-") as place:
        shared = Path(place) / "shared"
        shared.mkdir()
        for number, case in enumerate(importlib.import_module(kind).cases(shared)):
            folder = Path(place) / str(number)
            folder.mkdir(mode=0o777)
            what, why = verdict(case, run(case, folder))
            counts[what] += 1
            why = why.replace(str(place), "…")[:300]
            if what != "right":
                faults.append({"kind": kind, "case": case.name, "verdict": what, "seen": why})
            if shown or what != "right":
                print(f"{kind} · {case.name}: {what}: {why[:160]}", flush=True)
            subprocess.run(["rm", "-rf", str(folder)], check=False)
    COUNTS[kind] = dict(counts)
    print(
        f"{kind}: {sum(counts.values())} cases, " + ", ".join(f"{n} {what}" for what, n in counts.items()), flush=True
    )
    return faults


def measure_little() -> None:
    """Costs are measured with one row and four tokens: they are not what is attacked, and would take long."""
    for module, name in PROTOCOLS:
        with contextlib.suppress(ImportError, AttributeError):
            getattr(importlib.import_module(module), name).__init__.__defaults__ = (1, 16, (2, 4), 1, 1)


COUNTS: dict[str, dict[str, int]] = {}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, help="where counts and faults are written, as JSON")
    parser.add_argument("--shown", action="store_true", help="a line for every case")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    import torch

    import vtc
    import vtc.cli
    from vtc.evaluation.record import git_commit

    torch.set_num_threads(1)
    for module in ("vtc.evaluation", "vtc.training", "vtc.report", "lmms_eval.evaluator"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    measure_little()
    began, commit = time.monotonic(), git_commit()
    faults: list[dict[str, str]] = []
    for kind in arguments.kinds:
        faults += attack(kind, arguments.shown)
        if arguments.out:  # after each kind: it takes half an hour
            record = {
                "command": " ".join(["python", "benchmarks/reliability/attack.py", *sys.argv[1:]]),
                "vtc": vtc.__version__,
                "git_commit": commit,
                "seconds": round(time.monotonic() - began),
                "cases": {kind: sum(counts.values()) for kind, counts in COUNTS.items()},
                "counts": COUNTS,
                "faults": faults,
            }
            arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
