"""`python -m vtc …` and `vtc …`: Hydra composes and sweeps, this module translates between it and the user."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError

from vtc import __version__, terminal
from vtc.cli import actions, completion, help, sweeps
from vtc.cli.sweeps import Entry, Ledger, Sweep
from vtc.configuration.compose import CONFIG, config_dir, explained, job_of, prepare
from vtc.configuration.overrides import ERRORS, read, spelled_out, swept, swept_by_experiment
from vtc.errors import UserError
from vtc.folders import UNWRITABLE
from vtc.registry import BROKEN

MISTAKE = 2  # exit code for what the user can mend; 1 is for what only a programmer can
TERMINATED = ("SIGTERM",)  # what an interrupt says that came as one
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


def one_line(error: BaseException) -> str:
    """The error's own words, or its kind where it has none."""
    words = " ".join(str(error).split()).encode(errors="backslashreplace").decode()  # of a command line, of file names
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"


def refusal(error: Exception) -> OSError | None:
    """The system's refusal to write that an error is, or stands for; None where it is another one.

    safetensors has an error of its own for it, whose words end with the system's number: `… (os error 28)`.
    """
    if isinstance(error, SafetensorError) and (number := re.search(r"\(os error (\d+)\)$", str(error))):
        error = OSError(int(number[1]), os.strerror(int(number[1])), "weights")
    return error if isinstance(error, OSError) and error.errno in UNWRITABLE else None


def unwritable(error: OSError) -> UserError:
    """What the machine refuses to write, in one line."""
    return UserError(
        f"{error.filename or 'a result'}: can't be written ({error.strerror}); give output_dir=<another folder>"
    )


def say(line: str) -> None:
    if actions.is_first():
        print(line, flush=True)


def complain(line: str) -> None:
    if actions.is_first():
        print(f"vtc: {line}", file=sys.stderr, flush=True)


