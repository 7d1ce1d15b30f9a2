"""Image downsampling: fewer patches of a smaller image, the baseline of VTC-Bench (arXiv 2510.07143)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError
from vtc.interface import FewerPatches, TowerUse, require_patches

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class Downsample(FewerPatches):
    """The tower sees the image at a lower resolution, and so gives fewer patches: no method at all, and hard to beat.

    With a side D times as long, D² of the tokens are left (section 2). The image, as the processor made it, is resized
    by bicubic interpolation with antialiasing; the tower's position embeddings are interpolated to the smaller grid,
    since a CLIP tower knows one resolution only (the paper's Qwen2-VL takes any). The tower gets cheaper too.

    Budgets: the squares up to the backbone's own grid. Needs a square grid.

    Args:
        tokens: default: half the side, a quarter of the tokens.
    """

    name = "downsample"

    def tower(self) -> TowerUse | None:
        side = _side(self.shape)
        if self.tokens is None or self.tokens >= side * side:
            return None
        return TowerUse(image_size=round(self.tokens**0.5) * self.shape.vision.patch_size)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return max(1, _side(shape) // 2) ** 2

    @classmethod
    def offers(cls, shape: BackboneShape, **options: Any) -> Sequence[int]:
        return [side * side for side in range(1, _side(shape) + 1)]

    @classmethod
    def leaves(cls, tokens: int | None, shape: BackboneShape, **options: Any) -> BackboneShape:
        if tokens is None or tokens == shape.visual_tokens:
            return shape
        side = round(tokens**0.5)  # for a method behind this one, the image is a smaller one
        pixels, patches = side * shape.vision.patch_size, side * side + shape.vision.cls
        vision = replace(shape.vision, image_size=pixels, tokens=patches)
        return replace(shape, visual_tokens=tokens, grid=(side, side), vision=vision)


def _side(shape: BackboneShape) -> int:
    """Patches along one side of the backbone's grid."""
    if shape.grid is None or shape.grid[0] != shape.grid[1]:
        raise UserError(f"method=downsample: it needs a square grid of visual tokens; {shape.name} has {shape.grid}")
    require_patches("downsample", shape)
    return shape.grid[0]
