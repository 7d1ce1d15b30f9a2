"""LLaVA-OneVision: a SigLIP tower and a Qwen2 decoder, for images and videos (arXiv 2408.03326).

A picture that is alone in its prompt is cut into tiles as LLaVA-NeXT's are; a grid of more than nine tiles' worth of
tokens is made smaller by bilinear interpolation. Pictures that share a prompt are one tile each, and a newline token.
With `image_size` every picture is cut into tiles, so that all have the same number of tokens.

A frame of a video is one tile whose grid is halved, 27x27 to 14x14, whatever `image_size` is. Each is an image of its
own for budgets; the newline token at the end of a video belongs to its last frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtc.backbones import anyres, bilinear
from vtc.backbones.frames import Videos
from vtc.backbones.llava_next import LlavaNext
from vtc.interface import Tower

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vtc.backbones.bilinear import Sources


class LlavaOnevision(Videos, LlavaNext):
    """Any `LlavaOnevisionForConditionalGeneration`."""

    model_type, model_class = "llava_onevision", "LlavaOnevisionForConditionalGeneration"
    version = 1

    def frames_of(self, features: Tensor) -> list[Tensor]:
        """Of V videos [V, F·N + 1, D]; the last frame of each has the newline token."""
        size = self._frame_side**2
        sizes = [size] * (features.shape[1] // size)
        sizes[-1] += 1
        return [frame for video in features for frame in video.split(sizes)]

    def tower_pictures(self, medium: str, call: Mapping[str, Any], features: Tensor) -> Tower:
        """Each visual token is a mean of four patches, weighted as bilinear interpolation does, or one patch alone."""
        import torch

        number = torch.arange(features.shape[0] * features.shape[1], device=features.device)
        made = self._frames(call, number) if medium == "video" else self._tiles(call, number)
        return Tower(features, patches=[patches for patches, _ in made], weights=[weights for _, weights in made])

    def _frames(self, call: Mapping[str, Any], number: Tensor) -> list[Sources]:
        """Of each frame its tokens' patches, by their `number`; behind a video's last one a newline."""
        side, small = self.shape.vision.grid_side, self._frame_side
        frames = [bilinear.shrunk(frame.view(side, side), (small, small)) for frame in number.split(side * side)]
        length = call["pixel_values_videos"].shape[1]
        for last in range(length - 1, len(frames), length):
            frames[last] = _joined([frames[last], bilinear.single(number.new_full((1,), -1))])
        return frames

    def _tiles(self, call: Mapping[str, Any], number: Tensor) -> list[Sources]:
        """Of each picture the same, its tiles packed as the model packs their features; a newline behind each row."""
        counts, sizes = call.get("batch_num_images"), call["image_sizes"].tolist()
        alone = [True] * len(sizes) if counts is None else [n == 1 for n in counts for _ in range(int(n))]
        side, pictures = self.shape.vision.grid_side, []
        for size, tiled in zip(sizes, alone, strict=True):
            base, number = number[: side * side], number[side * side :]
            newline = bilinear.single(number.new_full((1,), -1))
            parts = [bilinear.single(base)]
            if tiled:
                layout = anyres.layout((int(size[0]), int(size[1])), self.model.config)
                down, across = layout.tiles
                tiles, number = number[: down * across * side * side], number[down * across * side * side :]
                grid = tiles.view(down, across, side, side).transpose(1, 2).reshape(down * side, across * side)
                grid = grid[layout.top : len(grid) - layout.top, layout.left : grid.shape[1] - layout.left]
                whole = bilinear.shrunk(grid, (layout.rows, layout.columns))
                for row in zip(*(part.split(layout.columns) for part in whole), strict=True):
                    parts += [row, newline]
            else:
                parts.append(newline)
            pictures.append(_joined(parts))
        return pictures

    @property
    def _frame_side(self) -> int:
        """Visual tokens along a side of a frame: half of the patches, rounded up."""
        return -(-self.shape.vision.grid_side // 2)

    def grid_of(self, count: int) -> tuple[int, int] | None:
        side = self._frame_side
        return (side, side) if count == side * side else None  # a picture has more tokens than that

    def prompt(self, question: str, images: int = 1, videos: int = 0) -> str:
        if self._templates:
            return super().prompt(question, images, videos)
        media = "<image>\n" * images + "<video>\n" * videos
        return f"<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"

    def pictures(self, images: list[list[Image]]) -> list[Any]:
        if self.image_size is not None:
            return super().pictures(images)
        return [row for row in images if row]  # in rows, the processor knows which pictures share a prompt


def _joined(parts: Sequence[Sources]) -> Sources:
    """These visual tokens one behind the other."""
    import torch

    patches, weights = zip(*parts, strict=True)
    return torch.cat(patches), torch.cat(weights)
