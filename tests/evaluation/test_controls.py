"""Controls: a grey picture, and another sample's, in place of the right one."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image
from specs import spec_of

from vtc import results
from vtc.configuration import parse
from vtc.data.pictures import open_picture
from vtc.errors import UserError
from vtc.evaluation import controls, evaluate, harness
from vtc.evaluation.prompts import Prompt
from vtc.evaluation.run_folder import RunFolder
from vtc.identity import SCORES
from vtc.settings import ProfileSettings

GALLERY = [Image.new("RGB", (4, 6), (n, 0, 0)) for n in (10, 10, 20, 30)]


QUICK = ProfileSettings(batch_size=2, prompt_tokens=24, new_tokens=(2, 4), repeats=1, first_token_repeats=2)


@pytest.fixture(scope="module")
def config(weights, data, tmp_path_factory):
    """`config(*overrides)`: a run of a few samples of two tasks."""
    output = tmp_path_factory.mktemp("outputs")

    def make(*overrides):
        given = [
            f"output_dir={output}",
            f"benchmark.data={data}",
            "benchmark.tasks=[pocket_existence,pocket_retrieval]",
        ]
        given += ["benchmark.limit=4", f"backbone.pretrained={weights}", "backbone.device=cpu", "batch_size=4"]
        return dataclasses.replace(parse([*given, *overrides]), profile=QUICK)

    return make


def prompt(*images: Image.Image) -> Prompt:
    return Prompt(0, "what?", list(images), {})


def test_grey_has_the_size_and_nothing_else():
    shown = controls.without_content(Prompt(0, "", [GALLERY[0]], {}, [[GALLERY[1], GALLERY[2]]])).shown
    assert [image.size for image in shown] == [(4, 6)] * 3
    assert {color for image in shown for _, color in image.getcolors()} == {controls.MIDDLE}


def test_another_picture_is_never_the_same():
    asked = []

    def pictures_of(number: int) -> controls.Pictures:
        asked.append(number)
        return [GALLERY[number]], []

    other = controls.of_another(prompt(GALLERY[3]), 3, 4, pictures_of)
    assert asked == [1] and other.images[0] is GALLERY[1] and other.text == "what?"
    asked.clear()
    GALLERY[2], before = GALLERY[0], GALLERY[2]
    other = controls.of_another(prompt(GALLERY[0]), 0, 4, pictures_of)
    GALLERY[2] = before
    assert asked == [2, 3] and other.images[0].getpixel((0, 0)) == (30, 0, 0)
    with pytest.raises(ValueError, match=r"benchmark\.picture=other needs one"):
        controls.of_another(prompt(GALLERY[0]), 0, 1, pictures_of)


def test_the_picture_decides_the_scores_and_its_default_nothing(config):
    own, grey = config("method=fastv", "tokens=16"), config("method=fastv", "tokens=16", "benchmark.picture=grey")
    assert RunFolder(own).id == RunFolder(config("method=fastv", "tokens=16", "benchmark.picture=own")).id
    assert RunFolder(own).id != RunFolder(grey).id and grey.label == "fastv tokens=16 picture=grey"
    assert "picture" not in str(own.deciding(SCORES)), "results of before it are found again"
    assert grey.baseline().benchmark.picture == "own" and "picture" not in grey.baseline().command
    blind = config("method=none", "benchmark.picture=grey")
    assert not blind.is_baseline and blind.baseline().is_baseline


def test_another_value_is_refused():
    with pytest.raises(UserError, match=r"benchmark\.picture=black: allowed: own, grey, other"):
        parse(["benchmark.picture=black"])


@pytest.mark.parametrize("picture", [controls.OWN, controls.GREY, controls.OTHER])
@pytest.mark.parametrize("task", ["pocket_existence", "pocket_retrieval"])
def test_the_model_is_shown_that_picture(picture, task, oracle, manager, data):
    """The pictures that reach the model, against those of the test set."""
    model = oracle(picture=picture)
    answer, shown = model._answer, {}

    def watched(questions, requests, answers):
        shown.update({int(requests[q.index].doc_id): q.images[0] for q in questions})
        return answer(questions, requests, answers)

    model._answer = watched
    harness.run_task(model, spec_of(task, data=str(data), limit=6), manager)
    rows = model.task_dict[task]["test"]
    own = [open_picture(rows[n]["image"]).tobytes() for n in range(len(rows))]
    assert sorted(shown) == [*range(6)]
    for number, image in shown.items():
        if picture == controls.GREY:
            assert image.getcolors() == [(image.width * image.height, controls.MIDDLE)]
        else:
            assert image.tobytes() in own and (image.tobytes() == own[number]) == (picture == controls.OWN)


def test_a_control_stands_beside_the_run(config):
    """The baseline is that with the right pictures, made once; a result says which pictures were shown."""
    found = [
        results.load(evaluate(config("method=fastv", "tokens=16", f"benchmark.picture={p}"))) for p in ("own", "grey")
    ]
    assert [result["config"]["benchmark"]["picture"] for result in found] == ["own", "grey"]
    assert found[0]["baseline"] == found[1]["baseline"] and found[0]["run"]["id"] != found[1]["run"]["id"]
    for row, grey in zip(found[0]["scores"], found[1]["scores"], strict=True):
        assert row["baseline"] == grey["baseline"] and 0 <= grey["agreement"] <= 1
    assert "picture=grey" in found[1]["run"]["command"]
