"""What names a run: settings, weights, tasks and versions of what computes, and nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from vtc import profiling, shipped
from vtc.configuration import parse
from vtc.evaluation import catalogue, scoring
from vtc.evaluation.run_folder import RunFolder
from vtc.settings import BenchmarkSettings, ProfileSettings


@pytest.fixture
def job(weights, data):
    """`job(*overrides)`: FastV on small test sets."""

    def make(*overrides: str):
        given = [f"benchmark.data={data}", f"backbone.pretrained={weights}", "backbone.device=cpu"]
        return parse(["method=fastv", "tokens=16", "benchmark.tasks=[pocket_choice]", *given, *overrides])

    return make


def test_the_id_changes_with_what_decides_the_numbers_and_nothing_else(job, data, tmp_path):
    first = RunFolder(job())
    assert len(first.id) == 12 and first.id == RunFolder(job()).id
    other = RunFolder(job("output_dir=elsewhere", "resume=false", "dry_run=true"))
    assert other.id == first.id and other.folder != first.folder
    for change in ("tokens=4", "method.layer=3", "benchmark.limit=5", "seed=1", "backbone.dtype=bfloat16"):
        assert RunFolder(job(change)).id != first.id, change
    shutil.copytree(data, tmp_path / "data")
    assert RunFolder(job(f"benchmark.data={tmp_path / 'data'}")).id == first.id, "the same content elsewhere"
    shutil.copy(data / "pocket_reading.parquet", tmp_path / "data" / "pocket_choice.parquet")
    assert RunFolder(job(f"benchmark.data={tmp_path / 'data'}")).id != first.id


def test_other_weights_are_another_run(job, weights, tmp_path):
    first = RunFolder(job())
    shutil.copytree(weights, tmp_path / "weights")
    assert RunFolder(job(f"backbone.pretrained={tmp_path / 'weights'}")).id == first.id
    file = tmp_path / "weights" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    changed = RunFolder(job(f"backbone.pretrained={tmp_path / 'weights'}"))
    assert changed.id != first.id and changed.costs_id != first.costs_id


def test_versions_of_what_scores_and_of_what_measures(job, monkeypatch):
    first = RunFolder(job())
    monkeypatch.setattr(profiling, "VERSION", profiling.VERSION + 1)
    measured = RunFolder(job())
    assert measured.id == first.id and measured.costs_id != first.costs_id
    monkeypatch.setattr(scoring, "VERSION", scoring.VERSION + 1)
    scored = RunFolder(job())
    assert scored.id != first.id and scored.costs_id == measured.costs_id


def test_how_costs_are_measured_decides_no_score(job):
    first, quick = job(), dataclasses.replace(job(), profile=ProfileSettings(repeats=1))
    assert RunFolder(first).id == RunFolder(quick).id and RunFolder(first).costs_id != RunFolder(quick).costs_id


def test_numbers_that_json_has_no_word_for_are_told_apart(job):
    """A share of infinity, one that is no number, and none at all are three things."""
    ids = set()
    for value in (float("inf"), float("-inf"), float("nan"), None, 0.0):
        benchmark = dataclasses.replace(job().benchmark, columns={"image": value})
        ids.add(RunFolder(dataclasses.replace(job(), benchmark=benchmark)).id)
    assert len(ids) == 5


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A task file of the user's own and its code, in a folder that is included."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# what it is\ntask: mine\ndataset_path: me/mine\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: question\ndoc_to_target: answer\nprocess_results: !function code.score\n"
        "metric_list:\n  - {metric: points, aggregation: mean, higher_is_better: true}\nmetadata: {version: 1.0}\n"
    )
    (folder / "code.py").write_text("def score(doc, results):\n    return {'points': 1.0}\n")
    return folder


def named(folder: Path, weights, about: dict | None = None) -> str:
    catalogue.settings.cache_clear()
    benchmark = BenchmarkSettings(name="mine", tasks=("mine",), include=(str(folder),), about=about or {})
    return RunFolder(dataclasses.replace(parse([f"backbone.pretrained={weights}"]), benchmark=benchmark)).id


def test_a_comment_names_no_other_run_and_a_version_does(own_task, weights):
    first, file = named(own_task, weights), own_task / "mine.yaml"
    file.write_text(file.read_text().replace("# what it is", "# what it is, in other words"))
    (own_task / "code.py").write_text((own_task / "code.py").read_text() + "# nothing more\n")
    assert named(own_task, weights) == first
    file.write_text(file.read_text().replace("version: 1.0", "version: 1.1"))
    assert named(own_task, weights) != first
    file.write_text(file.read_text().replace("version: 1.1", "version: 1.0").replace("metric: points", "metric: marks"))
    assert named(own_task, weights) != first


def test_a_comment_in_the_code_names_no_other_run(weights, data, tmp_path):
    """Two copies of vtc whose files differ in comments and docstrings alone."""
    import os
    import subprocess
    import sys

    root, ids = shipped.root(), []
    code = (
        "import sys; from vtc.configuration import parse; from vtc.evaluation.run_folder import RunFolder; "
        "run = RunFolder(parse(sys.argv[1:])); print(run.id, run.costs_id, run.code())"
    )
    shutil.copytree(root / "vtc", tmp_path / "vtc", ignore=shutil.ignore_patterns("__pycache__", "_shipped"))
    for folder in ("conf", "benchmarks/tasks", "benchmarks/pocket"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(root / folder) if folder != "benchmarks/tasks" else shutil.copytree(
            root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    words = ["method=fastv", "tokens=16", f"backbone.pretrained={weights}", f"benchmark.data={data}"]
    for change in (False, True):
        if change:
            for file in [*tmp_path.rglob("vtc/**/*.py"), *tmp_path.glob("benchmarks/tasks/*")]:
                if file.is_file():
                    file.write_text(file.read_text() + "# one more comment\n")
            fastv = tmp_path / "vtc/methods/fastv.py"
            fastv.write_text(fastv.read_text().replace('"""', '"""In other words. ', 1))
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        ids.append(done.stdout.split())
    assert ids[0][:2] == ids[1][:2], "the run and its costs are the same"
    assert ids[0][2] != ids[1][2], "the record says that the files are others"


def test_what_a_suite_says_of_licences_and_of_other_tasks_names_no_other_run(own_task, weights):
    plain = named(own_task, weights, {"mine": {"metric": "points", "scale": 2000, "licence": "unknown"}})
    same = {"mine": {"metric": "points", "scale": 2000, "licence": "known"}, "gqa": {}}
    assert named(own_task, weights, same) == plain
    assert named(own_task, weights, {"mine": {"metric": "points", "scale": 2800}}) != plain
    assert named(own_task, weights, {"mine": {"metric": "points", "scale": 2000, "together": 2}}) != plain


def test_more_costs_than_asked_for_are_enough(tmp_path):
    """What was measured in full is not measured again for less; results of before there were levels hold."""
    from vtc.configuration import parse
    from vtc.identity import COSTS
    from vtc.job import COST_LEVELS

    folders = {level: RunFolder(parse(["method=fastv", "tokens=16", f"costs={level}"])) for level in COST_LEVELS}
    assert len({folder.id for folder in folders.values()}) == 1 and "costs" not in folders["quick"].job.deciding(COSTS)
    hold = {
        (asked, there): folders[asked].costs_hold({"run": {"costs_id": folders[there].costs_id}})
        for asked in COST_LEVELS
        for there in COST_LEVELS
    }
    assert hold == {(a, b): COST_LEVELS.index(b) >= COST_LEVELS.index(a) for a, b in hold}
    assert not folders["none"].costs_hold({"run": {}})
