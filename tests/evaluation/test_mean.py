"""`budget=mean`: the pictures of a task have the method's tokens in the mean, and the result says how they differ."""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import pytest
from test_adapter import adapter, build, requests_of

from vtc import results
from vtc.budget import relative_flops
from vtc.configuration import parse
from vtc.engine import Complexities
from vtc.errors import UserError
from vtc.evaluation import evaluate, harness
from vtc.interface.spread import scale_of
from vtc.methods import make
from vtc.methods.prunesid import PruneSID
from vtc.settings import ProfileSettings

pytestmark = pytest.mark.usefixtures("manager")
QUICK = ProfileSettings(batch_size=2, prompt_tokens=24, new_tokens=(2, 4), repeats=0, first_token_repeats=0)


@pytest.fixture
def method(backbone):
    """A random tower finds all pictures alike; this one's method makes much of what tells them apart."""
    built = build("prunesid", 16, backbone)
    rated = built.rate_images
    built.rate_images = lambda tower: rated(tower) ** 40
    return built


def complexities(model, method, asked) -> list[float]:
    """Of each request's picture by itself."""
    seen = Complexities()
    for n, request in enumerate(asked):
        seen.add_images(model.backbone, method, model._read(n, request, lambda pixels: None).images)
    return seen.complexity


def owed(complexity: list[float], tokens: int = 16) -> list[int]:
    """What they have in the mean, held to it: the next one to gain a token would be too many."""
    scale = scale_of(complexity, [144] * len(complexity), tokens)
    counts = [min(144, max(1, int(scale * own))) for own in complexity]
    alike = max(complexity.count(own) for own in complexity)
    assert 0 <= len(counts) * tokens - sum(counts) < max(alike, 2) and len(set(counts)) > 1
    return counts


def left_of(model, asked) -> list[float]:
    return [model.kept[str(request.task_name), int(request.doc_id)].tokens_out for request in asked]


@pytest.mark.parametrize(("rows", "workers"), [(1, 0), (3, 0), (3, 2), (8, 0)])
@pytest.mark.parametrize("task", ["pocket_counting", "pocket_captions"])
def test_each_picture_has_what_its_complexity_gives_it(task, rows, workers, method, backbone, manager, data) -> None:
    model = adapter(backbone, method, batch_size=rows, spreads=True, workers=workers)
    asked = requests_of(model, task, manager, data, 8)
    model.generate_until(asked)
    assert left_of(model, asked) == owed(complexities(model, method, asked))
    assert method.scale is None and not model.bad
    plain = adapter(backbone, method, batch_size=rows)
    plain.generate_until(requests_of(plain, task, manager, data, 8))
    assert {kept.tokens_out for kept in plain.kept.values()} == {16}


def test_the_mean_is_that_of_the_samples_within_the_limit(method, backbone, manager, data) -> None:
    for limit in (4, 7):
        model = adapter(backbone, method, batch_size=2, spreads=True)
        asked = requests_of(model, "pocket_counting", manager, data, limit)
        model.generate_until(asked)
        assert len(asked) == limit and left_of(model, asked) == owed(complexities(model, method, asked))


def test_each_of_several_tasks_has_the_mean(method, backbone, manager, data) -> None:
    """lmms-eval's own command asks the questions of all of them at once."""
    model = adapter(backbone, method, batch_size=4, spreads=True)
    tasks = [requests_of(model, task, manager, data, n) for task, n in (("pocket_counting", 5), ("pocket_choice", 7))]
    model.generate_until([request for pair in itertools.zip_longest(*tasks) for request in pair if request])
    for asked in tasks:
        assert left_of(model, asked) == owed(complexities(model, method, asked))


def test_a_broken_picture_is_in_no_mean(method, backbone, manager, data, monkeypatch) -> None:
    model = adapter(backbone, method, batch_size=4, spreads=True)
    asked = requests_of(model, "pocket_counting", manager, data, 6)
    expected = owed(complexities(model, method, asked[:2] + asked[3:]))
    read = model._read

    def failing(index, request, room):
        if index == 2:
            raise OSError("cut")
        return read(index, request, room)

    monkeypatch.setattr(model, "_read", failing)
    model.generate_until(asked)
    assert [bad.error for bad in model.bad] and left_of(model, asked[:2] + asked[3:]) == expected


def test_lmms_evals_own_processes_are_refused(monkeypatch) -> None:
    from vtc.cli.lmms_eval_model import RegisteredModel

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="budget=mean: 2 processes were started, and lmms-eval shows each a part"):
        RegisteredModel(method="prunesid", tokens=16, budget="mean")


