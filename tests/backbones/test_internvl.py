"""InternVL3: tiles without a gap between them, and videos."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing.tiny_tiles import tiny_internvl

CLIP = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue", "green")]


def test_a_picture_becomes_the_tiles_of_its_aspect_and_a_small_one() -> None:
    backbone = tiny_internvl(image_size=None)
    for size, tiles in (((16, 16), 1), ((32, 16), 3), ((48, 16), 4), ((32, 32), 5), ((16, 80), 6)):
        inputs = dict(backbone.inputs(["what"], [[Image.new("RGB", size)]]))
        features = backbone.image_features(inputs)
        assert [len(f) for f in features] == [16 * tiles]
        assert backbone.grids(inputs, features) == [(4, 4) if tiles == 1 else None]  # 4 tiles are no 8×8 grid


def test_frames_of_a_video_are_images_of_one_tile() -> None:
    backbone = tiny_internvl(image_size=None)
    wide = Image.new("RGB", (48, 16), "white")
    inputs = backbone.inputs(["what is this", "one", "two"], [[], [wide], [wide]], [[CLIP], [], [CLIP[:2], CLIP[1:]]])
    text = backbone.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is this"}]}],
        add_generation_prompt=True,
    )
    assert (
        text
        == backbone.prompt("what is this", 0, 1)
        == "<|im_start|>user\n<video>\nwhat is this<|im_end|>\n" + ("<|im_start|>assistant\n")
    )
    alone = backbone.processor(text=[text], videos=[CLIP], return_tensors="pt")
    real = inputs["attention_mask"][0].bool()
    assert torch.equal(inputs["input_ids"][0, real], alone["input_ids"][0])
    assert torch.equal(inputs["pixel_values"][:3], alone["pixel_values"])
    with torch.no_grad(), compressing(backbone, build("random", 5, backbone.shape)) as engine:
        backbone.model(**inputs)
        assert engine.report.images == [3, 1, 5]
        assert engine.report.tokens_in == [48, 64, 128] and engine.report.tokens_out == [15, 5, 25]
    with torch.no_grad(), compressing(backbone, build("evs", 5, backbone.shape)) as engine:
        backbone.model(**backbone.inputs(["what"], [[]], [[CLIP]]))
        assert engine.report.tokens_out == [15]
    with pytest.raises(UserError, match="equally many frames"):
        backbone.inputs(["what"], [[]], [[CLIP, CLIP[:2]]])
