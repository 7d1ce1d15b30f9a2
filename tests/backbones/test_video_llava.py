"""Video-LLaVA: 257 tokens a frame, 256 a picture, two towers; budgets frame by frame, prompts, sizes, loading."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load, settings_of, shape_of
from PIL import Image

from vtc.backbones import wrap
from vtc.backbones.video_llava import VideoLlava
from vtc.budget import Budget
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.registry import methods
from vtc.testing.tiny_llava import tiny_video_llava


def noise(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (15, 20, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def clip(frames: int = 8, seed: int = 0) -> list[Image.Image]:
    return [noise(seed + n) for n in range(frames)]


@pytest.fixture(scope="module")
def backbone() -> VideoLlava:
    return tiny_video_llava()


def test_a_frame_has_cls_and_its_patches_and_a_picture_its_patches(backbone: VideoLlava) -> None:
    inputs = backbone.encode(
        ["<image> one <video> <image>", "<video>"], [[noise(1), noise(2)], []], [[clip()], [clip(seed=9)]]
    )
    kwargs = dict(inputs)
    videos = backbone.model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
    pictures = backbone.model.get_image_features(inputs["pixel_values"]).pooler_output
    features = backbone.image_features(kwargs)
    assert features is not None
    assert [len(f) for f in features] == [16, *[17] * 8, 16, *[17] * 8]
    order = [pictures[0], *videos[:8], pictures[1], *videos[8:]]
    assert all(map(torch.equal, features, order))
    assert backbone.grids(kwargs, features) == [(4, 4), *[None] * 8, (4, 4), *[None] * 8]
    with torch.no_grad():
        plain = backbone.model(**inputs).logits
        with compressing(backbone, build("random", 17, backbone.shape)):
            assert torch.equal(backbone.model(**inputs).logits, plain)


def test_llavolta_pools_each_of_eight_frames(backbone: VideoLlava) -> None:
    """LLaVolta, table 6: 1-D pooling inside the LLM, frame by frame: no run of tokens reaches into the next frame."""
    shape = backbone.shape
    tokens = methods.get("llavolta")(Budget(compression=1.8).resolve, shape, layer=2, layer_scale="none").tokens
    assert tokens == 2  # 4 layers of 17, or 2 of 17 and 2 of 2: 68 / 38 is the nearest to 1.8 there is
    inputs = backbone.inputs(["what is this"], [[]], [[clip()]])
    with torch.no_grad(), compressing(backbone, build("avgpool", 4, shape, dims=1)) as engine:
        backbone.core(**inputs)
        report = engine.report
        assert report.images == [8] and report.tokens_in == [8 * 17] and report.tokens_out == [8 * 4]
    features = backbone.image_features(dict(inputs)) or []
    groups = torch.arange(17) * 4 // 17
    pooled = torch.cat([torch.stack([f[groups == g].mean(0) for g in range(4)]) for f in features])
    seen: list[torch.Tensor] = []
    hook = backbone.decoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), compressing(backbone, build("avgpool", 4, shape, dims=1)):
        backbone.core(**inputs)
    hook.remove()
    at = (inputs["input_ids"][0] == backbone.placeholders[1]).nonzero()[0, 0]
    assert torch.allclose(seen[0][0, at : at + 32], pooled, atol=1e-6)


@pytest.mark.parametrize("name", ["evs", "vidcom2", "dycoke", "fastv"])
def test_video_methods_keep_their_budget_in_a_batch_as_alone(backbone: VideoLlava, name: str) -> None:
    method = build(name, 9, backbone.shape)
    clips = clip(seed=3), clip(seed=33)
    with torch.no_grad(), compressing(backbone, method) as engine:
        together = backbone.model(**backbone.inputs(["what is this", "one"], [[], []], [[c] for c in clips])).logits
        assert engine.report.tokens_out == [72, 72]
        for n, question in enumerate(("what is this", "one")):
            alone = backbone.model(**backbone.inputs([question], [[]], [[clips[n]]])).logits
            assert torch.allclose(together[n, -1], alone[0, -1], atol=3e-4)


def test_prompts_sizes_and_loading(backbone: VideoLlava, tmp_path) -> None:
    assert backbone.prompt("Why?", 0, 1) == "USER: <video>\nWhy? ASSISTANT:"
    shape = shape_of({"name": "video_llava_7b"})
    assert (shape.visual_tokens, shape.grid, shape.depth, shape.width) == (257, None, 32, 4096)
    assert (
        VideoLlava.shape_from(VideoLlava.configuration(settings_of({"name": "video_llava_7b"})), "video_llava_7b")
        == shape
    )
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    cfg = {"name": "video_llava_7b", "pretrained": str(tmp_path), "dtype": "float32", "device": "cpu"}
    again = load(cfg)
    assert again.shape == shape_of(cfg) and type(wrap(again.model)) is VideoLlava
    inputs, other = (b.inputs(["one"], [[noise()]], [[clip(2)]]) for b in (backbone, again))
    with torch.no_grad():
        assert torch.allclose(again.model(**other).logits, backbone.model(**inputs).logits, atol=1e-5)
    with pytest.raises(UserError, match="image_size=224: video_llava_7b has one size of images"):
        shape_of({"name": "video_llava_7b", "image_size": 224})


@pytest.mark.parametrize("name", ["avgpool", "fastervlm", "mqt", "qformer", "single_forward", "tome", "visionzip"])
def test_what_reads_one_tower_or_a_grid_says_so_by_name(backbone: VideoLlava, name: str) -> None:
    with pytest.raises(UserError, match=f"method={name}: "):
        build(name, 4, backbone.shape)
