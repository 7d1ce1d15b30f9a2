"""Answers from images compressed beforehand are those from the pictures: every method that can be stored, every family;
the others say why they can't."""

from __future__ import annotations

import pytest
import torch
from method_cases import BACKBONES, CASES, Case

from vtc.engine import answer, compress_images, compressing, decoding, embed_images, prefill
from vtc.engine.stored import Reading
from vtc.errors import SampleError, UserError
from vtc.testing.models import picture
from vtc.testing.runs import close, instance
from vtc.testing.tiny_llava import tiny_video_llava

QUESTIONS = ["what is this", "red circle left one two three what is in this image"]
NEW = 5
FAMILIES = BACKBONES | {"video_llava": tiny_video_llava}  # whose pictures are pictures here, no frames
# To tokens: all are kept, some, merged, both, made anew; those of a smaller picture; made of the tower's patches.
DONE = ("none", "random", "avgpool", "visionzip", "fwd2bot", "downsample", "qformer")
ONE_EACH = {
    (b, m.name): (b, m)
    for b, m in reversed(CASES)
    if b == "gqa" or (b not in ("pocket", "mha", "gemma3") and m.name in DONE)  # Gemma's can't be stored
}
WHY = {
    "depends on the question": {"cdpruner", "fastv", "sparsevlm", "pyramiddrop", "fitprune", "dart", "quecc", "vcc"},
    "others of its row": {"evs", "vidcom2", "dycoke", "avgpool+evs"},
    "keys and values of every layer": {"voco"},
    "read more than is left": {"victor", "llavolta", "kmeans"},
}


def _pictures(backbone):
    generator = torch.Generator().manual_seed(5)
    side = backbone.image_size or backbone.shape.vision.image_size
    sizes = [None, None] if backbone.image_size is None else [(side, side), (side, side)]
    return [picture(backbone, generator, size) for size in sizes]


@pytest.mark.parametrize(("name", "case"), ONE_EACH.values(), ids=["-".join(key) for key in ONE_EACH])
def test_answers_and_embeddings(name: str, case: Case) -> None:
    backbone = FAMILIES[name]()
    method = instance(backbone, case.make, case.tokens)
    pictures = _pictures(backbone)
    if reason := method.unstorable():
        with pytest.raises(UserError, match=reason):
            compress_images(backbone, method, pictures)
        return
    images, vectors = compress_images(backbone, method, pictures)
    inputs = backbone.inputs(QUESTIONS, [[p] for p in pictures])
    tokens = [min(case.tokens, backbone.shape.visual_tokens or case.tokens)] * 2
    if case.name == "none":  # as many as the prompt has places for
        tokens = (inputs["input_ids"] == backbone.model.config.image_token_id).sum(1).tolist()
    assert [len(image.tokens) for image in images] == tokens
    with torch.no_grad(), compressing(backbone, method):
        out = backbone.model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    stored = torch.stack(answer(backbone, method, QUESTIONS, images, NEW))
    assert torch.equal(stored, new)
    hidden = Reading(backbone, method).begin(QUESTIONS, images)
    with torch.no_grad():
        close(backbone.model.get_output_embeddings()(hidden[:, -1]), out.logits[0], "first logits")
    close(vectors, embed_images(backbone, method, pictures), "embeddings")


def test_each_reason_is_that_of_its_methods() -> None:
    backbone = BACKBONES["gqa"]()
    reasons = {case.name: case.make(backbone, case.tokens).unstorable() for b, case in ONE_EACH.values() if b == "gqa"}
    for words, methods in WHY.items():
        assert {name for name, reason in reasons.items() if words in reason} >= methods
    storable = {name for name, reason in reasons.items() if not reason}
    assert storable >= {"none", "fwd2bot", "single_forward", "m3", "mqt", "avgpool", "visionzip", "perceiver"}
    assert not storable & set().union(*WHY.values())


