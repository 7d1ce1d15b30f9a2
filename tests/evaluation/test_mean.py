"""`budget=mean`: the pictures of a task have the method's tokens in the mean, and the result says how they differ."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
from test_adapter import adapter, build, requests_of

from vtc import results
from vtc.budget import relative_flops
from vtc.configuration import parse
from vtc.engine import Complexities
from vtc.errors import UserError
from vtc.evaluation import evaluate
from vtc.interface.spread import scale_of
from vtc.methods import make
from vtc.settings import ProfileSettings

pytestmark = pytest.mark.usefixtures("manager")
QUICK = ProfileSettings(batch_size=2, prompt_tokens=24, new_tokens=(2, 4), repeats=0, first_token_repeats=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["pocket_counting", "pocket_captions"])
def test_each_picture_has_what_its_complexity_gives_it(task: str, workers: int, backbone, manager, data) -> None:
    method = build("prunesid", 16, backbone)
    model = adapter(backbone, method, batch_size=3, spreads=True, workers=workers)
    asked = requests_of(model, task, manager, data, 8)
    complexity = []
    for n, request in enumerate(asked):  # one by one
        seen = Complexities()
        seen.add_images(backbone, method, model._read(n, request, lambda pixels: None).images)
        complexity += seen.complexity
    model.generate_until(asked)
    left = [model.kept[task, int(request.doc_id)].tokens_out for request in asked]
    scale = scale_of(complexity, [144] * 8, 16)
    assert left == [min(144, max(1, int(scale * own))) for own in complexity]
    alike = max(complexity.count(own) for own in complexity)
    assert len(set(left)) > 1 and 0 <= 8 * 16 - sum(left) < max(alike, 2)
    assert method.scale is None and not model.bad
    plain = adapter(backbone, method, batch_size=3)
    plain.generate_until(requests_of(plain, task, manager, data, 8))
    assert {kept.tokens_out for kept in plain.kept.values()} == {16}


def test_embeddings_are_of_the_same_mean(backbone, manager, data) -> None:
    method = build("prunesid", 16, backbone)
    model = adapter(backbone, method, batch_size=3, spreads=True)
    seen: list[float | None] = []
    embed = model._embed
    model._embed = lambda questions: (seen.append(method.scale), embed(questions))[1]
    answers = model.generate_until(requests_of(model, "pocket_hard_captions", manager, data, 4))
    assert len(answers) == 4 and not model.bad and len(set(seen)) == 1 and seen[0] is not None


def test_the_result_states_mean_and_spread(weights, data, tmp_path) -> None:
    given = [f"output_dir={tmp_path}", f"benchmark.data={data}", "benchmark.tasks=[pocket_counting,pocket_choice]"]
    given += ["benchmark.limit=6", f"backbone.pretrained={weights}", "backbone.device=cpu", "batch_size=4"]
    job = dataclasses.replace(parse([*given, "method=prunesid", "tokens=16", "budget=mean"]), profile=QUICK)
    assert job.label == "prunesid mean tokens=16"
    path = evaluate(job)
    assert path.parent.name.startswith("pocket-prunesid-mean-tokens16-")
    result, left = results.load(path), results.samples(path)["tokens_kept"].tolist()
    budget = result["budget"]
    assert result["config"]["budget"] == "mean" and budget["requested"] == {"tokens": 16}
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
