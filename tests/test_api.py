"""The Python front door: each verb against what the engine, the command line or a plain model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import vtc
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.pocket.scenes import draw_scene, scene_rng
from vtc.testing import batch, tiny_backbone

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return draw_scene(scene_rng(0, "api", 0), "test", things=3).image()


@pytest.fixture(scope="module")
def model() -> vtc.Model:
    return vtc.load("pocket", method="fastv", tokens=16)


def test_an_answer_is_what_the_engine_gives(model, image, tmp_path: Path) -> None:
    answer = model.generate(image, QUESTION)
    backbone, method = parse(["method=fastv", "tokens=16"]).load()
    inputs = backbone.inputs([QUESTION], [[image]])
    with torch.inference_mode(), vtc.engine.compressing(backbone, method) as engine:
        ids = backbone.model.generate(**inputs, max_new_tokens=64)
    start = inputs["input_ids"].shape[1]
    assert answer.text == backbone.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    first = int(backbone.visual(inputs["input_ids"])[0].nonzero()[0])
    assert answer.kept == tuple(place - first for place in engine.report.kept[0]) and len(answer.kept) == 16
    assert (answer.tokens_in, answer.tokens_out, answer.layer_tokens) == (144, 16, (144, 144, 16, 16, 16, 16))
    image.save(tmp_path / "scene.png")
    assert (
        model.generate(tmp_path / "scene.png", QUESTION)
        == answer
        == model.generate(str(tmp_path / "scene.png"), QUESTION)
    )


def test_its_costs_are_those_of_the_profile(model, image) -> None:
    from vtc.interface import flops

    answer, shape = model.generate(image, QUESTION, max_new_tokens=1), model.backbone.shape
    words = model.backbone.inputs([QUESTION], [[image]])["input_ids"].shape[1] - 144
    by_hand = sum(flops.layer(shape, n + words) for n in (144, 144, 16, 16, 16, 16)) + flops.head(shape)
    assert answer.prefill_flops == pytest.approx(by_hand)
    assert answer.flops_ratio == pytest.approx(by_hand / (6 * flops.layer(shape, 144 + words) + flops.head(shape)))
    plain = vtc.load("pocket").generate(image, QUESTION, max_new_tokens=1)
    assert plain.flops_ratio == 1 and plain.kept == tuple(range(144)) and plain.tokens_out == 144


def test_what_is_left_of_an_image(model, image) -> None:
    compressed = model.compress(image, QUESTION)
    assert compressed.tokens.shape == (16, 128) and compressed.layer == 2
    assert compressed.kept == model.generate(image, QUESTION).kept and compressed.tokens_in == 144
    before = vtc.load("pocket", method="divprune", tokens=16)
    compressed = before.compress(image)
    (features,) = before.backbone.image_features(dict(before.backbone.inputs(["?"], [[image]])))
    torch.testing.assert_close(compressed.tokens, features[list(compressed.kept)])
    whole = vtc.load("pocket").compress(image)
    torch.testing.assert_close(whole.tokens, features)
    assert "reduce" not in vars(model.method), "nothing is left on the method"


def test_what_is_dropped_is_faded(model, image) -> None:
    shown, kept = model.show(image, QUESTION), model.compress(image, QUESTION).kept
    assert shown.size == image.size
    for place in range(144):
        corner = (8 * (place % 12) + 4, 8 * (place // 12) + 4)
        same = shown.getpixel(corner) == image.convert("RGB").getpixel(corner)
        assert same or place not in kept
    merged = vtc.load("pocket", method="avgpool", tokens=16).show(Image.new("RGB", (96, 96), "grey"))
    colour = {
        (row, column): merged.getpixel((8 * column + 4, 8 * row + 4)) for row in range(12) for column in range(12)
    }
    for row, column in colour:
        for other in {(row, column + 1), (row + 1, column)} & colour.keys():
            together = (row // 3, column // 3) == (other[0] // 3, other[1] // 3)
            assert (colour[row, column] == colour[other]) == together, "a group has a colour, its neighbours others"
    with pytest.raises(UserError, match="method=fwd2bot: keeps no visual token as it is"):
        vtc.load("pocket", method="fwd2bot", tokens=16).show(image)


def test_costs_and_scores_are_those_of_the_command_line(model, tmp_path: Path) -> None:
    costs = model.profile(repeats=1, first_token_repeats=1, batch_size=1, new_tokens=(2, 3))
    assert costs["visual_tokens_out"] == 16 and costs["layer_tokens"] == [144, 144, 16, 16, 16, 16]
    with pytest.raises(UserError, match="profile.repeat"):
        model.profile(repeat=1)
    result = model.evaluate("pocket", limit=2, output_dir=str(tmp_path), **{"benchmark.tasks": ["pocket_existence"]})
    assert result["method"]["name"] == "fastv" and result["budget"]["visual_tokens_out"] == 16
    assert [row["task"] for row in result["scores"]] == ["pocket_existence"] and result["scores"][0]["n"] == 2


def test_methods_with_weights_options_and_files_are_loaded(tmp_path: Path, monkeypatch) -> None:
    assert vtc.load("pocket", "fwd2bot", tokens=16).method.summary.abs().sum() > 0
    both = vtc.load("pocket", ["divprune", "fastv"], tokens=[36, 16], options={"fastv.layer": 3})
    assert both.method.name == "divprune+fastv" and repr(both).startswith("vtc.load('pocket', method='divprune+fastv'")
    assert parse(both.job.overrides) == both.job, "its command loads the same"
    monkeypatch.setattr(vtc.registry.methods, "_files", {})
    monkeypatch.setattr(vtc.plugins, "_loaded", {})
    folder = tmp_path / "with space"
    folder.mkdir()
    from vtc.authoring import rendered

    (folder / "mine.py").write_text(rendered("mine", "pruner")["mine.py"])
    assert vtc.load(method=f"{folder}/mine.py:Mine", tokens=9).method.tokens == 9
    for wrong, line in (
        ({"method": "fastvv"}, "did you mean 'fastv'"), ({"tokens": 4, "ratio": 0.5, "method": "fastv"}, "only one"),
        ({"method": "victor", "checkpoint": None}, "needs training"), ({"dtyp": "bf16"}, "unknown key 'dtyp'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            vtc.load("pocket", **wrong)


# ---------------------------------------------------------------------- a model that the user loaded
def test_a_model_of_the_user_s_is_compressed_and_left_as_it_was() -> None:
    tiny = tiny_backbone()
    model, inputs = tiny.model, batch(tiny)
    before, attributes = model(**inputs).logits, [{*vars(module)} for module in model.modules()]
    with torch.no_grad(), vtc.compressing(model, "fastv", tokens=5, layer=1) as engine:
        model.generate(**inputs, max_new_tokens=2)
        assert engine.report.tokens_out == [5, 5, 5] and engine.method.layer == 1
    assert torch.equal(model(**inputs).logits, before)
    assert [{*vars(module)} for module in model.modules()] == attributes
    with pytest.raises(RuntimeError, match="on purpose"), vtc.compressing(model, "random", ratio=0.25):
        raise RuntimeError("on purpose")
    assert torch.equal(model(**inputs).logits, before)
    ready = vtc.methods.build("divprune", 3, tiny.shape)
    with torch.no_grad(), vtc.compressing(model, ready) as engine:
        model(**inputs)
    assert engine.report.tokens_out == [3, 3, 3]


def test_what_cannot_be_compressed_is_refused() -> None:
    model = tiny_backbone().model
    for method, budget, line in (
        ("victor", {"tokens": 4}, r"method=victor: it needs training; vtc.load\("),
        ("fastvv", {}, "did you mean 'fastv'"), ("fastv", {"tokens": 17}, "tokens=17"),
        ("fastv", {"tokens": 4, "ratio": 0.5}, "only one"),
        (vtc.methods.build("random", 3, tiny_backbone().shape), {"tokens": 4}, "is made already"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line), vtc.compressing(model, method, **budget):
            pass
    assert "forward" not in vars(model.model.language_model)


def test_a_pipeline_works_inside() -> None:
    from transformers import pipeline

    backbone = parse([]).load()[0]
    ask = pipeline("image-text-to-text", model=backbone.model, processor=backbone.processor)
    picture = draw_scene(scene_rng(0, "api", 1), "test", things=2).image()
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}]
    plain = ask(text=messages, max_new_tokens=8, return_full_text=False)
    with vtc.compressing(backbone.model, "fastv", tokens=4) as engine:
        ask(text=messages, max_new_tokens=8, return_full_text=False)
        assert engine.report.tokens_out == [4]
    assert ask(text=messages, max_new_tokens=8, return_full_text=False) == plain


# ---------------------------------------------------------------------- its types (mypy holds these modules strictly)
def test_what_is_promised_to_type_checkers_is_there() -> None:
    stub = Path(vtc.__file__).with_suffix(".pyi").read_text()
    names = [line.rsplit(" as ", 1)[1] for line in stub.splitlines() if " as " in line]
    assert {*vtc.LAZY, "registry", "testing"} <= set(names)
    for name in names:
        assert getattr(vtc, name) is not None
