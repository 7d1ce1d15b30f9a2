"""Image downsampling where the projector merges patches: against transformers' own model on pictures that were resized
beforehand, in a prompt that never had more places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vtc.backbones.qwen_vl import QwenVL
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import BackboneShape
from vtc.methods import build
from vtc.methods.downsample import nearest
from vtc.testing import batch
from vtc.testing.runs import generation, logits
from vtc.testing.tiny_llava import tiny_llava_next, tiny_llava_onevision
from vtc.testing.tiny_qwen import MERGE, PATCH, tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_vl
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl, tiny_smolvlm

CELL = PATCH * MERGE
QUESTION = "what is this ?"
# Rows of images and of videos: (height, width) of each picture, in visual tokens.
ROWS: list[tuple[list[tuple[int, int]], list[list[tuple[int, int]]]]] = [
    ([(4, 4), (5, 2)], [[(3, 5)] * 4]),
    ([(2, 6), (1, 3)], []),
    ([], [[(3, 3)] * 6, [(4, 2)] * 2]),
]
# Of each grid by the number of tokens, by hand; of two that are as near the more even one.
SMALLER: dict[int, dict[tuple[int, int], tuple[int, int]]] = {
    1: dict.fromkeys([(4, 4), (3, 3), (4, 2)], (1, 1)),
    4: {(4, 4): (2, 2), (5, 2): (4, 1), (3, 5): (2, 2), (2, 6): (1, 4), (1, 3): (1, 3), (3, 3): (2, 2), (4, 2): (2, 2)},
    6: {(4, 4): (2, 3), (5, 2): (3, 2), (3, 5): (2, 3), (2, 6): (2, 3), (1, 3): (1, 3), (3, 3): (2, 3), (4, 2): (3, 2)},
}


def noise(grid: tuple[int, int], seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    size = (grid[0] * CELL, grid[1] * CELL, 3)
    return Image.fromarray(torch.randint(0, 256, size, generator=generator).to(torch.uint8).numpy())


def shrunk(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """[h, w, 3]: PIL's bicubic on float planes."""
    planes = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)
    small = [np.asarray(Image.fromarray(p).resize(size[::-1], Image.Resampling.BICUBIC)) for p in planes]
    return np.stack(small, -1)


