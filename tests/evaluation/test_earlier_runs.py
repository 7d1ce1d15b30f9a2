"""What is believed of what an earlier run left: results and tasks as that run wrote them, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from vtc import results
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.evaluation import evaluate, harness
from vtc.evaluation import run as running
from vtc.evaluation.reading import scores_of
from vtc.evaluation.run_folder import PARTIAL, RunFolder
from vtc.evaluation.sources import source_of
from vtc.evaluation.spec import TaskSpec
from vtc.settings import BenchmarkSettings, ProfileSettings

QUICK = ProfileSettings(batch_size=1, prompt_tokens=16, new_tokens=(2, 3), repeats=1, first_token_repeats=1)
TASKS = ("pocket_existence", "pocket_captions")


@pytest.fixture(scope="module")
def job(weights, data):
    """`job(folder, *overrides)`: four samples of two tasks."""

    def make(folder: Path, *overrides: str):
        given = [f"output_dir={folder}", f"benchmark.data={data}", f"benchmark.tasks=[{','.join(TASKS)}]"]
        given += ["benchmark.limit=4", f"backbone.pretrained={weights}", "backbone.device=cpu"]
        return dataclasses.replace(parse([*given, *overrides]), profile=QUICK)

    return make


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory) -> Path:
    """A run and its baseline."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate(job(folder, "method=random", "tokens=16"))
    return folder


