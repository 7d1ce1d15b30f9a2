"""LLaVA-OneVision: a SigLIP tower and a Qwen2 decoder, for images and videos (arXiv 2408.03326).

A picture that is alone in its prompt is cut into tiles as LLaVA-NeXT's are; a grid of more than nine tiles' worth of
tokens is made smaller by bilinear interpolation. Pictures that share a prompt are one tile each, and a newline token.
With `image_size` every picture is cut into tiles, so that all have the same number of tokens.

A frame of a video is one tile whose grid is halved, 27x27 to 14x14, whatever `image_size` is. Each is an image of its
own for budgets; the newline token at the end of a video belongs to its last frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.backbones.frames import Videos
from vtc.backbones.llava_next import LlavaNext
from vtc.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vtc.interface import BackboneShape


class LlavaOnevision(Videos, LlavaNext):
    """Any `LlavaOnevisionForConditionalGeneration`."""

    model_type, model_class = "llava_onevision", "LlavaOnevisionForConditionalGeneration"
    version = 1

    @classmethod
    def shape_from(cls, config: Any, name: str, image_size: int | None = None) -> BackboneShape:
        shape = super().shape_from(config, name, image_size)
        return dataclasses.replace(shape, vision=dataclasses.replace(shape.vision, traced=False))

    def frames_of(self, features: Tensor) -> list[Tensor]:
        """Of V videos [V, F·N + 1, D]; the last frame of each has the newline token."""
        size = self._frame_side**2
        sizes = [size] * (features.shape[1] // size)
        sizes[-1] += 1
        return [frame for video in features for frame in video.split(sizes)]

    def tower_patches(self, call: Mapping[str, Any]) -> list[Tensor]:
        raise UserError(f"backbone={self.name}: its visual tokens can't be traced back to patches of the tower")

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
