"""DART against loops over pivots in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import decoder, embedded
from sequences import layout, sequence

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context, TokenSequence
from vtc.methods import build
from vtc.testing import batch, tiny_backbone


def pivoted(
    hidden: np.ndarray,
    norm: np.ndarray,
    visual: list[int],
    words: list[int],
    count: int,
    pivots,
    order: str = "norm",
) -> list[int]:
    """Places of the visual tokens that are kept of one image."""
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    own = sorted(visual, key=lambda i: (-norm[i], i))[: min(pivots[0], count)]
    turns = own + sorted(words, key=lambda i: (-norm[i], i))[: pivots[1]]
    turns = sorted(turns) if order == "place" else turns
    kept, rest = list(own), min(count, len(visual)) - len(own)
    for n, pivot in enumerate(turns):
        share = rest * (n + 1) // len(turns) - rest * n // len(turns)
        free = sorted((i for i in visual if i not in kept), key=lambda i: (unit[i] @ unit[pivot], i))
        kept += free[:share]
    return sorted(kept)


def prompt(tokens: TokenSequence) -> torch.Tensor:
    return tokens.mask & ~tokens.visual & (tokens.visual.cumsum(1) > 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["norm", "place"])
@pytest.mark.parametrize("pivots", [(4, 4), (1, 0), (2, 5), (3, 1)])
@pytest.mark.parametrize(
    ("images", "count"), [([[20, 12], [13]], 9), ([[16], [16]], 2), ([[30], [8, 11]], 8), ([[5, 18]], 6)]
)
def test_keeps_what_the_pivots_duplicate_least(
    images: list[list[int]], count: int, pivots, order: str, seed: int
) -> None:
    shape = tiny_backbone().shape
    tokens = sequence([layout(*row, after=2 + n) for n, row in enumerate(images)], seed=seed)
    keys = torch.randn(*tokens.mask.shape, 6, generator=torch.Generator().manual_seed(seed + 10))
    method = build("dart", count, shape, visual=pivots[0], text=pivots[1], order=order)
    left = method.reduce(tokens, method.layer, Context(shape, keys={method.layer - 1: keys}, prompt=prompt))
    for row, sizes in enumerate(images):
        hidden, norm = tokens.hidden[row].double().numpy(), keys[row].double().norm(dim=-1).numpy()
        expected = [i for i in range(tokens.mask.shape[1]) if tokens.mask[row, i] and not tokens.visual[row, i]]
        words = prompt(tokens)[row].nonzero()[:, 0].tolist()
        for image in range(len(sizes)):
            visual = (tokens.visual[row] & (tokens.image[row] == image)).nonzero()[:, 0].tolist()
            expected += visual if len(visual) <= count else pivoted(hidden, norm, visual, words, count, pivots, order)
        assert left.origin[row, left.mask[row]].tolist() == sorted(expected)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_norms_are_those_of_the_keys_in_the_layer_before(layer: int, norm: str) -> None:
    backbone = tiny_backbone()
    inputs, n = batch(backbone), 16
    method = build("dart", 7, backbone.shape, layer=layer, visual=2, text=2, layer_scale="none", norm=norm)
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**inputs, position_ids=position)
        kept = engine.report.kept
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first, seen = int((ids == backbone.image_token_id).nonzero()[0]), {}

        def note(at: int, seen=seen):
            return lambda h, position: (seen.setdefault(at, h), position)

        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            decoder(backbone, x, torch.arange(len(ids)), changes={layer - 1: note(layer - 1), layer: note(layer)})
            module = backbone.decoder.layers[layer - 1]
            keys = module.self_attn.k_proj(module.input_layernorm(seen[layer - 1])).double()
            cos, sin = (t[0].double() for t in backbone.decoder.rotary_emb(x[None], torch.arange(len(ids))[None]))
            size = keys.norm(dim=-1).numpy()
            if norm == "l1":  # x → x cos θ + (−x₂, x₁) sin θ, head by head
                size = np.zeros(len(ids))
                for head in keys.split(cos.shape[-1], -1):
                    a, b = head.chunk(2, -1)
                    size += (head * cos + torch.cat([-b, a], -1) * sin).abs().sum(-1).numpy()
        visual, words = list(range(first, first + n)), list(range(first + n, len(ids)))
        expected = pivoted(seen[layer].double().numpy(), size, visual, words, 7, (2, 2))
        assert kept[row] == [i + int((~real).sum()) for i in expected]


def test_defaults_and_bad_options() -> None:
    shape = tiny_backbone(grid=24).shape
    assert build("dart", None, shape).tokens == 128
    with pytest.raises(UserError, match="method.visual=0"):
        build("dart", 5, shape, visual=0)
    with pytest.raises(UserError, match="method.text=-1"):
        build("dart", 5, shape, text=-1)
    with pytest.raises(UserError, match="method.layer=0"):
        build("dart", 5, shape, layer=0)