@pytest.fixture
def outputs(finished, tmp_path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(finished, tmp_path / "outputs"))


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The methods of the runs that are scored, in their order, in a process that has scored none before."""
    methods: list[str] = []
    original = running.make
    monkeypatch.setattr(running, "make", lambda run, *rest: methods.append(run.job.method.name) or original(run, *rest))
    monkeypatch.setattr(running, "MADE", set())
    return methods


def baseline_in(outputs: Path) -> Path:
    (folder,) = (path for path in (outputs / "baselines").iterdir() if path.is_dir())
    return folder


def edited(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def other_scores(path: Path) -> None:
    frame = pd.read_parquet(path)
    frame["score"] = 1.0
    frame.to_parquet(path)


DAMAGE = {
    "samples gone": ("samples.parquet", Path.unlink, "samples.parquet is missing"),
    "samples cut": ("samples.parquet", cut, "samples.parquet is not as this run wrote it"),
    "samples empty": ("samples.parquet", lambda path: path.write_bytes(b""), "samples.parquet is not as"),
    "samples changed": ("samples.parquet", other_scores, "samples.parquet is not as this run wrote it"),
    "a score changed": (
        "result.json",
        lambda path: edited(path, lambda result: result["scores"][0].update(value=0.875)),
        "result.json is not as this run wrote it",
    ),
    "a digest gone": (
        "result.json",
        lambda path: edited(path, lambda result: result.pop("digest")),
        "result.json is not as this run wrote it",
    ),
    "a section gone": ("result.json", lambda path: edited(path, lambda r: r.pop("scores")), "not a result file"),
    "result cut": ("result.json", cut, "not a result file"),
    "result not UTF-8": ("result.json", lambda path: path.write_bytes(b"\xff\xfe{"), "not a result file"),
    "result nested": ("result.json", lambda path: path.write_bytes(b"[" * 100_000), "not a result file"),
}


@pytest.mark.parametrize(("name", "change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_baseline_is_made_anew_with_a_line(name, change, words, job, finished, outputs, made, capsys):
    change(baseline_in(outputs) / name)
    evaluate(job(outputs, "method=none"))
    assert made == ["none"] and words in capsys.readouterr().out
    before, after = (results.load(baseline_in(folder))["scores"] for folder in (finished, outputs))
    assert after == before and results.samples(baseline_in(outputs)).equals(results.samples(baseline_in(finished)))
    evaluate(job(outputs, "method=none"))
    assert made == ["none"], "and once is enough"


def test_a_method_makes_the_baseline_that_it_needs(job, outputs, made, capsys):
    (baseline_in(outputs) / results.SAMPLES).unlink()
    path = evaluate(job(outputs, "method=avgpool", "tokens=16"))
    assert made == ["none", "avgpool"] and "samples.parquet is missing; scored anew" in capsys.readouterr().out
    assert all(row["p_value"] is not None for row in results.load(path)["scores"])


def test_the_result_of_another_run_is_not_this_ones(job, outputs, made):
    (own,) = outputs.glob("pocket-random-*/result.json")
    for name in (results.RESULT, results.SAMPLES):
        shutil.copy(baseline_in(outputs) / name, own.parent)
    assert evaluate(job(outputs, "method=random", "tokens=16")) == own and made == ["random"]


def test_what_a_killed_run_left_undone_is_done(job, outputs, made):
    """Killed between the result and its summary, or while it wrote."""
    (folder,) = (path.parent for path in outputs.glob("pocket-random-*/result.json"))
    for place in (folder, baseline_in(outputs)):
        summary = (place / results.SUMMARY).read_text()
        (place / results.SUMMARY).unlink()
        (place / f".{results.SAMPLES}.x.part").write_bytes(b"half")
        (place / PARTIAL).mkdir()
        (place / PARTIAL / f".{TASKS[0]}.json.y.part").write_bytes(b"half")
        method = ["method=none"] if place.parent.name == "baselines" else ["method=random", "tokens=16"]
        evaluate(job(outputs, *method))
        assert (place / results.SUMMARY).read_text() == summary and not made
        assert sorted(p.name for p in place.iterdir()) == [results.RESULT, results.SAMPLES, results.SUMMARY]


# Interrupted ------------------------------------------------------------


def interrupt(monkeypatch, at: str) -> list[str]:
    """Ctrl-C at a task; returns the tasks that are begun."""
    original, begun = harness.run_task, []

    def run_task(model, spec, manager):
        begun.append(spec.name)
        if spec.name == at:
            raise KeyboardInterrupt
        return original(model, spec, manager)

    monkeypatch.setattr(harness, "run_task", run_task)
    return begun


@pytest.mark.parametrize(
    "change",
    [
        lambda path: edited(path, lambda partial: partial["scores"].update(value=0.875)),
        lambda path: edited(path, lambda partial: partial["scores"]["samples"][0].update(score=1.0)),
        lambda path: edited(path, lambda partial: partial.update(run="another")),
        lambda path: edited(path, lambda partial: partial.pop("digest")),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("[" * 100_000),
        cut,
    ],
)
def test_a_task_that_was_changed_is_scored_anew(change, job, finished, tmp_path, monkeypatch, capsys):
    asked = job(tmp_path, "method=none")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, TASKS[1])
        evaluate(asked)
    change(RunFolder(asked).partial(TASKS[0]))
    begun = interrupt(monkeypatch, "none")
    evaluate(asked)
    assert begun == list(TASKS) and "isn't as the interrupted run wrote it; scored anew" in capsys.readouterr().out
    assert results.load(baseline_in(tmp_path))["scores"] == results.load(baseline_in(finished))["scores"]


def test_resume_false_keeps_the_old_result_until_there_is_a_new_one(job, outputs, made, monkeypatch):
    (path,) = outputs.glob("pocket-random-*/result.json")
    old = path.read_bytes()
    again = job(outputs, "method=random", "tokens=16", "resume=false")
    for task in TASKS:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, task)
            evaluate(again)
        assert path.read_bytes() == old and results.samples(path) is not None
        RunFolder(job(outputs, "method=random", "tokens=16")).finished()
    made.clear()
    assert evaluate(again) == path and made == ["none", "random"], "the baseline it stands beside is made anew too"
    assert path.read_bytes() != old and results.load(path)["scores"] == json.loads(old)["scores"]
    evaluate(job(outputs, "method=avgpool", "tokens=16", "resume=false"))
    assert made == ["none", "random", "avgpool"], "by the jobs of one sweep once"


def test_killed_between_samples_and_result(job, tmp_path, made, monkeypatch):
    """The tasks that are kept make the result, and no answer is asked for again."""
    asked = job(tmp_path, "method=none")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        evaluate(asked)
    monkeypatch.setattr(harness, "run_task", lambda *_: pytest.fail("scored again"))
    assert results.load(evaluate(asked))["scores"] and made == ["none", "none"]
    assert not (baseline_in(tmp_path) / PARTIAL).exists()


# Nothing scored ------------------------------------------------------------


def test_a_run_in_which_nothing_could_be_scored_is_not_done(job, tmp_path, monkeypatch, capsys):
    from vtc.cli.command import main
    from vtc.evaluation.model import VtcModel

    def broken(*_):
        raise RuntimeError("no answer")

    asked = job(tmp_path, "method=none")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(VtcModel, "_generate", broken)
            with pytest.raises(
                UserError, match="baseline: nothing could be scored: all 8 samples were set aside, the "
            ):
                evaluate(asked)
        assert not list(tmp_path.rglob(results.RESULT))
    with monkeypatch.context() as patch:
        patch.setattr(VtcModel, "_generate", broken)
        assert main([*asked.overrides]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "nothing could be scored" in line]
    assert "the first: pocket_existence" in line and "RuntimeError: no answer" in line
    assert results.load(evaluate(asked))["bad_samples"]["count"] == 0


# Decoding ------------------------------------------------------------


def test_settings_of_a_checkpoint_do_not_change_answers(job, finished, weights, tmp_path, capsys):
    """Penalties and banned words would make another comparison of every checkpoint that brings some."""
    folder = Path(shutil.copytree(weights, tmp_path / "weights"))
    edited(folder / "generation_config.json", lambda config: config.update(
        repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=list(range(4, 60)), do_sample=True,
        temperature=0.3, max_length=3,
    ))  # fmt: skip
    path = evaluate(job(tmp_path / "out", "method=none", f"backbone.pretrained={folder}"))
    assert results.samples(path)["prediction"].equals(results.samples(baseline_in(finished))["prediction"])
    decoding = results.load(path)["run"]["decoding"]
    assert decoding["do_sample"] is False
    assert decoding["set_aside"] == {
        "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(4, 60)), "do_sample": True,
        "temperature": 0.3, "max_length": 3,
    }  # fmt: skip
    assert "answers are greedy; of the checkpoint's generation settings these are set aside" in capsys.readouterr().out
    assert results.load(baseline_in(finished))["run"]["decoding"] == {"do_sample": False, "set_aside": {}}


# Twice ------------------------------------------------------------


def test_a_task_counts_once(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: me/mine\n")
    (tmp_path / "other.yaml").write_text("task: other\ndataset_path: me/other\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask:\n- mine\n- other\n")

    def specs(*tasks: str):
        return source_of(BenchmarkSettings("mine", tasks, include=(str(tmp_path),))).specs(0)

    assert [spec.name for spec in specs("mine", "other")] == ["mine", "other"]
    for tasks, words in (
        (("mine", "mine"), "benchmark.tasks=mine: named twice, and would count twice"),
        (("both", "mine"), "benchmark.tasks=mine: mine is in both too, and would count twice"),
        (("other", "both"), "benchmark.tasks=both: other is in other too, and would count twice"),
    ):
        with pytest.raises(UserError, match=words):
            specs(*tasks)
    with pytest.raises(UserError, match="benchmark.tasks=pocket_choice: named twice"):
        source_of(BenchmarkSettings("pocket", ("pocket_choice", "pocket_counting", "pocket_choice"))).specs(0)


def test_a_file_in_pockets_layout_names_each_question_once(tmp_path):
    from pocket_rows import make_rows, write_rows

    file, rows = tmp_path / "pocket_choice.parquet", make_rows("pocket_choice")
    source = source_of(BenchmarkSettings("pocket", ("pocket_choice",), data=str(tmp_path)))
    write_rows(file, rows)
    source.check(None, ["pocket_choice"])
    for changed, words in (
        ({**rows[3], "id": rows[1]["id"]}, "row 3: id=choice-1: each row needs an id of its own"),
        ({**rows[3], "id": None}, "row 3: id=None"),
    ):
        write_rows(file, [*rows[:3], changed, *rows[4:]])
        with pytest.raises(UserError, match=words):
            source.check(None, ["pocket_choice"])
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="pocket_choice.parquet can't be read"):
        source.check(None, ["pocket_choice"])


def test_samples_of_a_data_set_with_repeated_ids_are_told_apart():
    """Upstream's sets and a group's tasks: what is paired with the baseline's is the question at the same place."""

    def sample(number: int, name: object) -> dict:
        doc = {"id": name} if name != "" else {}
        return {"doc_id": number, "doc": doc, "target": "x", "filtered_resps": ["y"], "accuracy": 1.0}

    def ids(samples: dict) -> list[str]:
        metrics = {name: {"accuracy,none": 1.0} for name in samples}
        logged = {"results": metrics, "samples": samples, "configs": {}}
        model = SimpleNamespace(kept={}, shown={}, bad=[], batch_size=1, rows=1)
        return [s.id for s in scores_of(TaskSpec("both"), logged, model).samples]

    assert ids({"a": [sample(0, "p"), sample(1, "q")]}) == ["p", "q"]
    assert ids({"a": [sample(0, "p"), sample(1, "p")]}) == ["a:0", "a:1"]
    assert ids({"a": [sample(0, None), sample(1, None)]}) == ["a:0", "a:1"]
    assert ids({"a": [sample(0, ""), sample(1, "")], "b": [sample(0, "")]}) == ["a:0", "a:1", "b:0"]