def packed(processor: Any, frames: list[np.ndarray]) -> Tensor:
    """[P, 3·2·p²]: normalised frames (one or an even number of them) as patches, by loops."""
    mean, std = (np.array(values) for values in (processor.image_mean, processor.image_std))
    scaled = [(frame / 255 - mean) / std for frame in (frames if len(frames) > 1 else frames * 2)]
    height, width = (side // CELL for side in scaled[0].shape[:2])
    patches = []
    for t in range(0, len(scaled), 2):
        for y, x, v, u in np.ndindex(height, width, MERGE, MERGE):
            top, left = (y * MERGE + v) * PATCH, (x * MERGE + u) * PATCH
            one = [f[top : top + PATCH, left : left + PATCH] for f in scaled[t : t + 2]]
            patches.append(np.stack(one).transpose(3, 0, 1, 2).ravel())
    return torch.tensor(np.stack(patches))


def media(row: int) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    images, videos = ROWS[row]
    clips = [[noise(grid, 100 * row + 10 * n + i) for i, grid in enumerate(clip)] for n, clip in enumerate(videos)]
    return [noise(grid, 50 + 10 * row + n) for n, grid in enumerate(images)], clips


def resized_beforehand(backbone: QwenVL, inputs: dict[str, Any], row: int, tokens: int) -> dict[str, Any]:
    """The inputs of a row whose pictures came in their smaller size."""
    images, clips = media(row)
    pictures = [([image], grid, 1) for image, grid in zip(images, ROWS[row][0], strict=True)]
    pictures += [(clip, grids[0], len(clip) // 2) for clip, grids in zip(clips, ROWS[row][1], strict=True)]
    kept, left = [], dict(inputs)
    made: dict[str, list[Tensor]] = {"pixel_values": [], "pixel_values_videos": []}
    sizes: dict[str, list[list[int]]] = {"image_grid_thw": [], "video_grid_thw": []}
    for frames, grid, time in pictures:
        h, w = SMALLER[tokens][grid]
        kept += ([True] * (h * w) + [False] * (grid[0] * grid[1] - h * w)) * time
        of = "_videos" if len(frames) > 1 else ""
        processor = backbone.processor.video_processor if of else backbone.processor.image_processor
        made[f"pixel_values{of}"].append(packed(processor, [shrunk(f, (h * CELL, w * CELL)) for f in frames]))
        sizes["video_grid_thw" if of else "image_grid_thw"].append([time, h * MERGE, w * MERGE])
    stays = torch.ones_like(inputs["input_ids"][0], dtype=torch.bool)
    stays[backbone.visual(inputs["input_ids"])[0]] = torch.tensor(kept)
    left |= {n: inputs[n][:, stays] for n in ("input_ids", "attention_mask", "mm_token_type_ids")}
    left |= {name: torch.cat(values).to(backbone.dtype) for name, values in made.items() if values}
    return left | {name: torch.tensor(values) for name, values in sizes.items() if values}


def double(tiny: Any) -> QwenVL:
    backbone = tiny(image_size=None)
    backbone.model.double()
    return backbone


CASES = [(0, 4), (0, 6), (1, 4), (1, 6), (2, 1), (2, 4), (2, 6)]  # row, tokens


@pytest.mark.parametrize(("row", "tokens"), CASES)
@pytest.mark.parametrize("tiny", [tiny_qwen2_vl, tiny_qwen2_5_vl, tiny_qwen3_vl])
def test_equals_the_model_on_pictures_resized_beforehand(tiny: Any, row: int, tokens: int) -> None:
    """Features, the positions that the LLM is given, and logits, also of what is generated."""
    backbone = double(tiny)
    images, clips = media(row)
    inputs = dict(backbone.inputs([QUESTION], [images], [clips]))
    small = resized_beforehand(backbone, inputs, row, tokens)
    want = logits(backbone, small)[0, ~backbone.visual(small["input_ids"])[0]]
    steps = torch.stack(generation(backbone, small, 3).logits)
    place, features = backbone.positions(small), torch.cat(backbone.image_features(dict(small)))
    given: list[Tensor] = []
    with compressing(backbone, build("downsample", tokens, backbone.shape)) as engine:
        hook = backbone.decoder.rotary_emb.register_forward_pre_hook(lambda m, args: given.append(args[1]))
        got = logits(backbone, inputs)[0, ~backbone.visual(inputs["input_ids"])[0]]
        hook.remove()
        first = engine.first_tokens(dict(inputs))
        after = torch.stack(generation(backbone, inputs, 3).logits)
    assert torch.equal(given[0], place)
    assert (first.visual_hidden()[first.images[1]] - features).abs().max() < 1e-4
    assert (got - want).abs().max() < 1e-4 and (after - steps).abs().max() < 1e-4


def tile_features(backbone: Any, pixels: Tensor, side: int) -> Tensor:
    """[T, M, D]: of tiles [T, 3, S, S] by the model's own encoder at another size of them, resized by PIL."""
    edge = side * backbone.shuffle * backbone.shape.vision.patch_size
    planes = pixels.flatten(0, -3).numpy().astype(np.float32)
    small = [np.asarray(Image.fromarray(p).resize((edge, edge), Image.Resampling.BICUBIC)) for p in planes]
    tiles = torch.tensor(np.stack(small)).view(*pixels.shape[:-2], edge, edge).to(backbone.dtype)
    out = backbone.core.get_image_features(pixel_values=tiles, return_dict=True).pooler_output
    return out if isinstance(out, Tensor) else torch.stack(out)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("tiny", [tiny_internvl, tiny_idefics3, tiny_smolvlm])
def test_a_tile_equals_the_model_on_a_smaller_tile(tiny: Any, side: int) -> None:
    backbone = tiny()
    backbone.model.double()
    inputs = batch(backbone, images=(1, 2, 0))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        features = tile_features(backbone, inputs["pixel_values"], side)
    with compressing(backbone, build("downsample", side * side, backbone.shape)) as engine:
        first = engine.first_tokens(dict(inputs))
        got = logits(backbone, inputs)
        after = torch.stack(generation(backbone, inputs, 3).logits, 1)
    made = first.visual_hidden()
    assert made.shape == features.shape == (3, side * side, backbone.shape.width)
    assert (made - features).abs().max() < 1e-4
    assert (made[0] - made[1]).abs().max() > 1e-2
    for row in range(3):  # a prompt that never had more places, features in them
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        visual = ids == backbone.image_token_id
        rank = visual.cumsum(0) - 1
        stays = ~visual | (rank % backbone.shape.visual_tokens < side * side)
        x = backbone.decoder.embed_tokens(ids[stays])
        x = x.masked_scatter(visual[stays][:, None], features[[0] if row == 0 else [1, 2]]) if row < 2 else x
        with torch.no_grad():
            want = backbone.model.lm_head(backbone.decoder(inputs_embeds=x[None], use_cache=False).last_hidden_state)[0]
        real = got[row][inputs["attention_mask"][row].bool()]
        assert (real[~visual] - want[~visual[stays]]).abs().max() < 1e-4
        assert (after[row, 0] - want[-1]).abs().max() < 1e-4


def test_patches_of_the_tower_are_fewer() -> None:
    for tiny, before, after in ((tiny_qwen3_vl, 64, 16), (tiny_internvl, 65, 17), (tiny_idefics3, 64, 16)):
        backbone, seen = tiny(), []
        inputs = batch(backbone, images=(1,), before=(2,), after=(3,))
        hook = backbone.tower_layers[0].register_forward_hook(
            lambda m, args, out, seen=seen: seen.append((out if isinstance(out, Tensor) else out[0]).shape[-2])
        )
        logits(backbone, inputs)
        with compressing(backbone, build("downsample", 4, backbone.shape)):
            logits(backbone, inputs)
        hook.remove()
        assert seen == [before, after]


def test_the_nearest_aspect_by_brute_force() -> None:
    """Exactly so many tokens; no other grid of as many is nearer in the logarithm of its aspect."""
    for grid in ((24, 24), (17, 23), (40, 11), (3, 50)):
        aspect, said = np.log(grid[0] / grid[1]), 0
        for tokens in range(1, grid[0] * grid[1]):
            every = [(h, w) for h in range(1, tokens + 1) for w in [tokens // h] if h * w == tokens]
            best = min(abs(np.log(h / w) - aspect) for h, w in every)
            if best > np.log(2) + 1e-9:
                with pytest.raises(UserError, match=f"tokens={tokens}: of its grids .* more divisors"):
                    nearest(tokens, grid)
                said += 1
                continue
            h, w = nearest(tokens, grid)
            assert h * w == tokens and abs(np.log(h / w) - aspect) < best + 1e-9
        assert said
    assert nearest(64, (17, 23)) == (8, 8) and nearest(144, (23, 17)) == (16, 9)


def sizes(shape: BackboneShape) -> list[int]:
    return list(build("downsample", None, shape).offers())


def test_budgets_and_refusals() -> None:
    assert sizes(tiny_qwen3_vl().shape) == sizes(tiny_internvl().shape) == sizes(tiny_idefics3().shape) == [1, 4, 9, 16]
    assert build("downsample", None, tiny_qwen2_vl().shape).tokens == 4
    free = tiny_qwen2_vl(image_size=None).shape
    assert build("downsample", None, free).tower() is None and build("downsample", 7, free).tokens == 7
    for shape in (tiny_internvl(image_size=32).shape, tiny_idefics3(image_size=None).shape, tiny_llava_next().shape):
        with pytest.raises(UserError, match="method=downsample: it needs a square grid of visual tokens, one picture"):
            build("downsample", 4, shape)
    with pytest.raises(UserError, match="method=downsample: it needs a square grid"):
        build("downsample", 4, tiny_llava_onevision().shape)
    backbone = tiny_qwen2_vl(image_size=None)
    inputs = dict(backbone.inputs([QUESTION], [[noise((4, 4), 0)]]))
    with compressing(backbone, build("downsample", 7, free)), pytest.raises(UserError, match="tokens=7: of its grids"):
        logits(backbone, inputs)
