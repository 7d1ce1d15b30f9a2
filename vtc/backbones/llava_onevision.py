"""LLaVA-OneVision: a SigLIP tower and a Qwen2 decoder, for images and videos (arXiv 2408.03326).

A picture that is alone in its prompt is cut into tiles as LLaVA-NeXT's are; a grid of more than nine tiles' worth of
tokens is made smaller by bilinear interpolation. Pictures that share a prompt are one tile each, and a newline token.
With `image_size` every picture is cut into tiles, so that all have the same number of tokens.

A frame of a video is one tile whose grid is halved, 27x27 to 14x14, whatever `image_size` is. Each is an image of its
own for budgets; the newline token at the end of a video belongs to its last frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.backbones.frames import Videos
from vtc.backbones.known import Known, decoder, tower
from vtc.backbones.llava_next import LlavaNext
from vtc.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class LlavaOnevision(Videos, LlavaNext):
    """Any `LlavaOnevisionForConditionalGeneration`."""

    model_class = "LlavaOnevisionForConditionalGeneration"
    model_type = "llava_onevision"

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

    def plain_prompt(self, question: str, images: int, videos: int) -> str:
        media = "<image>\n" * images + "<video>\n" * videos
        return f"<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"

    def pictures(self, images: list[list[Image]]) -> list[Any]:
        if self.image_size is not None:
            return super().pictures(images)
        return [row for row in images if row]  # in rows, the processor knows which pictures share a prompt


def _written(width: int, intermediate: int, depth: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict:
    tiles = [384 * n for n in range(1, 7)]
    return {
        "model_type": "llava_onevision",
        "image_grid_pinpoints": [[height, across] for height in tiles for across in tiles],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": tied,
        "vision_config": tower("siglip_vision_model", 1152, 4304, 26, 16, 384, 14, vision_use_head=False),
        "text_config": decoder("qwen2", width, intermediate, depth, heads, kv_heads, vocab),
    }


class LlavaOnevision05B(Known, LlavaOnevision):
    """LLaVA-OneVision with Qwen2 0.5B."""

    default_pretrained = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    written = _written(896, 4864, 24, 14, 2, 152000, True)


class LlavaOnevision7B(Known, LlavaOnevision):
    """LLaVA-OneVision with Qwen2 7B."""

    default_pretrained = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    written = _written(3584, 18944, 28, 28, 4, 152128, False)


class LlavaOnevision72B(Known, LlavaOnevision):
    """LLaVA-OneVision with Qwen2 72B."""

    default_pretrained = "llava-hf/llava-onevision-qwen2-72b-ov-hf"
    written = _written(8192, 29568, 80, 64, 8, 152128, False)
