"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: prompts, inputs, folders, released sizes, and what they say no to."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load, settings_of, shape_of
from test_qwen_vl import IMAGES, QUESTIONS, TINY, VIDEOS, families, noise

from vtc.backbones.qwen_vl import QwenVL
from vtc.errors import UserError
from vtc.methods import build
from vtc.registry import families as registry
from vtc.testing.tiny_qwen import SIDE, tiny_qwen2_5_vl, tiny_qwen3_vl


@pytest.fixture(scope="module", params=list(TINY))
def saved(request, tmp_path_factory) -> tuple[str, str, QwenVL]:
    """Name of a backbone, a folder of its architecture, and what is in it."""
    backbone = TINY[request.param]()
    path = tmp_path_factory.mktemp("tiny")
    backbone.model.save_pretrained(path)
    backbone.processor.save_pretrained(path)
    return request.param, str(path), backbone


def test_any_folder_of_the_architecture_loads(saved) -> None:
    name, folder, tiny = saved
    cfg = {"name": name, "pretrained": folder, "dtype": "float32", "device": "cpu", "attention": "sdpa"}
    free, fixed = load(cfg), load(cfg | {"image_size": SIDE})
    assert free.shape == shape_of(cfg) and free.shape.visual_tokens is None and free.shape.grid is None
    assert fixed.shape == shape_of(cfg | {"image_size": SIDE})
    assert fixed.shape.visual_tokens == 16 and fixed.shape.grid == (4, 4)
    assert (fixed.shape.depth, fixed.shape.kv_heads, fixed.shape.vision.width) == (4, 2, 16)
    assert fixed.shape.head_width == fixed.decoder.layers[0].self_attn.head_dim
    inputs = tiny.inputs(QUESTIONS, IMAGES, VIDEOS)
    with torch.no_grad():
        assert torch.equal(fixed.inputs(QUESTIONS, IMAGES, VIDEOS)["input_ids"], inputs["input_ids"])
        assert torch.allclose(free.model(**inputs).logits, tiny.model(**inputs).logits, atol=1e-5)
    with pytest.raises(UserError, match=f"image_size=104: {name} takes multiples of 8 from 8 to 96, or null"):
        shape_of(cfg | {"image_size": 104})
    with pytest.raises(UserError, match="image_size=12: .* multiples of 8"):
        shape_of(cfg | {"image_size": 12})


def test_another_family_is_refused(saved) -> None:
    name, folder, tiny = saved
    other = next(n for n in TINY if n != name)
    with pytest.raises(
        UserError, match=f"a {tiny.model_type} model; this backbone reads {TINY[other]().model_type} ones"
    ):
        shape_of({"name": other, "pretrained": folder})


@families
def test_prompts_are_the_templates(tiny) -> None:
    """Without a template in the checkpoint they are the same text."""
    backbone = tiny()
    turns = [("what is it ?", "red circle"), ("and left ?", "blue")]
    asked, trained = backbone.prompt("what is it ?", 2, 1), backbone.conversation(turns, images=1)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turns[0][0]}]}]
    said += [{"role": "assistant", "content": turns[0][1]}, {"role": "user", "content": turns[1][0]}]
    said += [{"role": "assistant", "content": turns[1][1]}]
    whole = backbone.processor.apply_chat_template(said, tokenize=False)
    assert "".join(text for text, _ in trained) + "\n" == whole
    assert [text for text, learnt in trained if learnt] == ["red circle<|im_end|>", "blue<|im_end|>"]
    assert trained[0][0] == backbone.prompt("what is it ?", 1)
    backbone.processor.chat_template = None
    assert backbone.prompt("what is it ?", 2, 1) == asked and backbone.conversation(turns, images=1) == trained


def test_the_templates_are_the_families() -> None:
    """As the papers' models were tuned: Qwen2-VL and Qwen2.5-VL with a system prompt, Qwen3-VL without."""
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    user = f"<|im_start|>user\n{image}What is it?<|im_end|>\n<|im_start|>assistant\n"
    for name, tiny in TINY.items():
        system = "" if name.startswith("qwen3vl") else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        assert tiny().prompt("What is it?") == system + user


@families
def test_a_fixed_size_makes_every_image_and_picture_a_square(tiny) -> None:
    backbone = tiny()
    inputs = backbone.inputs(QUESTIONS, IMAGES, VIDEOS)
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]] * 3
    assert inputs["video_grid_thw"].tolist() == [[3, 8, 8], [2, 8, 8]]
    assert backbone.visual(inputs["input_ids"]).sum(1).tolist() == [80, 32, 16, 0]
    one = backbone.inputs(["what"], [[]], [[[noise(9, 9, 0)]]])  # a single frame is a picture too
    assert one["video_grid_thw"].tolist() == [[1, 8, 8]]


