"""Image downsampling: fewer patches of a smaller image, the baseline of VTC-Bench (arXiv 2510.07143)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vtc.errors import UserError
from vtc.interface import ONE_TOWER, WHOLE_IMAGES, BackboneShape, FewerPatches, TowerUse, refuse_lacking


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
    about = "Image downsampling: the vision tower sees a smaller image, and so gives fewer patches (arXiv 2510.07143)."
    reference = "test_downsample.py::test_equals_a_tower_run_on_a_smaller_image"

    @property
    def side(self) -> int:
        """Patches along one side of the backbone's grid."""
        grid = self.shape.grid
        if grid is None or grid[0] != grid[1]:
            raise UserError(
                f"method={self.name}: it needs a square grid of visual tokens; {self.shape.name} has {grid}"
            )
        refuse_lacking(self.name, (ONE_TOWER, WHOLE_IMAGES), self.shape)
        return grid[0]

    def tower(self) -> TowerUse | None:
        if self.tokens is None or self.tokens >= self.side**2:
            return None
        return TowerUse(image_size=round(self.tokens**0.5) * self.shape.vision.patch_size)

    def default_tokens(self) -> int | None:
        return max(1, self.side // 2) ** 2

    def offers(self) -> Sequence[int]:
        return [side * side for side in range(1, self.side + 1)]

    def leaves(self) -> BackboneShape:
        shape = self.shape
        if self.tokens is None or self.tokens == shape.visual_tokens:
            return shape
        side = round(self.tokens**0.5)  # To a method behind this one, the image is a smaller one.
        pixels, patches = side * shape.vision.patch_size, side * side + shape.vision.cls
        vision = replace(shape.vision, image_size=pixels, tokens=patches)
        return replace(shape, visual_tokens=self.tokens, grid=(side, side), vision=vision)
