"""Folders that can't be written, a home that isn't there, a disk that is full, a terminal of few letters or closed."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from attack import Case

SCORED = ("method=random", "tokens=16", "benchmark.limit=2", "benchmark.tasks=[pocket_existence]")
NOBODY = 65534


def nobody(**environment: str) -> Callable[[], object]:
    """The command runs as a user who owns nothing (where this process may choose), with other variables."""

    def become() -> None:
        os.environ.update(environment)
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    return become


def full() -> None:
    """No file can grow beyond a kilobyte, as on a full disk, apart from the streams that are open."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def file_in_place(folder: Path) -> None:
    (folder / "o").write_text("")


def read_only(folder: Path) -> None:
    (folder / "o").mkdir(mode=0o555)
    folder.chmod(0o777)
    for name in ("stdout", "stderr"):
        (folder / name).touch()
        (folder / name).chmod(0o666)


def writable(folder: Path) -> None:
    read_only(folder)
    (folder / "o").chmod(0o777)


def closed() -> None:
    """The reader of the output went away, as `head` does."""
    read, write = os.pipe()
    os.dup2(write, 1)
    os.close(read)


def ascii_only() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


def cases(folder: Path) -> Iterator[Case]:
    for action, more in {
        "evaluate": SCORED,
        "train": ("action=train", "method=victor", "tokens=16"),
        "profile": ("action=profile", *SCORED),
    }.items():
        yield Case(f"{action}: read-only", [*more, "output_dir=o"], "refused", prepare=read_only, before=nobody())
        yield Case(f"{action}: a file", [*more, "output_dir=o"], "refused", prepare=file_in_place)
        yield Case(f"{action}: below a file", [*more, "output_dir=o/p"], "refused", prepare=file_in_place)
        yield Case(f"{action}: too long", [*more, f"output_dir={'x' * 300}"], "refused")
        yield Case(f"{action}: /proc", [*more, "output_dir=/proc/vtc"], "refused")
    yield Case(
        "sweep: read-only", [*SCORED, "-m", "seed=0,1", "output_dir=o"], "refused", prepare=read_only, before=nobody()
    )
    yield Case("report: read-only", ["action=report", "report.output=o"], "refused", prepare=read_only, before=nobody())
    yield Case("report: a file", ["action=report", "report.output=o"], "refused", prepare=file_in_place)
    yield Case("full", [*SCORED, "output_dir=o"], "refused", before=full)
    home = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "", "HF_HOME": "", "VTC_POCKET_DATA": ""}
    yield Case("no home", [*SCORED, "output_dir=o"], "either", prepare=writable, before=nobody(**home))
    yield Case("help, closed", ["--help"], "works", before=closed)
    yield Case("dry run, closed", [*SCORED, "dry_run=true"], "works", before=closed)
    for words in (["--help"], ["method=fastv", "tokens=16", "dry_run=true"], [*SCORED, "output_dir=o"], ["tokens=狗"]):
        right = "refused" if words == ["tokens=狗"] else "works"
        yield Case(f"ASCII alone: {words[0]}", words, right, before=ascii_only)
