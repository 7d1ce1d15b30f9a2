"""What the machine refuses: folders, a reader of the output that leaves, a terminal of few characters, SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from safetensors import SafetensorError

from vtc.cli import actions, main

DRY = ["method=fastv", "tokens=16", "dry_run=true"]


@pytest.mark.parametrize(
    ("words", "cache", "said"),
    [
        (["output_dir=/dev/null/x"], None, "/dev/null/x: can't be written (Not a directory); give output_dir="),
        (["output_dir=/proc/1/x"], None, "/proc/1/x: can't be written"),
        (["output_dir=" + 300 * "x"], None, "can't be written (File name too long); give output_dir="),
        (["action=report", "report.output=/dev/null/x"], None, "give report.output="),
        (["-m", "output_dir=/dev/null/x", "seed=0,1"], None, "can't be written (Not a directory); give output_dir="),
        (["checkpoint=" + 300 * "x"], None, "no such folder"),
        ([], ("VTC_CACHE", "/dev/null/x"), "/dev/null/x: can't be written (Not a directory); set VTC_CACHE="),
        ([], ("HF_HOME", "/dev/null/x"), "set HF_HOME="),
        ([], ("HOME", "/dev/null"), "set VTC_CACHE="),
    ],
)
def test_a_folder_that_cannot_be_written(words, cache, said, monkeypatch, tmp_path: Path, capsys) -> None:
    for name in ("VTC_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if cache:
        monkeypatch.setenv(*cache)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(actions, "ACTIONS", dict.fromkeys(actions.ACTIONS, ("no_such_module:action", False)))
    assert main([*DRY, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(28, "No space left on device", "outputs/x"), "outputs/x"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "weights"),
    ],
)
def test_a_disk_that_is_full_later(error, name, monkeypatch, tmp_path: Path, capsys) -> None:
    def action(job) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "recorder", types.SimpleNamespace(action=action))
    monkeypatch.setattr(actions, "ACTIONS", dict.fromkeys(actions.ACTIONS, ("recorder:action", False)))
    assert main(["method=fastv"]) == 2
    assert capsys.readouterr().err == (
        f"vtc: {name}: can't be written (No space left on device); give output_dir=<another folder>\n"
    )


def started(*words: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_reader_may_leave_and_a_terminal_may_know_few_characters() -> None:
    gone = started("-m", "vtc", "--help")
    gone.stdout.close()
    assert gone.stderr.read() == b"" and gone.wait() == 0
    plain = started("-m", "vtc", "output_dir=狗", "method=nope", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    out, err = plain.communicate()
    assert plain.returncode == 2 and err.isascii() and b"Traceback" not in err


def test_sigterm_is_an_interruption() -> None:
    code = (
        "import signal, sys, time, types; from vtc.cli import actions, command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a suite in the background ignores
        "def action(job): print('waiting', flush=True); time.sleep(60)\n"
        "sys.modules['recorder'] = types.SimpleNamespace(action=action)\n"
        "actions.ACTIONS = dict.fromkeys(actions.ACTIONS, ('recorder:action', False))\n"
        "sys.argv = ['vtc', 'method=fastv']; command.run()"
    )
    for number, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = started("-c", code)
        while b"waiting" not in process.stdout.readline():
            pass
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == exit_code and err.startswith(b"vtc: interrupted; finished runs are kept")
        assert len(err.splitlines()) == 1