def test_a_question_with_the_place_of_a_picture_in_it() -> None:
    backbone = BACKBONES["gqa"]()
    method = Case("none", 16).make(backbone, 16)
    images, _ = compress_images(backbone, method, _pictures(backbone)[:1])
    with pytest.raises(SampleError, match="the place of a picture"):
        answer(backbone, method, ["what is <image> ?"], images, NEW)


def test_an_answer_ends_where_the_model_ends_it() -> None:
    """Rows that end early are cut there, the others go on."""
    backbone = BACKBONES["gqa"]()
    method = Case("avgpool", 4).make(backbone, 4)
    images, _ = compress_images(backbone, method, _pictures(backbone))
    whole = answer(backbone, method, QUESTIONS, images, NEW)
    end = int(whole[0][2])
    backbone.model.generation_config.eos_token_id = [end, 63]
    ended = answer(backbone, method, QUESTIONS, images, NEW)
    for before, after in zip(whole, ended, strict=True):
        ids = before.tolist()
        stops = [i for i, token in enumerate(ids) if token in (end, 63)]
        assert after.tolist() == ids[: stops[0] if stops else None]


def _same_when_compiled(backbone, method, images) -> None:
    """Two calls of different lengths, by the compiled pass and by the walk."""
    for questions in (QUESTIONS, QUESTIONS[::-1], [QUESTIONS[0]] * 2):
        expected = answer(backbone, method, questions, images, NEW)
        got = answer(backbone, method, questions, images, NEW, compiled=True)
        assert all(map(torch.equal, got, expected)), questions
        with torch.inference_mode():
            plain, compiled = (
                Reading(backbone, method, compiled=how).begin(questions, images)[:, -1] for how in (False, True)
            )
        close(compiled, plain, "last hidden states")


@pytest.mark.parametrize("name", ["gqa", "qwen2", "qwen3"])
def test_a_compiled_pass_gives_the_same(name: str, monkeypatch) -> None:
    """Traced as for the compiler, and run as it is; adapters that come later are another pass."""
    monkeypatch.setattr(decoding, "BACKEND", "eager")
    backbone = FAMILIES[name]()
    for of in ("none", "fwd2bot", "none"):
        case = ONE_EACH[name, of][1]
        method = instance(backbone, case.make, case.tokens)
        images, _ = compress_images(backbone, method, _pictures(backbone))
        if any(image.deep is not None for image in images):
            with pytest.raises(UserError, match="compiled=True: .* between its layers"):
                answer(backbone, method, QUESTIONS, images, NEW, compiled=True)
        else:
            _same_when_compiled(backbone, method, images)


def test_a_backbone_keeps_the_passes_that_were_asked_for_last(monkeypatch) -> None:
    """Each number of rows is compiled by itself, and what was made first is thrown away first."""
    monkeypatch.setattr(decoding, "BACKEND", "eager")
    monkeypatch.setattr(prefill, "PASSES", 2)
    backbone = BACKBONES["gqa"]()
    method = Case("avgpool", 4).make(backbone, 4)
    images, _ = compress_images(backbone, method, _pictures(backbone))
    for rows in (1, 2, 1, 3):
        some = [images[i % len(images)] for i in range(rows)]
        expected = answer(backbone, method, [QUESTIONS[0]] * rows, some, NEW)
        got = answer(backbone, method, [QUESTIONS[0]] * rows, some, NEW, compiled=True)
        assert all(map(torch.equal, got, expected))
    assert [key[2] for key in backbone.prefills] == [1, 3]


def test_a_pass_by_the_compiler_itself(monkeypatch) -> None:
    backbone = BACKBONES["gqa"]()
    method = Case("avgpool", 4).make(backbone, 4)
    images, _ = compress_images(backbone, method, _pictures(backbone))
    _same_when_compiled(backbone, method, images)
    monkeypatch.setattr(backbone.decoder.config, "_attn_implementation", "flash_attention_2")
    backbone.__dict__.pop("prefills")
    with pytest.raises(UserError, match="compiled=True: attention=flash_attention_2"):
        answer(backbone, method, QUESTIONS, images, NEW, compiled=True)
