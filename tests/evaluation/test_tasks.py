"""Every pocket task through the real lmms-eval."""

from __future__ import annotations

import itertools

import pytest
from pocket_rows import N, caption_of, make_rows, write_rows
from specs import spec_of

from vtc import shipped
from vtc.evaluation import harness
from vtc.evaluation.spec import TaskScores
from vtc.pocket import second

TASKS = [
    "pocket_existence", "pocket_counting", "pocket_attributes", "pocket_relations", "pocket_reading", "pocket_choice",
    "pocket_captions", "pocket_retrieval", "pocket_hard_captions",
]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_reference_answers_score_one_and_wrong_ones_nothing(task, oracle, manager, data):
    right = harness.run_task(oracle(True), spec_of(task, data=data), manager)
    assert right.value == pytest.approx(1.0) and right.n == N and not right.bad
    assert all(s.score == pytest.approx(1.0) for s in right.samples)
    wrong = harness.run_task(oracle(False), spec_of(task, data=data), manager)
    # One embedding for everything ties with every caption, and a tie is not a find.
    assert wrong.value == pytest.approx(0.0)
    assert [s.id for s in wrong.samples] == [f"{task.removeprefix('pocket_')}-{i}" for i in range(N)]


@pytest.mark.parametrize("task", second.TASKS)
def test_reference_answers_of_the_second_edition(task, oracle, tmp_path):
    """Right answers score one and wrong ones nothing, on a dozen samples as the test sets have them."""
    name = task.removeprefix("pocket2_")
    drawn = itertools.islice(second.drawn(name, "validation", seed=3), N)
    write_rows(tmp_path / f"{task}.parquet", [each.row() | {"id": f"{name}-{i}"} for i, each in enumerate(drawn)])
    manager = harness.task_manager([task])
    for right in (True, False):
        run = harness.run_task(oracle(right), spec_of(task, data=tmp_path), manager)
        assert run.value == pytest.approx(float(right)) and run.n == N and not run.bad, task
        clusters = [s.cluster for s in run.samples]
        assert clusters == ([str(i // 4) for i in range(N)] if name == "retrieval" else [""] * N)


def test_there_is_a_yaml_for_every_task_of_the_benchmark(tasks):
    assert {p.stem for p in shipped.path("benchmarks/tasks").glob("pocket2_*.yaml")} == {*second.TASKS}
    assert sorted(tasks) == sorted(TASKS)
    assert sorted(p.stem for p in shipped.path("benchmarks/tasks").glob("pocket_*.yaml")) == sorted(TASKS)


def test_samples_say_what_was_kept_and_floors_are_stated(oracle, manager, data):
    run = harness.run_task(oracle(), spec_of("pocket_counting", data=data), manager)
    assert run.floors == {"blind": pytest.approx(0.25), "bag": pytest.approx(0.5)}
    assert {(s.tokens_in, s.tokens_kept) for s in run.samples} == {(144, 16)} and run.layers == [144, 16]
    assert run.group == "understanding" and run.metric == "exact_match"
    captions = harness.run_task(oracle(), spec_of("pocket_captions", data=data), manager)
    assert captions.floors["bag"] == pytest.approx(1.0) and captions.floors["blind"] < 0.9
    assert set(captions.metrics) == {"CIDEr", "BLEU-4", "ROUGE-L"}


def test_existence_states_f1_and_the_share_of_yes(oracle, manager, data):
    metrics = harness.run_task(oracle(), spec_of("pocket_existence", data=data), manager).metrics
    assert metrics == {"accuracy": 1.0, "f1": 1.0, "yes_rate": 0.5}


def test_kinds_of_hard_captions_count_alike(oracle, manager, data, tmp_path):
    rows = make_rows("pocket_hard_captions")
    for r in rows:  # a wrong caption that is the right one can't be told from it
        if r["kind"] == "add":
            r["options"] = [r["answer"]]
    write_rows(tmp_path / "pocket_hard_captions.parquet", rows)
    run = harness.run_task(oracle(), spec_of("pocket_hard_captions", data=tmp_path), manager)
    assert run.metrics["add"] == 0.0 and run.metrics["swap"] == run.metrics["replace"] == 1.0
    assert run.value == pytest.approx(2 / 3)  # 6 of 12 samples are "add"
    assert {s.stratum for s in run.samples} == {"replace", "swap", "add"} and run.group == "discriminative"


def test_a_retrieved_caption_is_the_prediction(oracle, manager, data):
    run = harness.run_task(oracle(), spec_of("pocket_retrieval", data=data), manager)
    assert [s.prediction for s in run.samples] == [caption_of(i) for i in range(N)]


def test_limit(oracle, manager, data):
    assert harness.run_task(oracle(), spec_of("pocket_reading", limit=5, data=data), manager).n == 5


def test_nothing_is_written_where_the_user_is(oracle, manager, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harness.run_task(oracle(), spec_of("pocket_reading", data=data), manager)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_image_is_set_aside_by_name(oracle, manager, data, tmp_path):
    rows = make_rows("pocket_reading")
    rows[0]["image"]["bytes"] = b"\x89PNG broken"  # the first one, which harnesses look at before all others
    rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:400]
    write_rows(tmp_path / "pocket_reading.parquet", rows)
    run = harness.run_task(oracle(), spec_of("pocket_reading", data=tmp_path), manager)
    assert [b["id"] for b in run.bad] == ["reading-0", "reading-7"]
    assert "cannot identify image" in run.bad[0]["error"] and "truncated" in run.bad[1]["error"].lower()
    assert run.n == N - 2 and run.value == 1.0  # not scored as wrong
    assert [s.score for s in run.samples if s.error] == [None, None]


def test_a_sample_that_raises_is_set_aside_and_its_batch_answered(oracle, manager, data):
    model = oracle(break_on=("counting-3", "counting-8"))
    run = harness.run_task(model, spec_of("pocket_counting", data=data), manager)
    assert [b["id"] for b in run.bad] == ["counting-3", "counting-8"] and run.n == N - 2 and run.value == 1.0
    assert run.bad[0]["error"] == "RuntimeError: no answer to counting-3"
    again = harness.run_task(oracle(), spec_of("pocket_counting", data=data), manager)
    assert not again.bad and again.n == N  # nothing is left over for the next run


def test_a_task_in_which_everything_fails_has_no_score_and_ends_nothing(oracle, manager, data):
    model = oracle(break_on=tuple(f"choice-{i}" for i in range(N)))
    run = harness.run_task(model, spec_of("pocket_choice", data=data), manager)
    assert run.value is None and run.n == 0 and len(run.bad) == N and run.stderr() is None


def test_unknown_task():
    from vtc.errors import UserError

    with pytest.raises(UserError, match="benchmark.tasks=pocket_readin: unknown; .*'pocket_reading'"):
        harness.task_manager(["pocket_readin"])


def test_task_runs_survive_json(oracle, manager, data):
    import json

    run = harness.run_task(oracle(break_on=("choice-1",)), spec_of("pocket_choice", data=data), manager)
    assert TaskScores.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_task_of_several_kinds_is_scored_by_them():
    """Samples are weighed by their kind wherever they are compared; so must be the score that lmms-eval makes."""
    texts = {p.name: p.read_text() for p in shipped.path("benchmarks/tasks").glob("*.yaml")}
    kinds = {name: text for name, text in texts.items() if "strata: kind" in text and "metric_list" in text}
    assert len(kinds) >= 4
    for name, text in kinds.items():
        headline = text.split("headline: ")[1].split(",")[0]
        assert f"{{metric: {headline}, aggregation: !function utils.by_kind," in text, name
