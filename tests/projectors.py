"""What the tests of methods in the projector's place share: towers of any size, and attention written out."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from vtc.backbones.base import Backbone
from vtc.interface import BackboneShape, Compressor, Context, Tower
from vtc.testing import tiny_backbone


def shape_of(grid: tuple[int, int] | None, width: int = 24, depth: int = 4, level: int = -1, **others) -> BackboneShape:
    """Sizes with a grid, which need not be a square, and a tower of this width and depth."""
    shape = tiny_backbone().shape
    count = None if grid is None else grid[0] * grid[1]
    tower = {"width": width, "depth": depth, "feature_layer": level, "heads": 4} | others
    if count is not None:
        tower["tokens"] = count + tower.get("cls", shape.vision.cls)
    vision = replace(shape.vision, **tower)
    return replace(shape, grid=grid, visual_tokens=count, vision=vision)


def random_tower(shape: BackboneShape, images: int, seed: int, layers: list[int], extra: int = 1) -> Tower:
    """What a tower might make of some images, in float64."""
    draw, width = torch.Generator().manual_seed(seed), shape.vision.width

    def states() -> Tensor:
        return torch.randn(images, extra + shape.visual_tokens, width, generator=draw, dtype=torch.float64)

    return Tower(states()[:, extra:], levels={layer: states() for layer in layers}, extra=extra)


def randomised(method: Compressor, seed: int = 0) -> Compressor:
    """In float64, with every parameter away from where it began."""
    draw = torch.Generator().manual_seed(seed)
    method.double().eval()
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.4 if p.ndim < 2 else 1.5 / math.sqrt(p[0].numel())))
    return method


def context_of(shape: BackboneShape, tower: Tower) -> Context:
    return Context(shape, tower=tower)


def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    """LayerNorm of one vector."""
    mean = x.mean()
    return (x - mean) / (((x - mean) ** 2).mean() + module.eps).sqrt() * module.weight + module.bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """One query [C] over some keys and values [C], head by head."""
    d, out = len(q) // heads, []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        score = [(q[part] @ k[part] / math.sqrt(d)).exp() for k in keys]
        out.append(sum(s * v[part] for s, v in zip(score, values, strict=True)) / sum(score))
    return torch.cat(out)


def states(backbone: Backbone, pixels: Tensor) -> list[Tensor]:
    """The tower's own hidden states of each image and level, patches only: a list of [I, N, C]."""
    with torch.no_grad():
        found = backbone.vision_tower(pixels, output_hidden_states=True).hidden_states
    return [h[:, backbone.shape.vision.cls :] for h in found]


def every_parameter_learns(method: Compressor, made: Tensor) -> None:
    """A loss on what it makes has a gradient for each of its parameters, none of them empty or infinite."""
    draw = torch.Generator().manual_seed(3)
    (made * torch.randn(made.shape, generator=draw, dtype=made.dtype)).sum().backward()
    for name, p in method.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