def test_the_times_of_a_videos_pictures_are_in_the_prompt() -> None:
    """Qwen3-VL: two frames a second, the mean of a picture's two."""
    backbone = tiny_qwen3_vl()
    ids = backbone.inputs(["what"], [[]], [[[noise(32, 32, i) for i in range(4)]]])["input_ids"][0]
    said = backbone.processor.decode(ids[~backbone.visual(ids)])
    first, second = [part.strip() for part in said.split("seconds >")[:2]]
    assert first.endswith("< 0 . 2") and second.endswith("< 1 . 2"), said


def test_frames_that_say_when_they_are_reach_the_model_with_their_time() -> None:
    """Eight seconds apart: Qwen3-VL reads it, Qwen2.5-VL's positions have it (2 a second), in any dtype."""
    frames = [noise(32, 32, i) for i in range(4)]
    for i, frame in enumerate(frames):
        frame.info["seconds"] = 8.3 * i
    backbone = tiny_qwen3_vl()
    ids = backbone.inputs(["what"], [[]], [[frames]])["input_ids"][0]
    said = backbone.processor.decode(ids[~backbone.visual(ids)])
    assert "< 4 . 2 seconds >" in said or "< 4 . 1 seconds >" in said, said
    backbone = tiny_qwen2_5_vl()
    for dtype in (torch.float32, torch.bfloat16):
        backbone.model.to(dtype)
        inputs = backbone.inputs(["what"], [[]], [[frames]])
        visual = backbone.visual(inputs["input_ids"])[0]
        time = backbone.positions(inputs)[0, 0, visual].view(2, 16)
        assert (time[0] == time[0, 0]).all() and (time[1] - time[0] == int(2 * 2 * 8.3)).all()


@pytest.mark.parametrize("size", [SIDE, None])
def test_methods_of_the_tower_say_no_by_name(size: int | None) -> None:
    shape = tiny_qwen3_vl(image_size=size).shape
    with pytest.raises(
        UserError, match="method=tome: patches that merge in the tower leave no grid; .* of 2×2 patches"
    ):
        build("tome", 16, shape)
    for name in ("tokenpacker", "quecc", "single_forward"):
        with pytest.raises(UserError, match=f"method={name}: .*model has (no|none|None|16 of 64)") as error:
            build(name, 4, shape)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "millions", "depth", "heads", "kv_heads", "side"),
    [
        ("qwen2vl_2b", 2209, 28, 12, 2, 28),
        ("qwen2vl_7b", 8291, 28, 28, 4, 28),
        ("qwen25vl_3b", 3755, 36, 16, 2, 28),
        ("qwen25vl_7b", 8292, 28, 28, 4, 28),
        ("qwen25vl_32b", 33453, 64, 40, 8, 28),
        ("qwen25vl_72b", None, 80, 64, 8, 28),
        ("qwen3vl_2b", 2128, 28, 16, 8, 32),
        ("qwen3vl_4b", 4438, 36, 32, 8, 32),
        ("qwen3vl_8b", 8767, 36, 32, 8, 32),
        ("qwen3vl_32b", 33357, 64, 64, 8, 32),
        ("qwen3vl_30b_a3b", 31071, 48, 32, 4, 32),
        ("qwen3vl_235b_a22b", 235670, 94, 64, 4, 32),
    ],
)
def test_released_sizes_need_no_network(
    name: str, millions: int | None, depth: int, heads: int, kv_heads: int, side: int
) -> None:
    """As many parameters as their model cards say; 24 × 24 visual tokens at that many pixels."""
    settings = settings_of({"name": name, "image_size": 24 * side})
    cls = registry.get(settings.family)
    shape = shape_of({"name": name, "image_size": 24 * side})
    assert (shape.depth, shape.heads, shape.kv_heads, shape.grid) == (depth, heads, kv_heads, (24, 24))
    assert shape.head_width == 128 and shape_of({"name": name}).visual_tokens is None
    with pytest.raises(UserError, match=f"image_size=708: {name} takes multiples of {side} from") as error:
        shape_of({"name": name, "image_size": 708})
    least = 256 if side == 32 else 56
    assert str(error.value).endswith(f"from {least} to {side * 128}, or null")
    with pytest.raises(UserError, match=f"image_size={least - side}: "):
        shape_of({"name": name, "image_size": least - side})
    if millions is not None:
        made = cls.skeleton(settings)
        assert made.shape == shape
        assert round(sum(p.numel() for p in made.model.parameters()) / 1e6) == millions
