"""A sweep: what it notes of its jobs, which it leaves out, its table. The jobs themselves are fabricated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose

from vtc import shipped, terminal
from vtc.cli import actions, main, sweeps
from vtc.cli.sweeps import DONE, FAILED, SKIPPED, Entry, Ledger, Sweep
from vtc.configuration.compose import CONFIG, hydra_at_rest
from vtc.errors import UserError
from vtc.job import Job

ROOT = shipped.root() / "benchmarks/results/pocket2/rows"


@pytest.fixture
def performed(monkeypatch):
    """Jobs that are run, by label; those of 36 tokens fail as long as `broken` holds them."""
    runs: list[str] = []
    broken = {"fastv tokens=36"}

    def perform(job: Job) -> Path:
        runs.append(job.label)
        if job.label in broken:
            raise UserError("no room for 36 tokens")
        path = job.output_dir / job.label.replace(" ", "-") / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / f"{job.method.name}-{job.budget.tokens}-s0"
        for name in ("result.json", "samples.parquet"):
            shutil.copyfile(source / name, path.with_name(name))
        return path

    monkeypatch.setattr(actions, "perform", perform)
    monkeypatch.setenv("COLUMNS", "80")
    return runs, broken


def test_a_sweep_ends_with_one_table_of_its_jobs(tmp_path, performed, capsys):
    runs, _ = performed
    assert main(["-m", "method=fastv,tome", "tokens=16,36", f"output_dir={tmp_path}"]) == 2
    out, err = capsys.readouterr()
    assert runs == ["fastv tokens=16", "fastv tokens=36", "tome tokens=16", "tome tokens=36"]
    table = out[out.index("4 jobs") : out.index("3 of 4 jobs done, 1 failed:")]
    lines = [line for line in table.splitlines() if line.startswith("method=")]
    assert [line.split()[:3] for line in lines] == [
        ["method=fastv", "tokens=16", "done"],
        ["method=fastv", "tokens=36", "failed"],
        ["method=tome", "tokens=16", "done"],
        ["method=tome", "tokens=36", "done"],
    ]
    assert "0.866 ±0.012" in lines[0] and "90.3 %" in lines[0] and "0." not in lines[1].split("failed")[1].split("–")[0]
    assert max(map(len, out.splitlines())) <= 100 and all(len(line.rstrip()) <= 80 for line in table.splitlines())
    assert "vtc: method=fastv tokens=36: no room for 36 tokens" in err


def test_failed_jobs_are_noted_and_tried_again_or_not(tmp_path, performed, capsys):
    runs, broken = performed
    words = ["-m", "method=fastv,tome", "tokens=16,36", f"output_dir={tmp_path}"]
    main(words)
    (entry,) = [e for f in (tmp_path / sweeps.FOLDER).glob("*.json") if (e := sweeps._entry(f)) and e.state == FAILED]
    assert (entry.name, entry.reason, entry.mistake) == ("method=fastv tokens=36", "no room for 36 tokens", True)
    assert "method=fastv" in entry.command and "tokens=36" in entry.command

    runs.clear()
    assert main([*words, "retry=none"]) == 0
    assert runs == ["fastv tokens=16", "tome tokens=16", "tome tokens=36"]
    assert "3 of 4 jobs done, 1 left out" in (out := capsys.readouterr().out)
    assert "left out: it failed before: no room for 36 tokens (retry=none)" in out

    runs.clear()
    broken.clear()
    assert main([*words, "retry=failed"]) == 0, "that it was left out is no success"
    assert runs == ["fastv tokens=36"] and "1 of 4 jobs done, 3 left out" in capsys.readouterr().out
    runs.clear()
    assert main([*words, "retry=failed"]) == 0 and not runs, "nothing is left that failed"
    assert main([*words, "retry=some"]) == 2
    assert "retry=some: allowed: all, failed, none" in capsys.readouterr().err


def test_the_order_of_the_words_and_where_it_writes_make_no_other_job(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.file(["a=1", "b=2", "retry=none", "hydra/launcher=joblib"]) == ledger.file(
        ["b=2", "a=1", "resume=auto"]
    )
    assert ledger.file(["a=1"]) != ledger.file(["a=2"])
    damaged = ledger.file(["a=1"])
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert ledger.read(["a=1"]) is None


def test_a_job_that_ended_without_a_word_has_failed(tmp_path):
    """Killed for its memory, in a process of a launcher."""
    sweep, ledger = Sweep(3, frozenset({"a"}), tmp_path), Ledger(tmp_path)
    ledger.write(["a=1"], Entry(sweep.id, 0, "a=1", ""))
    ledger.write(["a=2"], Entry(sweep.id, 1, "a=2", "", state=DONE))
    ledger.write(["a=9"], Entry("another", 1, "a=9", ""))
    assert sweep.progress() == "1 done, 1 running, 1 left"
    sweep.settle()
    assert sweep.failed == [("a=1", "its process ended without a word", False)]
    assert sweeps.reason_to_leave_out("failed", ledger.read(["a=1"])) == ""
    assert sweeps.reason_to_leave_out("failed", ledger.read(["a=2"])) and not sweeps.reason_to_leave_out("all", None)
    skipped = Entry("x", 0, "a", "", state=SKIPPED, failed_before=True)
    assert skipped.has_failed and not Entry("x", 0, "a", "", state=SKIPPED).has_failed


@pytest.mark.parametrize("width", [30, 60, 200])
def test_what_matters_least_goes_first(width):
    header, rows = ["name", "minor", "score", "major"], [["a", "1" * 20, "0.5", "2" * 10]]
    shown = [header[at] for at in terminal.fitting(header, rows, ["minor", "major"], width)]
    assert shown == {30: ["name", "score", "major"], 60: header, 200: header}[width]
    assert terminal.fitting(header, rows, ["minor", "major"], 5) == [0, 2], "the others stay"


def test_a_table_in_parts_has_every_column_once():
    header, rows = ["row", *(f"c{n}" for n in range(9))], [["a", *("x" * 20 for _ in range(9))]]
    parts = terminal.in_parts(header, rows, 80)
    assert [at for part in parts for at in part[1:]] == [*range(1, 10)] and all(part[0] == 0 for part in parts)
    assert len(parts) == 3 and terminal.in_parts(header, rows, 10)[0] == [0, 1]


@pytest.mark.parametrize(
    ("preset", "package", "target"),
    [
        ("here_joblib", "joblib_launcher", "JoblibLauncher"),
        ("here_submitit", "submitit_launcher", "LocalLauncher"),
        ("slurm", "submitit_launcher", "SlurmLauncher"),
    ],
)
def test_presets_are_those_of_their_launchers(preset, package, target):
    """Each is a file over the launcher's own defaults: an option that it doesn't have would be refused here."""
    pytest.importorskip(f"hydra_plugins.hydra_{package}")
    with hydra_at_rest():
        config = compose(CONFIG, overrides=[f"hydra/launcher={preset}"], return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith(target)
