"""`evaluate`: from a configuration to its result, with a backbone that has fresh weights."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from vtc import profiling, results
from vtc.configuration import parse
from vtc.errors import MethodFailure
from vtc.evaluation import evaluate, run_folder
from vtc.evaluation import run as running
from vtc.interface import TokenPruner
from vtc.job import uncompressed
from vtc.registry import methods
from vtc.settings import ProfileSettings
from vtc.statistics import compare

TASKS = ["pocket_existence", "pocket_captions", "pocket_retrieval", "pocket_hard_captions"]
QUICK = ProfileSettings(batch_size=2, prompt_tokens=24, new_tokens=(2, 4), repeats=1, first_token_repeats=2)


@pytest.fixture(scope="module")
def config(weights, data, tmp_path_factory):
    """`config(*overrides)`: a run of a few samples of four tasks."""
    output = tmp_path_factory.mktemp("outputs")

    def make(*overrides):
        given = [f"output_dir={output}", f"benchmark.data={data}", f"benchmark.tasks=[{','.join(TASKS)}]"]
        given += ["benchmark.limit=6", f"backbone.pretrained={weights}", "backbone.device=cpu", "batch_size=4"]
        return dataclasses.replace(parse([*given, *overrides]), profile=QUICK)

    return make


@pytest.fixture(scope="module")
def finished(config):
    return evaluate(config("method=fastv", "method.layer=2", "tokens=16"))


def test_the_result_has_every_section_and_states_what_was_kept(finished):
    result = results.load(finished)
    assert {
        "id",
        "created",
        "command",
        "versions",
        "git_commit",
        "code",
        "seed",
        "device",
        "attention",
        "dtype",
        "batch_size",
    } <= set(result["run"])
    assert {"vtc", "torch", "transformers", "lmms_eval"} <= set(result["run"]["versions"])
    assert result["config"]["tokens"] == 16 and "hydra" not in result["config"]
    assert result["method"] == {**result["method"], "name": "fastv", "tokens": 16, "layers": [2]}
    budget = result["budget"]
    assert budget["requested"] == {"tokens": 16}
    assert (budget["visual_tokens_in"], budget["visual_tokens_out"]) == (144, 16)
    assert budget["layer_tokens"] == [144, 144, 16, 16, 16, 16]
    average = (2 * 144 + 4 * 16) / 6
    assert budget["layer_average_tokens"] == pytest.approx(average)
    assert budget["compression_ratio"] == pytest.approx(144 / average)  # LLaVolta, eq. 3
    assert 0 < budget["flops_ratio"] < 1
    assert result["bad_samples"] == {"count": 0, "samples": []}
    wanted = {
        "vision_flops",
        "prefill_flops",
        "decode_flops_per_token",
        "ttft_ms",
        "decode_ms_per_token",
        "throughput",
        "speedup",
    }
    wanted |= {"peak_memory_bytes", "extra_parameters", "storage_bytes_per_image"}
    assert wanted <= set(result["efficiency"])


def test_scores_stand_beside_floors_and_baseline(finished):
    result = results.load(finished)
    assert [row["task"] for row in result["scores"]] == TASKS
    baselines = list((finished.parent.parent / "baselines").glob("*/result.json"))
    assert len(baselines) == 1
    plain = {row["task"]: row for row in results.load(baselines[0])["scores"]}
    for row in result["scores"]:
        assert {"task", "metric", "value", "stderr", "n", "baseline", "retained", "p_value", "blind", "bag"} <= set(row)
        assert row["n"] == 6 and row["baseline"] == plain[row["task"]]["value"]
        assert row["retained"] == (pytest.approx(row["value"] / row["baseline"]) if row["baseline"] else None)
        assert 0 < row["p_value"] <= 1
    assert plain["pocket_existence"]["retained"] in (None, 1.0) and plain["pocket_existence"]["p_value"] is None
    means = result["means"]
    assert means["understanding"]["tasks"] == 2 and means["discriminative"]["tasks"] == 2
    values = [r["value"] for r in result["scores"] if r["group"] == "understanding"]
    assert means["understanding"]["value"] == pytest.approx(sum(values) / 2)


def test_samples_and_summary_lie_beside_it(finished):
    frame = results.samples(finished)
    assert frame.groupby("task").size().to_dict() == dict.fromkeys(TASKS, 6)
    generated = frame[frame["task"] == "pocket_existence"]
    assert set(generated["tokens_kept"]) == {16} and set(generated["tokens_in"]) == {144}
    summary = (finished.parent / results.SUMMARY).read_text()
    assert (
        "| pocket_existence | accuracy | 6 |" in summary and "mean, understanding" in summary and "miniature" in summary
    )
    assert not (finished.parent / run_folder.PARTIAL).exists()


def test_a_finished_run_is_read_not_repeated(finished, config, monkeypatch, capsys):
    monkeypatch.setattr(running, "make", lambda *_: pytest.fail("scored again"))
    before = finished.stat().st_mtime_ns
    assert evaluate(config("method=fastv", "method.layer=2", "tokens=16")) == finished
    assert finished.stat().st_mtime_ns == before
    out = capsys.readouterr().out
    assert "already scored" in out and "pocket_existence" in out


def test_the_baseline_is_made_once(finished, config, monkeypatch, capsys):
    made = []
    original = running.make
    monkeypatch.setattr(running, "make", lambda run, *rest: made.append(run.job.method.name) or original(run, *rest))
    path = evaluate(config("method=random", "tokens=16"))
    assert made == ["random"] and "reused" in capsys.readouterr().out
    assert results.load(path)["baseline"] == results.load(finished)["baseline"]
    assert evaluate(config("method=none")).parent.parent.name == "baselines" and made == ["random"]


def test_an_interrupted_run_goes_on_where_it_stopped(config, monkeypatch, capsys):
    from vtc.evaluation import harness

    original, tasks = harness.run_task, []

    def interrupted(model, spec, manager):
        if len(tasks) == 2:
            raise KeyboardInterrupt
        tasks.append(spec.name)
        return original(model, spec, manager)

    asked = config("method=avgpool", "tokens=16")
    monkeypatch.setattr(harness, "run_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked)
    assert tasks == TASKS[:2]
    monkeypatch.setattr(
        harness, "run_task", lambda model, spec, manager: tasks.append(spec.name) or original(model, spec, manager)
    )
    path = evaluate(asked)
    assert tasks == TASKS  # none twice
    assert "kept from the interrupted run" in capsys.readouterr().out
    assert [row["task"] for row in results.load(path)["scores"]] == TASKS


def test_resume_false_scores_again(finished, config, monkeypatch):
    made = []
    original = running.make
    monkeypatch.setattr(running, "make", lambda run, *rest: made.append(run.id) or original(run, *rest))
    again = evaluate(config("method=fastv", "method.layer=2", "tokens=16", "resume=false"))
    assert len(made) == 1 and again == finished
    assert results.samples(again)["score"].tolist() == results.samples(finished)["score"].tolist()


def test_comparing_two_runs(finished, config):
    other = evaluate(config("method=random", "tokens=16"))
    table = compare(finished, other)
    assert set(table) == {*TASKS, "understanding", "discriminative", "all"}
    assert table["all"]["n"] == 24 and table["pocket_existence"]["n"] == 6
    scores = {r["task"]: r["value"] for r in results.load(finished)["scores"]}
    for task in TASKS:
        assert table[task]["a"] == pytest.approx(scores[task])
        assert table[task]["difference"] == pytest.approx(table[task]["a"] - table[task]["b"])
    same = compare(finished, finished)
    assert all(row["p_value"] == 1.0 and row["difference"] == 0.0 for row in same.values())


def test_bad_samples_are_in_the_file_and_on_the_screen(config, data, tmp_path, capsys):
    from pocket_rows import make_rows, write_rows

    rows = make_rows("pocket_existence")
    rows[1]["image"]["bytes"] = b"not an image"
    write_rows(tmp_path / "pocket_existence.parquet", rows)
    path = evaluate(
        config(
            "method=none",
            "benchmark.tasks=[pocket_existence]",
            f"benchmark.data={tmp_path}",
            f"output_dir={tmp_path}/out",
        )
    )
    result = results.load(path)
    assert result["bad_samples"]["count"] == 1 and result["bad_samples"]["samples"][0]["id"] == "existence-1"
    assert result["scores"][0]["n"] == 5 and result["scores"][0]["bad"] == 1
    out = capsys.readouterr().out
    assert "sample existence-1 set aside" in out and "1 bad samples are not in the scores" in out


def test_a_method_that_fails_is_the_cause_and_no_sample_is(config, capsys, monkeypatch):
    class Fails(TokenPruner):
        name = "fails"

        def score(self, tokens, context):
            raise ZeroDivisionError("mine")

    monkeypatch.setitem(methods._registered, "fails", Fails)
    where = r"\(test_evaluate.py, line \d+, in score\)"
    with pytest.raises(MethodFailure, match=f"method=fails fails: ZeroDivisionError: mine {where}; see action=check"):
        evaluate(config("method=fails", "tokens=16", "benchmark.tasks=[pocket_existence]", "costs=none"))
    assert "set aside" not in capsys.readouterr().out


def test_importing_the_package_imports_nothing_heavy():
    heavy = "('torch', 'transformers', 'lmms_eval', 'datasets')"
    code = f"import sys, vtc.evaluation; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_command_of_a_baseline_compresses_nothing():
    given = ["method=fastv", "method.layer=3", "tokens=16", "backbone=pocket", "benchmark.limit=5", "checkpoint=null"]
    assert uncompressed(tuple(given)) == ("backbone=pocket", "benchmark.limit=5", "method=none")


def test_new_costs_are_measured_beside_the_scores_there_are(finished, config, monkeypatch, capsys):
    """A formula for costs that is another one costs seconds, not the hours of scoring."""
    from vtc.evaluation import harness

    before, samples = results.load(finished), results.samples(finished)
    monkeypatch.setattr(profiling, "VERSION", profiling.VERSION + 1)
    monkeypatch.setattr(profiling, "efficiency", lambda *_: {**before["efficiency"], "flops_ratio": 0.125})
    monkeypatch.setattr(harness, "run_task", lambda *_: pytest.fail("scored again"))
    again = config("method=fastv", "method.layer=2", "tokens=16")
    assert evaluate(again) == finished
    after = results.load(finished)
    assert after["run"]["id"] == before["run"]["id"] and after["run"]["costs_id"] != before["run"]["costs_id"]
    assert after["efficiency"]["flops_ratio"] == after["budget"]["flops_ratio"] == 0.125
    assert (after["scores"], after["means"]) == (before["scores"], before["means"])
    assert results.samples(finished).equals(samples)
    assert "measuring them again" in capsys.readouterr().out
    monkeypatch.setattr(profiling, "efficiency", lambda *_: pytest.fail("measured again"))
    assert evaluate(again) == finished, "and once is enough"


@pytest.mark.parametrize("broken", [None, "baseline", "fastv"])
def test_no_model_is_left_when_the_next_one_is_loaded(broken, weights, data, tmp_path, monkeypatch, capsys):
    """A sweep's jobs, their baselines, and one that fails: jobs of the same settings share a model, of which one at a
    time is in memory, and none when the sweep is over."""
    import gc
    import weakref

    from transformers import LlavaForConditionalGeneration

    from vtc.cli import main
    from vtc.evaluation.model import VtcModel

    models, left = [], []
    load, answer = LlavaForConditionalGeneration.from_pretrained, VtcModel.generate_until

    def loading(*args, **kwargs):
        left.append(sum(model() is not None for model in models))
        loaded = load(*args, **kwargs)
        models.append(weakref.ref(loaded[0]))
        return loaded

    def answering(model, requests):
        if broken == ("baseline" if model.method.name == "none" and len(models) == 1 else model.method.name):
            raise RuntimeError("on purpose")
        return answer(model, requests)

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", loading)
    monkeypatch.setattr(VtcModel, "generate_until", answering)
    monkeypatch.setattr("vtc.evaluation.run.ProfileSettings", lambda **_: QUICK)
    words = ["-m", "backbone.dtype=float32,bfloat16", "method=random,fastv", "tokens=16", f"output_dir={tmp_path}"]
    words += ["benchmark.tasks=[pocket_existence]", "benchmark.limit=2", f"backbone.pretrained={weights}"]
    assert (main([*words, f"benchmark.data={data}", "backbone.device=cpu"]) == 0) is (broken is None)
    assert len(models) == 2 and left == [0, 0]
    gc.collect()
    assert not any(model() for model in models)