def test_embeddings_are_of_the_same_mean(backbone, manager, data) -> None:
    method = build("prunesid", 16, backbone)
    model = adapter(backbone, method, batch_size=3, spreads=True)
    seen: list[float | None] = []
    embed = model._embed
    model._embed = lambda questions: (seen.append(method.scale), embed(questions))[1]
    answers = model.generate_until(requests_of(model, "pocket_hard_captions", manager, data, 4))
    assert len(answers) == 4 and not model.bad and len(set(seen)) == 1 and seen[0] is not None


def test_the_result_states_mean_and_spread(weights, data, tmp_path, monkeypatch) -> None:
    rate = PruneSID.rate_images
    monkeypatch.setattr(PruneSID, "rate_images", lambda self, tower: rate(self, tower) ** 40)
    given = [f"output_dir={tmp_path}", f"benchmark.data={data}", "benchmark.tasks=[pocket_counting,pocket_choice]"]
    given += ["benchmark.limit=6", f"backbone.pretrained={weights}", "backbone.device=cpu", "batch_size=4"]
    job = dataclasses.replace(parse([*given, "method=prunesid", "tokens=16", "budget=mean"]), profile=QUICK)
    assert job.label == "prunesid mean tokens=16"
    path = evaluate(job)
    assert path.parent.name.startswith("pocket-prunesid-mean-tokens16-")
    result, left = results.load(path), results.samples(path)["tokens_kept"].tolist()
    budget = result["budget"]
    assert len(set(left)) > 2 and result["config"]["budget"] == "mean" and budget["requested"] == {"tokens": 16}
    assert budget["visual_tokens_out"] == pytest.approx(statistics.fmean(left)) and statistics.fmean(left) <= 16
    costs = [relative_flops(make("prunesid", int(n), job.shape)) for n in left]
    assert budget["spread"] == {
        "tokens_sd": pytest.approx(statistics.pstdev(left)),
        "tokens_least": min(left),
        "tokens_most": max(left),
        "flops_ratio": pytest.approx(statistics.fmean(costs)),
    }
    assert result["efficiency"]["visual_tokens_out"] == 16
    summary = (path.parent / results.SUMMARY).read_text()
    assert "prunesid, 16 tokens in the mean on pocket" in summary and f", {min(left):g} to {max(left):g} |" in summary
    same = dataclasses.replace(parse([*given, "method=prunesid", "tokens=16"]), profile=QUICK)
    assert evaluate(same) != path and "spread" not in results.load(evaluate(same))["budget"]


def test_an_interrupted_run_goes_on_with_the_same_means(weights, data, tmp_path, monkeypatch) -> None:
    given = [f"benchmark.data={data}", "benchmark.tasks=[pocket_counting,pocket_choice]", "benchmark.limit=5"]
    given += [f"backbone.pretrained={weights}", "backbone.device=cpu", "batch_size=4"]

    def run(folder):
        asked = parse([*given, f"output_dir={tmp_path / folder}", "method=prunesid", "tokens=16", "budget=mean"])
        return evaluate(dataclasses.replace(asked, profile=QUICK))

    def interrupted(model, spec, manager):
        if spec.name == "pocket_choice" and model.spreads:
            raise KeyboardInterrupt
        return run_task(model, spec, manager)

    rate, run_task = PruneSID.rate_images, harness.run_task
    monkeypatch.setattr(PruneSID, "rate_images", lambda self, tower: rate(self, tower) ** 40)
    whole = results.samples(run("whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness, "run_task", interrupted)
        run("broken")
    again = results.samples(run("broken"))
    assert again["tokens_kept"].tolist() == whole["tokens_kept"].tolist() and again["tokens_kept"].nunique() > 1
    for _, left in again.groupby("task")["tokens_kept"]:
        assert 79 <= left.sum() <= 80


@pytest.mark.parametrize("action", ["train", "profile", "tune", "demo"])
def test_actions_without_a_set_of_images_refuse_it(action: str) -> None:
    with pytest.raises(UserError, match=f"budget=mean, action={action}: which images have the mean"):
        parse([f"action={action}", "method=prunesid", "tokens=16", "budget=mean"])


def test_a_benchmark_that_does_not_say_its_images_refuses_it() -> None:
    with pytest.raises(UserError, match="budget=mean, benchmark=mteb: mteb doesn't say beforehand"):
        parse(["method=prunesid", "tokens=16", "budget=mean", "benchmark=mteb", "benchmark.tasks=[Winoground]"])


def test_it_is_refused_before_anything_loads() -> None:
    with pytest.raises(UserError, match="budget=mean: fastv leaves every image as many tokens"):
        parse(["method=fastv", "tokens=16", "budget=mean"]).check()
    with pytest.raises(UserError, match="budget=some: allowed: each, mean"):
        parse(["method=prunesid", "tokens=16", "budget=some"])
