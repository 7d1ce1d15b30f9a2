"""The Perceiver Resampler against loops over latents and heads, in float64, and its size against Victor's table 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from projectors import attend, every_parameter_learns, gelu, norm, randomised, shape_of
from sequences import layout, sequence
from torch import Tensor
from tower_reference import double, equals, rows

from vtc.errors import UserError
from vtc.interface import Context
from vtc.methods import build
from vtc.methods.perceiver import Perceiver
from vtc.testing import tiny_backbone


def resampled(method: Perceiver, x: Tensor) -> Tensor:
    """[M, D] of one image's visual tokens [N, D]: one latent and one key at a time."""
    z = list(method.latents)
    for at, forward in zip(method.attentions, method.forwards, strict=True):
        to_k, to_v = at.to_kv.weight.chunk(2)
        sources = [norm(media, at.media_norm) for media in x] + [norm(latent, at.latent_norm) for latent in z]
        keys, values = [to_k @ s for s in sources], [to_v @ s for s in sources]
        queries = [at.to_q.weight @ norm(latent, at.latent_norm) for latent in z]
        found = [at.to_out.weight @ attend(q, keys, values, at.heads) for q in queries]
        z = [latent + new for latent, new in zip(z, found, strict=True)]
        before, first, _, second = forward
        z = [latent + second.weight @ gelu(first.weight @ norm(latent, before)) for latent in z]
    return torch.stack([norm(latent, method.norm) for latent in z])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("width", "count", "tokens", "options"),
    [
        (16, 9, 3, {"depth": 2}),
        (24, 12, 1, {"depth": 1, "heads": 3, "head_width": 4}),
        (8, 5, 5, {"depth": 3, "heads": 2, "head_width": 8, "mult": 4}),
    ],
)
@torch.no_grad()
def test_equals_loops_over_latents_and_heads(width: int, count: int, tokens: int, options: dict, seed: int) -> None:
    shape = replace(shape_of((1, count)), width=width)
    method = randomised(build("perceiver", tokens, shape, **options), seed)
    x = torch.randn(2, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = method(x, Context(shape))
    for image in range(2):
        assert (got[image] - resampled(method, x[image])).abs().max() < 1e-10


@torch.no_grad()
def test_images_of_different_sizes_see_nothing_of_the_padding() -> None:
    shape = replace(shape_of((1, 20)), width=24)
    tokens = sequence([layout(20, 7, after=2), layout(13, after=3)], width=24, compact=True)
    tokens.hidden = tokens.hidden.double()
    method = randomised(build("perceiver", 4, shape, depth=2))
    left = method.reduce(tokens, 0, Context(shape))
    want = [
        resampled(method, tokens.hidden[row, tokens.visual[row] & (tokens.image[row] == image)])
        for row, image in ((0, 0), (0, 1), (1, 0))
    ]
    assert (left.visual_hidden() - torch.stack(want)).abs().max() < 1e-10


@pytest.mark.parametrize(("seed", "grid", "tokens"), [(0, 4, 5), (1, 3, 2)])
def test_the_llm_reads_what_it_makes_of_each_image(seed: int, grid: int, tokens: int) -> None:
    backbone = double(seed, grid)
    method = randomised(build("perceiver", tokens, backbone.shape, depth=2), seed)
    inputs = rows(backbone, (1, 2, 0), seed)
    with torch.no_grad():
        visual = backbone.image_features({"pixel_values": inputs["pixel_values"]})
        equals(backbone, method, inputs, [resampled(method, image) for image in visual])


def test_parameters_at_the_size_that_victor_counts() -> None:
    shape = replace(shape_of((24, 24), 1024, 24, -2), width=4096)
    with torch.device("meta"):
        assert build("perceiver", 256, shape).extra_parameters == 252_862_464
        assert build("perceiver", 256, shape, heads=8).extra_parameters == 252_862_464
        assert build("perceiver", 256, shape, mult=4).extra_parameters == 252_862_464 + 6 * 6 * 4096**2


@pytest.mark.parametrize(
    ("width", "head_width", "heads"),
    [(4096, 64, 8), (512, 64, 8), (511, 64, 7), (128, 64, 2), (32, 64, 1), (128, 8, 8)],
)
def test_attention_is_no_wider_than_the_llm(width: int, head_width: int, heads: int) -> None:
    """Where eight heads don't fit the width, as many as do, and one where not even one does; a given number stands."""
    shape = replace(shape_of((3, 3)), width=width)
    with torch.device("meta"):
        for given, want in ((None, heads), (3, 3)):
            method = build("perceiver", 4, shape, depth=2, heads=given, head_width=head_width)
            for attention in method.attentions:
                assert attention.heads == want
                assert attention.to_q.weight.shape == (want * head_width, width)


def test_every_parameter_learns() -> None:
    shape = shape_of((3, 3))
    method = randomised(build("perceiver", 3, shape, depth=2))
    every_parameter_learns(method, method(torch.randn(2, 9, shape.width, dtype=torch.float64), Context(shape)))


def test_defaults_and_refusals() -> None:
    assert build("perceiver", None, shape_of((24, 24))).tokens == 64
    assert build("perceiver", None, tiny_backbone().shape).tokens == 16
    assert Perceiver(None, tiny_backbone().shape).tokens == 16
    for key, value in {"depth": 0, "heads": -1, "head_width": 1.5, "mult": True}.items():
        with pytest.raises(UserError, match=f"method.{key}={str(value).lower()}"):
            build("perceiver", 4, tiny_backbone().shape, **{key: value})
    with pytest.raises(UserError, match="tokens=17"):
        build("perceiver", 17, tiny_backbone().shape)
