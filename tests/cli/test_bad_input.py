"""Bad input: exit code 2, one line that names the key, what was given and what is allowed, nothing loaded, no traceback."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtc.cli import main

# (command line, what the one line on stderr must contain)
KEYS = [
    ("token=16", ["token=16", "'token'", "did you mean 'tokens'"]),
    ("+token=16", ["token", "did you mean 'tokens'"]),
    ("++budget=16", ["budget"]),
    ("~tokens", ["tokens", "null"]),
    ("methd=fastv", ["methd", "did you mean 'method'"]),
    ("method=fastv method.layr=2", ["method.layr=2", "did you mean 'layer'"]),
    ("method=none method.layer=2", ["method.layer", "method=none has no options"]),
    ("backbone.dytpe=float32", ["backbone.dytpe", "did you mean 'dtype'"]),
    ("benchmark.taks=[pope]", ["benchmark.taks", "did you mean 'tasks'"]),
    ("fastv", ["fastv", "key=value"]),
    ("tokens=[", ["tokens=["]),
    ("--tokens 16", ["--tokens", "unknown flag"]),
    ("action=report report.input=x", ["report.input", "did you mean 'inputs'"]),
    ("report.inputs=[x]", ["report.inputs"]),
]
NAMES = [
    ("method=fastvv tokens=16", ["method=fastvv", "victor", "did you mean 'fastv'"]),
    ("method=null", ["method=null", "fastv"]),
    ("method=[fastv,victor]", ["one method a run", "-m method=fastv,victor"]),
    ("method=fastv,victor tokens=4", ["several values are a sweep", "-m"]),
    ("backbone=llava15_7", ["backbone=llava15_7", "did you mean 'llava15_7b'"]),
    ("action=evalute", ["action=evalute", "did you mean 'evaluate'"]),
    ("benchmark=poket", ["benchmark=poket", "did you mean 'pocket'"]),
    ("benchmark.tasks=[pocket_existenc]", ["pocket_existenc", "did you mean 'pocket_existence'"]),
    ("benchmark.tasks=pocket_existence", ["benchmark.tasks=pocket_existence", "list"]),
    ("benchmark.tasks=[]", ["benchmark.tasks", "at least one"]),
]
VALUES = [
    ("tokens=abc", ["tokens=abc", "whole number"]),
    ("tokens=0", ["tokens=0", "from 1 on"]),
    ("tokens=1.5", ["tokens=1.5", "whole number"]),
    ("tokens=-4", ["tokens=-4"]),
    ("ratio=2", ["ratio=2", "at most 1"]),
    ("flops=0", ["flops=0", "more than 0"]),
    ("compression=0.5", ["compression=0.5", "from 1 on"]),
    ("tokens=16 ratio=0.1", ["tokens=16", "ratio=0.1", "only one"]),
    ("compression=5.57 flops=0.25", ["compression=5.57", "flops=0.25"]),
    ("seed=null", ["seed=null"]),
    ("batch_size=0", ["batch_size=0"]),
    ("benchmark.limit=0", ["benchmark.limit=0"]),
    ("backbone.dtype=float8", ["backbone.dtype=float8", "bfloat16"]),
    ("backbone.device=gpu", ["backbone.device=gpu", "cuda"]),
    ("backbone.attention=flash", ["backbone.attention=flash", "sdpa"]),
    ("layer_scale=8", ["layer_scale=8", "auto"]),
    ("resume=maybe", ["resume=maybe"]),
    ("output_dir=${nowhere}", ["nowhere"]),
]
FILES = [
    ("checkpoint=does/not/exist", ["checkpoint=does/not/exist", "no such folder"]),
    ("benchmark=llava benchmark.data=does/not/exist", ["benchmark.data=does/not/exist", "no such"]),
    ("action=report report.inputs=[does/not/exist]", ["does/not/exist"]),
    ("action=report", ["no results"]),
]


def complaint(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says to `command`, after checking that it is one line and that the exit code is 2."""
    code = main(command.split())
    err = capsys.readouterr().err
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.mark.parametrize(
    ("command", "words"), KEYS + NAMES + VALUES + FILES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_one_line(command: str, words: list[str], capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    err = complaint(command, capsys)
    for word in words:
        assert word in err


def test_output_dir_that_is_a_file(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert "is a file" in complaint("output_dir=taken", capsys)


@pytest.mark.parametrize("command", ["token=16", "method=fastvv tokens=16"])
def test_from_the_shell(command: str, tmp_path: Path) -> None:
    """As a user meets it: a process of its own, within 5 s, and nothing left behind."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vtc", *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_a_bad_value_in_a_sweep_is_found_before_any_job(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'victor'" in complaint("-m method=fastv,victr tokens=4,16", capsys)
    assert not list(tmp_path.iterdir())
