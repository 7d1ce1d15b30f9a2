"""`python -m vtc …` and `vtc …`: Hydra composes and sweeps, this module translates between it and the user."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vtc import __version__
from vtc.cli import actions, help
from vtc.configuration.compose import CONFIG, ERRORS, config_dir, explained, job_of, prepare, spelled_out, swept
from vtc.errors import UserError

MISTAKE = 2  # exit code for what the user can mend; 1 is for what only a programmer can
FLAGS = (
    "-m",
    "--multirun",
    "--cfg",
    "-c",
    "--resolve",
    "--package",
    "-p",
    "--run",
    "-r",
    "--info",
    "-i",
    "--config-dir",
    "-cd",
)


@dataclass
class Sweep:
    """What became of the jobs of one command.

    Attributes:
        jobs: how many there are.
        keys: what differs between them.
        failed: what each job that failed was, why, and whether its user can mend it: words, since an exception holds
            whatever was in memory when it was raised, the model too.
    """

    jobs: int = 1
    keys: frozenset[str] = frozenset()
    failed: list[tuple[str, str, bool]] = field(default_factory=list)

    def summary(self) -> list[str]:
        """One line for the sweep, one for each job that failed."""
        done = self.jobs - len(self.failed)
        lines = [f"{done} of {self.jobs} jobs done" + (f", {len(self.failed)} failed:" if self.failed else "")]
        return lines + [f"{job}: {why}" for job, why, _ in self.failed]


def one_line(error: BaseException) -> str:
    """The error's own words, or its kind where it has none."""
    words = " ".join(str(error).split())
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"


def is_first() -> bool:
    """Whether this process is the one that talks: of several that `accelerate launch` or `torchrun` started, rank 0."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    if is_first():
        print(line, flush=True)


def complain(line: str) -> None:
    if is_first():
        print(f"vtc: {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit code.

    0: done. 1: an error in the program, with its traceback. 2: a mistake in what was asked for, in one line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(a in ("-h", "--help") for a in argv):
        say(help.text(argv))
        return 0
    if "--version" in argv:
        say(f"vtc {__version__}")
        return 0
    flags = [a for a in argv if a.startswith("-")]
    for flag in flags:
        if flag.split("=")[0] not in FLAGS:
            complain(f"{flag}: unknown flag; settings are written key=value; see --help")
            return MISTAKE
    sweeping = any(f in ("-m", "--multirun") for f in flags)
    overrides: list[str] = []
    try:
        argv = spelled_out(argv)
        overrides = [a for a in argv if not a.startswith("-")]
        prepare(overrides)
        varied = swept(overrides) if sweeping else {}
        sweep = Sweep(math.prod(varied.values()), frozenset(varied))
        _hydra(argv, sweep, sweeping)
    except KeyboardInterrupt:
        complain("interrupted; finished runs are kept, the same command goes on with the rest")
        return 130
    except UserError as error:
        complain(one_line(error))
        return MISTAKE
    except OSError as error:  # a job keeps its own errors: this is the folder in which Hydra notes a sweep
        complain(f"output_dir: {error.filename or ''}: {error.strerror}")
        return MISTAKE
    except ERRORS as error:
        complain(one_line(explained(error, [o for o in overrides if not _is_flag_value(o, argv)])))
        return MISTAKE
    if sweeping:
        say("\n" + sweep.summary()[0])
        for line in sweep.summary()[1:]:
            complain(line)
    if not sweep.failed:
        return 0
    return MISTAKE if all(mistake for *_, mistake in sweep.failed) else 1


def _is_flag_value(word: str, argv: Sequence[str]) -> bool:
    """Whether `word` belongs to the flag before it, as `job` in `--cfg job`."""
    at = argv.index(word)
    return at > 0 and argv[at - 1] in FLAGS and argv[at - 1] not in ("-m", "--multirun", "--resolve", "--run", "-r")


def _hydra(argv: Sequence[str], sweep: Sweep, sweeping: bool) -> None:
    """One pass through Hydra. A job's error is told at once and kept in `sweep`, so that the next job runs."""

    def run_job(config: DictConfig) -> None:
        # As typed: an override may hold an interpolation, which reading the list would resolve.
        typed_overrides = cast("list[str]", OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
        name = " ".join(
            text for text in typed_overrides if text.lstrip("+").split("=")[0] in sweep.keys or not sweep.keys
        )
        if sweeping:
            say(f"\n[{HydraConfig.get().job.num + 1}/{sweep.jobs}] {name}")
        try:
            job = job_of(config, typed_overrides)
            say(f"vtc {__version__} · {actions.headline(job)}")
            actions.perform(job)
        except Exception as error:
            sweep.failed.append((name, one_line(error), isinstance(error, UserError)))
            if isinstance(error, UserError):
                complain(one_line(error))
            else:
                traceback.print_exc()
            if os.getpid() != here:  # a launcher's worker: only the exception finds its way back
                raise

    here = os.getpid()
    full_error, arguments = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit by itself; its errors are ours to explain
    sys.argv = [sys.argv[0], *argv]
    notes = tempfile.TemporaryDirectory()
    if sweeping and not is_first():  # of several processes the first one keeps Hydra's note of the sweep
        sys.argv.append(f"hydra.sweep.dir={notes.name}")
    try:
        hydra.main(config_path=str(config_dir()), config_name=CONFIG, version_base="1.3")(run_job)()
    finally:
        notes.cleanup()
        sys.argv = arguments
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def run() -> None:
    """The console script: `main`, then exit."""
    sys.exit(main())