def name_broken() -> None:
    """Names the plug-ins that were left out."""
    for line in sorted(BROKEN):
        complain(one_line(UserError(line)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit code.

    0: done. 1: an error in the program, with its traceback. 2: a mistake in what was asked for, in one line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(a in ("-h", "--help") for a in argv):
        try:
            say(help.text(argv))
        except UserError as error:
            complain(one_line(error))
            return MISTAKE
        finally:
            name_broken()
        return 0
    if "--version" in argv:
        say(f"vtc {__version__}")
        return 0
    try:
        if argv[:1] and argv[0] in completion.FLAGS:
            completion.complete(argv[1:])
            return 0
        flags, words = split(argv)
        words = spelled_out(words)
        if own := swept_by_experiment(words):
            words += own
            flags += ["--multirun"] * ("--multirun" not in flags)
        sweeping = "--multirun" in flags
        varied = swept(prepare(words, sweeping))
    except UserError as error:
        complain(one_line(error))
        return MISTAKE
    finally:
        name_broken()
    sweep = Sweep(math.prod(varied.values()), frozenset(varied), output_of(words) if sweeping else None)
    elsewhere = any(word.startswith("hydra/launcher=") and word != "hydra/launcher=basic" for word in words)
    try:
        # What an experiment sweeps is among the words: the keys of the command line take the place of its own.
        with sweeps.watching(sweep, elsewhere and actions.is_first()), staying(sweeping and not elsewhere):
            _hydra([*flags, *words, *["hydra.sweeper.params=null"] * bool(own)], sweep, sweeping)
    except KeyboardInterrupt as interrupt:
        complain("interrupted; finished runs are kept, the same command goes on with the rest")
        return 128 + (signal.SIGTERM if interrupt.args == TERMINATED else signal.SIGINT)
    except Exception as error:  # a job keeps its own errors: this is Hydra's
        if isinstance(error, OSError) and not isinstance(error, ERRORS):  # of the folder in which it notes a sweep
            complain(one_line(unwritable(error)))
            return MISTAKE
        if elsewhere and not isinstance(error, ERRORS):
            raise  # or a job's that another process ran
        complain(one_line(explained(error, words)))
        return MISTAKE
    if sweeping:
        sweep.settle()
        console = terminal.console()
        if actions.is_first() and (table := sweep.table(console.width)) is not None:
            console.print()
            console.print(table)
        say("\n" + sweep.summary()[0])
        for line in sweep.summary()[1:]:
            complain(line)
    if not sweep.failed:
        return 0
    return MISTAKE if all(mistake for *_, mistake in sweep.failed) else 1


@contextlib.contextmanager
def staying(sweeping: bool) -> Iterator[None]:
    """What the jobs of a sweep load stays for the next ones, until all are done."""
    if not sweeping:
        yield
        return
    from vtc.evaluation import loaded

    with loaded.sharing():
        yield


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a command line, with their values in one word, and its settings; they may stand in any order.

    Raises:
        UserError: an unknown flag, or a value that it doesn't have.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")

    for word in argv:
        if word.startswith("-") and word.split("=")[0] not in FLAGS:
            raise UserError(f"{word}: unknown flag; settings are written key=value; see --help")
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    values = vars(parser.parse_intermixed_args(argv))
    words = values.pop("overrides")
    names = {key: f"--{key.replace('_', '-')}" for key, value in values.items() if value not in (None, False)}
    return [name if values[key] is True else f"{name}={values[key]}" for key, name in names.items()], words


def output_of(words: Sequence[str]) -> Path | None:
    """The folder that a command line's jobs write to; None where it differs between them."""
    override = next((o for word in words if (o := read(word)).key_or_group == "output_dir"), None)
    if override is not None and override.is_sweep_override():
        return None
    return Path("outputs" if override is None else str(override.value()))


def note(ledger: Ledger | None, overrides: Sequence[str], entry: Entry) -> None:
    """Keeps what became of a job, where its sweep keeps such notes; a full disk ends no run."""
    if ledger is not None:
        with contextlib.suppress(OSError):
            ledger.write(overrides, entry)


def _hydra(argv: Sequence[str], sweep: Sweep, sweeping: bool) -> None:
    """One pass through Hydra. A job's error is told at once and kept in `sweep`, so that the next job runs."""

    def run_job(config: DictConfig) -> None:
        # As typed: an override may hold an interpolation, which reading the list would resolve.
        typed_overrides = cast("list[str]", OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
        name = " ".join(
            text for text in typed_overrides if text.lstrip("+").split("=")[0] in sweep.keys or not sweep.keys
        )
        number = HydraConfig.get().job.num if sweeping else 0
        ledger = Ledger(sweep.output) if sweep.output is not None and actions.is_first() else None
        entry = Entry(
            sweep.id, number, name, shlex.join(["python", "-m", "vtc", *typed_overrides]), started=time.time()
        )
        if sweeping:
            say(f"\n[{number + 1}/{sweep.jobs}] {name}")
        try:
            job = job_of(config, typed_overrides)
            before = ledger.read(typed_overrides) if ledger is not None else None
            if sweeping and (why := sweeps.reason_to_leave_out(job.retry, before)):
                failed = before is not None and before.has_failed
                note(ledger, typed_overrides, entry.ended(sweeps.SKIPPED, reason=why, failed_before=failed))
                say(f"left out: {why}")
                return
            if not job.dry_run:
                note(ledger, typed_overrides, entry)
            if line := actions.headline(job):
                say(f"vtc {__version__} · {line}")
            path = actions.perform(job)
            result = str(path) if isinstance(path, Path) and path.is_file() else None
            if not job.dry_run:
                note(ledger, typed_overrides, entry.ended(sweeps.DONE, result=result))
        except Exception as problem:
            error = unwritable(refused) if (refused := refusal(problem)) else problem
            mistake = isinstance(error, UserError)
            sweep.failed.append((name, one_line(error), mistake))
            note(ledger, typed_overrides, entry.ended(sweeps.FAILED, reason=one_line(error), mistake=mistake))
            if mistake:
                complain(one_line(error))
            else:
                traceback.print_exc()
            if os.getpid() != here and ledger is None:  # a launcher's worker without a ledger: only the exception
                raise  # finds its way back

    here = os.getpid()
    full_error, arguments = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit by itself; its errors are ours to explain
    sys.argv = [sys.argv[0], *argv]
    notes = tempfile.TemporaryDirectory()
    if sweeping and not actions.is_first():  # of several processes the first one keeps Hydra's note of the sweep
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


class Voice(io.FileIO):
    """Where what is said goes. A reader that has left (`… | head`), or a full disk, ends no run."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            return len(content)


def run() -> None:
    """The console script: `main`, then exit. What the encoding of the terminal lacks is escaped."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:
            voice = io.BufferedWriter(Voice(number, "w", closefd=False))
            terminal = stream.isatty()
            text = io.TextIOWrapper(voice, stream.encoding, "backslashreplace", line_buffering=terminal or number == 2)
            setattr(sys, name, text)
    here = os.getpid()

    def terminated(*_: object) -> NoReturn:
        if os.getpid() != here:  # a worker that was forked
            os._exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(*TERMINATED)

    signal.signal(signal.SIGTERM, terminated)
    sys.exit(main())
