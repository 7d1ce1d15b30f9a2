"""LLaVA-1.5: a CLIP tower, a two-layer projector, a Llama decoder (arXiv 2310.03744), as transformers has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtc.backbones.base import Backbone, decoder_sizes, tower_sizes
from vtc.backbones.clip_tower import ClipTower
from vtc.interface import BackboneShape, TowerShape

if TYPE_CHECKING:
    from torch import Tensor


class Llava(ClipTower, Backbone):
    """Any `LlavaForConditionalGeneration`."""

    model_type, model_class = "llava", "LlavaForConditionalGeneration"
    version = 1
    tower_outputs = ("hidden_states",)

    @classmethod
    def shape_from(cls, config: Any, name: str) -> BackboneShape:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        count = side * side
        first = int(getattr(vision, "model_type", "clip_vision_model") != "siglip_vision_model")
        full = bool(first) and config.vision_feature_select_strategy == "full"  # keeps the CLS token
        level = config.vision_feature_layer
        return BackboneShape(
            name=name,
            visual_tokens=count + full,
            grid=None if full else (side, side),
            vision=TowerShape(
                feature_layer=level if isinstance(level, int) else max(level),
                **tower_sizes(vision),
                tokens=count + first,
                cls=first,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
            ),
            **decoder_sizes(config.text_config),
        )

    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        outputs = self.encoded(kwargs).get("image")
        return None if outputs is None else outputs.pooler_output

    def prompt(self, question: str, images: int = 1, videos: int = 0) -> str:
        """LLaVA-1.5's: `USER: <image>\\n{question} ASSISTANT:`, one `<image>\\n` per image."""
        return "USER: " + "<image>\n" * images + "<video>\n" * videos + f"{question} ASSISTANT:"
