"""Pictures made smaller after the processor has made them, for methods that show the tower fewer patches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Grid = tuple[int, int]


def resized(pixels: Tensor, size: Grid) -> Tensor:
    """Pixels [..., 3, H, W] → [..., 3, h, w]: bicubic with antialiasing, as image libraries shrink pictures."""
    small = interpolate(pixels.flatten(0, -4).float(), size=size, mode="bicubic", antialias=True)
    return small.to(pixels.dtype).unflatten(0, pixels.shape[:-3])


def repacked(
    pixels: Tensor, grids: Tensor, smaller: Callable[[Grid], Grid], patch: int, merge: int, frames: int
) -> tuple[Tensor, Tensor]:
    """The same for pictures of any size in one sequence of patches: [P, 3·frames·patch²] and their grids [S, 3] → both
    of the resized ones.

    The patches of a visual token follow each other, as Qwen-VL's processors put them; a patch holds `frames` frames.

    Args:
        grids: time, height and width in patches.
        smaller: a picture's grid of visual tokens → the grid that it is resized to.
        patch: the side of a patch in pixels.
        merge: patches along the side of a visual token.
    """
    packed, left = [], []
    for (time, *sides), patches in zip(grids.tolist(), pixels.split(grids.prod(-1).tolist()), strict=True):
        height, width = (side // merge for side in sides)
        h, w = smaller((height, width))
        left.append([time, h * merge, w * merge])
        if (h, w) == (height, width):
            packed.append(patches)
            continue
        cells = patches.view(time, height, width, merge, merge, -1, frames, patch, patch)
        pictures = cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(
            time * frames, -1, height * merge * patch, width * merge * patch
        )
        small = resized(pictures, (h * merge * patch, w * merge * patch))
        cells = small.view(time, frames, -1, h, merge, patch, w, merge, patch).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        packed.append(cells.reshape(-1, patches.shape[1]))
    return torch.cat(packed), torch.tensor(left, dtype=grids.dtype, device=grids.device)
