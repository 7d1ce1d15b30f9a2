"""LLaVA-OneVision: tiles, pictures that share a prompt, videos frame by frame, sizes, prompts, refusals by name."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load, settings_of, shape_of
from PIL import Image

from vtc.backbones import anyres
from vtc.backbones.llava_onevision import LlavaOnevision
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing.tiny_llava import tiny_llava_onevision

REAL = {
    "llava_onevision_05b": (24, 896, 2, 152000),
    "llava_onevision_7b": (28, 3584, 4, 152128),
    "llava_onevision_72b": (80, 8192, 8, 152128),
    "llava_video_7b": (28, 3584, 4, 152128),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def clip(frames: int, seed: int = 0) -> list[Image.Image]:
    return [noise(20, 15, seed + n) for n in range(frames)]


@pytest.fixture(scope="module")
def free() -> LlavaOnevision:
    """Pictures as they are."""
    return tiny_llava_onevision(image_size=None)


def test_a_lone_picture_is_tiles_and_pictures_that_share_a_prompt_are_one_tile_each(free: LlavaOnevision) -> None:
    shown = [[noise(30, 20)], [noise(9, 9), noise(20, 30)], [], [noise(60, 58)]]
    kwargs = dict(free.inputs(["one", "two", "three", "one two"], shown))
    plain = free.model.get_image_features(
        **{k: kwargs[k] for k in ("pixel_values", "image_sizes", "batch_num_images")}
    ).pooler_output
    features = free.image_features(kwargs)
    assert features is not None and all(map(torch.equal, features, plain))
    lone, large = (anyres.layout(size, free.model.config) for size in ((20, 30), (58, 60)))
    assert [len(f) for f in features] == [lone.tokens, 10, 10, large.tokens]
    assert large.shrunk and not lone.shrunk
    assert free.grids(kwargs, features) == [None] * 4
    sized = tiny_llava_onevision(image_size=24).inputs(["one", "two", "three", "one two"], shown)
    count = tiny_llava_onevision(image_size=24).shape.visual_tokens
    assert count == 9 + 6 * 7
    assert (sized["input_ids"] == free.image_token_id).sum(1).tolist() == [count, 2 * count, 0, count]


def test_every_frame_is_an_image_and_the_last_one_has_the_newline(free: LlavaOnevision) -> None:
    """Two videos with a picture between them in one row: the features come in the order of the prompt."""
    inputs = free.encode(
        ["<video> one <image> two <video>", "<image> three"],
        [[noise(9, 9)], [noise(8, 7)]],
        [[clip(3), clip(3, 9)], []],
    )
    kwargs = dict(inputs)
    videos = free.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
    features = free.image_features(kwargs)
    assert features is not None
    assert [len(f) for f in features] == [4, 4, 5, 21, 4, 4, 5, 21]
    assert torch.equal(torch.cat(features[:3]), videos[0]) and torch.equal(torch.cat(features[4:7]), videos[1])
    assert torch.equal(features[2][-1], free.core.image_newline)
    assert free.grids(kwargs, features) == [(2, 2), (2, 2), None, None, (2, 2), (2, 2), None, None]
    with torch.no_grad():
        plain = free.model(**inputs).logits
        with compressing(free, build("fastv", 30, free.shape)) as engine:  # the runner walks, and drops nothing
            assert torch.equal(free.model(**inputs).logits, plain)
            assert engine.report.images == [7, 1] and engine.report.tokens_in == [47, 21]


@pytest.mark.parametrize("name", ["fastv", "evs", "vidcom2", "divprune"])
def test_each_frame_keeps_its_budget_in_a_batch_as_alone(free: LlavaOnevision, name: str) -> None:
    """Three frames at 2 tokens each; `evs` and `vidcom2` spread 6 over them. Beams and cached steps too."""
    method = build(name, 2, free.shape)
    rows = [("what is this", clip(3)), ("one", clip(3, 50))]
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = list(free.placeholders)
    with compressing(free, method) as engine:
        together = free.model.generate(**free.inputs([q for q, _ in rows], [[], []], [[c] for _, c in rows]), **options)
        assert engine.report.images == [3, 3]
        assert engine.report.tokens_in == [13, 13] and engine.report.tokens_out == [6, 6]
        beams = free.model.generate(
            **free.inputs([q for q, _ in rows], [[], []], [[c] for _, c in rows]), **options | {"num_beams": 2}
        )
        for n, (question, video) in enumerate(rows):
            alone = free.inputs([question], [[]], [[video]])
            single = free.model.generate(**alone, **options)
            for step, logits in enumerate(together.logits):
                assert torch.allclose(logits[n], single.logits[step][0], atol=3e-4)
            again = free.model.generate(**alone, **options | {"num_beams": 2})
            length = alone["input_ids"].shape[1]
            assert torch.equal(beams.sequences[n, -4:], again.sequences[0, length:])


def test_videos_of_different_lengths_are_refused_before_the_model(free: LlavaOnevision) -> None:
    with pytest.raises(UserError, match="videos of 2, 3 frames in one batch"):
        free.inputs(["one", "two"], [[], []], [[clip(2)], [clip(3)]])


def test_prompts_are_the_chat_templates(free: LlavaOnevision) -> None:
    start = "<|im_start|>user\n"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert free.prompt("What?", 2, 1) == f"{start}<image>\n<image>\n<video>\nWhat?{end}"
    bare = LlavaOnevision.wrap(free.model)
    assert bare.prompt("What?", 2, 1) == free.prompt("What?", 2, 1)
    assert free.conversation([("one", "red"), ("two", "blue")]) == [
        (f"{start}<image>\none{end}", False),
        ("red<|im_end|>", True),
        (f"\n{start}two{end}", False),
        ("blue<|im_end|>", True),
    ]


@pytest.mark.parametrize(("name", "sizes"), REAL.items())
def test_the_real_sizes_need_no_network(name: str, sizes: tuple) -> None:
    cls, shape = LlavaOnevision, shape_of({"name": name})
    assert (shape.depth, shape.width, shape.kv_heads, shape.vocab) == sizes
    config = cls.configuration(settings_of({"name": name}))
    from transformers import LlavaOnevisionConfig

    assert config.image_grid_pinpoints == LlavaOnevisionConfig().image_grid_pinpoints
    assert LlavaOnevision.shape_from(config, name) == shape
    assert shape.vision.tile_tokens == 729 and not shape.vision.cls and shape.visual_tokens is None
    assert shape_of({"name": name, "image_size": 384}).visual_tokens == 729 + 27 * 28


def test_any_folder_of_the_architecture_loads(tmp_path) -> None:
    plain = tiny_llava_onevision(image_size=None)
    plain.model.save_pretrained(tmp_path)
    plain.processor.save_pretrained(tmp_path)
    cfg = {"name": "llava_onevision_7b", "pretrained": str(tmp_path), "dtype": "float32", "device": "cpu"}
    backbone = load(cfg)
    assert backbone.shape == shape_of(cfg)
    inputs, again = (b.inputs(["one"], [[noise(30, 9)]], [[clip(2)]]) for b in (plain, backbone))
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    with torch.no_grad():
        assert torch.allclose(backbone.model(**again).logits, plain.model(**inputs).logits, atol=1e-5)


def test_llava_videos_own_layout_is_refused_by_its_name(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_qwen", "hidden_size": 3584}')
    with pytest.raises(UserError, match="a llava_qwen model; this backbone reads llava_onevision ones"):
        shape_of({"name": "llava_video_7b", "pretrained": str(tmp_path)})


@pytest.mark.parametrize("name", ["avgpool", "mqt", "qformer", "tome"])
def test_what_needs_a_grid_says_so_by_name(free: LlavaOnevision, name: str) -> None:
    with pytest.raises(UserError, match=f"method={name}: "):
        build(name, 4, free.shape)
