"""An independent reference for methods that look at the vision tower: an eager float64 pass returning everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from reference import decoder
from torch import Tensor

from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.interface import Compressor
from vtc.testing import batch, tiny_backbone


@dataclass
class Seen:
    """One image: attention [H, 1 + N, 1 + N]; queries, keys [1 + N, C] of a layer; the features [N, C] projected."""

    attention: Tensor
    queries: Tensor
    keys: Tensor
    features: Tensor


def double(seed: int = 0, grid: int = 4, sharper: float = 1.0) -> Backbone:
    """A tiny backbone in float64, the tower's queries scaled: random weights attend nearly evenly."""
    backbone = tiny_backbone(seed=seed, grid=grid)
    backbone.model.double()
    with torch.no_grad():
        for block in backbone.vision_tower.encoder.layers:
            block.self_attn.q_proj.weight *= sharper
    return backbone


def rows(backbone: Backbone, images: tuple[int, ...] = (1, 2, 0), seed: int = 1) -> dict[str, Tensor]:
    """Left-padded rows of different lengths and numbers of images, in float64."""
    inputs = batch(backbone, images=images, seed=seed)
    return inputs | {"pixel_values": inputs["pixel_values"].double()}


@torch.no_grad()
def look(backbone: Backbone, pixels: Tensor, layer: int = 0, level: int = -2) -> list[Seen]:
    """What the tower itself returns, image by image: weights and projections of `layer`, hidden states of `level`."""
    found = []
    backbone.model.set_attn_implementation("eager")
    try:
        for one in pixels:
            out = backbone.vision_tower(one[None], output_hidden_states=True, output_attentions=True)
            block = backbone.vision_tower.encoder.layers[layer]
            x = block.layer_norm1(out.hidden_states[layer][0])
            q, k = block.self_attn.q_proj(x), block.self_attn.k_proj(x)
            found.append(Seen(out.attentions[layer][0], q, k, out.hidden_states[level][0, 1:]))
    finally:
        backbone.model.set_attn_implementation("sdpa")
    return found


@torch.no_grad()
def equals(
    backbone: Backbone,
    method: Compressor,
    inputs: dict[str, Tensor],
    made: list[Tensor],
    images: tuple[int, ...] | None = None,
) -> None:
    """Logits under `method` are those of a decoder that only ever had `made`, [M, D] an image, in the image's place.

    Args:
        images: how many each row has; None: as its visual tokens are.
    """
    with compressing(backbone, method.eval()):
        position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        got = backbone.model(**inputs, position_ids=position).logits
    left = list(made)
    for row in range(len(got)):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        visual = ids == backbone.image_token_id
        before = int(visual.long().argmax()) if visual.any() else len(ids)
        count = int(visual.sum()) // (backbone.shape.visual_tokens or 1) if images is None else images[row]
        embedded = backbone.decoder.embed_tokens(ids)
        parts = [embedded[:before], *(left.pop(0) for _ in range(count)), embedded[before + int(visual.sum()) :]]
        x = torch.cat(parts)
        want = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(x))))
        behind = len(ids) - before - int(visual.sum())
        text = torch.cat([torch.arange(before), torch.arange(len(x) - behind, len(x))])
        assert (got[row, real][~visual] - want[text]).abs().max() < 1e-5
    assert not left


CASES = [(0, 4, (1, 2, 0)), (1, 3, (2, 1, 1)), (2, 5, (1, 1, 3)), (3, 6, (0, 1, 1))]  # seed, side of the grid, images


def every_case(test: Callable) -> Callable:
    """Runs a test on every (seed, grid, images)."""
    return pytest.mark.parametrize(("seed", "grid", "images"), CASES, ids=[f"seed{s}-grid{g}" for s, g, _ in CASES])(
        test
    )
