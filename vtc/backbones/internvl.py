"""InternVL3 (arXiv 2504.10479) and InternVL3.5 (2508.18265), as transformers has them: InternViT, pixel shuffle, a
projector of two layers, a Qwen2 or Qwen3 decoder.

A picture becomes up to 12 tiles of 448×448 pixels in the arrangement nearest to its aspect, and beside more than one of
them the whole picture in small. Four patches are one visual token (pixel shuffle): 256 a tile. All tiles of a picture
stand in the prompt without a gap, between `<img>` and `</img>`; the frames of a video are pictures of one tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtc.backbones.chat import chatml
from vtc.backbones.tiles import Frames, Tiled, one_tile
from vtc.errors import UserError
from vtc.interface import BackboneShape

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class InternVL(Tiled):
    """Any `InternVLForConditionalGeneration`: checkpoints whose name ends with -hf."""

    model_type, model_class = "internvl", "InternVLForConditionalGeneration"
    version = 1
    tower_outputs = ("last_hidden_state", "hidden_states")
    most_tiles = 3  # 3·3 of the 12 tiles that the processor makes at most
    image_text, video_text = "<IMG_CONTEXT>", "<video>"
    template = chatml("<IMG_CONTEXT>\n", "<video>\n")

    @classmethod
    def tile_from(cls, config: Any, name: str) -> BackboneShape:
        return one_tile(config, name, round(1 / config.downsample_ratio), cls_tokens=1, projector_layers=2)

    @property
    def tower_layers(self) -> Sequence[Any]:
        return self.vision_tower.encoder.layer

    def tower_attention(self, layer: Any) -> Any:
        return layer.attention

    @property
    def shuffle(self) -> int:
        return round(1 / self.model.config.downsample_ratio)

    def patches_read(self, features: Tensor) -> int:
        return features.shape[1] * self.shuffle**2

    def cells_read(self, features: Tensor, cells: Tensor) -> Tensor:
        return features  # the model shuffles before it projects

    def _options(self) -> dict[str, Any]:
        return {} if self.tiles is None else {"crop_to_patches": self.tiles}

    def row(
        self, text: str, images: Sequence[Image], videos: Sequence[Frames] = (), **options: Any
    ) -> Mapping[str, Any]:
        if len({len(clip) for clip in videos}) > 1:
            raise UserError(f"backbone={self.name}: the videos of one question need equally many frames")
        return super().row(text, images, videos, **options)
