"""Video-LLaVA: a tower for images, one for videos, and Vicuna (arXiv 2311.10122), as transformers has it.

A frame of a video is an image of its own for budgets. It has 257 visual tokens, the tower's CLS first, which this model
projects with the patches; a picture has the 256 patches alone. The sizes are those of frames, for which the family is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtc.backbones.chat import Chat
from vtc.backbones.frames import Videos
from vtc.backbones.llava import Llava
from vtc.backbones.parts import part
from vtc.errors import UserError
from vtc.interface import BackboneShape

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature

    from vtc.backbones.parts import Clips


class VideoLlava(Videos, Chat, Llava):
    """Any `VideoLlavaForConditionalGeneration`."""

    model_type, model_class = "video_llava", "VideoLlavaForConditionalGeneration"
    version = 1

    @classmethod
    def shape_from(cls, config: Any, name: str) -> BackboneShape:
        shape = Llava.shape_from(config, name)
        tokens = shape.vision.tokens
        return dataclasses.replace(
            shape, visual_tokens=tokens, grid=None, vision=dataclasses.replace(shape.vision, towers=2)
        )

    vision_tower = part("model.video_tower")  # pictures have one of their own, `core.image_tower`

    @property
    def tower_layers(self) -> Sequence[Any]:
        raise UserError(f"backbone={self.name}: it has two vision towers, and their layers can't be watched")

    def frames_of(self, features: Tensor) -> list[Tensor]:
        return list(features)  # [V·F, N, D]

    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        batch = super()._processed(text, images, videos)
        if "pixel_values_images" in batch:  # an older name, which the model is about to forget
            batch["pixel_values"] = batch.pop("pixel_values_images")
        return batch
