"""LLaVA-NeXT (LLaVA-1.6): LLaVA whose images are cut into tiles, with newline tokens, as transformers has it.

An image is the whole picture: its base tile, its other tiles and its newline tokens together are what a budget applies
to (`vtc.backbones.anyres`). Newline tokens are visual tokens like others. The tokens are no rectangular grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones import anyres
from vtc.backbones.chat import Chat
from vtc.backbones.known import CLIP_336, Known, decoder
from vtc.backbones.llava import Llava
from vtc.errors import UserError
from vtc.interface import BackboneShape

if TYPE_CHECKING:
    from torch import Tensor


def require_model(config: Any, kind: str, source: str) -> None:
    """Raises `UserError` unless `config` is of a model of this kind."""
    if config.model_type != kind:
        raise UserError(f"backbone.pretrained={source}: a {config.model_type} model; this backbone reads {kind} ones")


class LlavaNext(Chat, Llava):
    """Any `LlavaNextForConditionalGeneration`."""

    model_class = "LlavaNextForConditionalGeneration"
    model_type: ClassVar[str] = "llava_next"

    @classmethod
    def _check(cls, config: Any, source: str) -> None:
        require_model(config, cls.model_type, source)

    @classmethod
    def shape_from(cls, config: Any, name: str, image_size: int | None = None) -> BackboneShape:
        shape = Llava.shape_from(config, name)
        vision = dataclasses.replace(shape.vision, tile_tokens=shape.visual_tokens)
        if image_size is None:  # the tower sees as many tiles as the picture has
            vision = dataclasses.replace(vision, tokens=None)
            return dataclasses.replace(shape, visual_tokens=None, grid=None, vision=vision)
        layout = anyres.fixed(image_size, config, name)
        tiles = 1 + layout.tiles[0] * layout.tiles[1]
        # Padding is projected, newline tokens are not.
        weights = vision.width * shape.width + shape.width**2
        projector = round(weights * tiles * (vision.tile_tokens or 0) / layout.tokens)
        vision = dataclasses.replace(vision, tiles=tiles, projector=projector)
        return dataclasses.replace(shape, visual_tokens=layout.tokens, grid=None, vision=vision)

    def tower_patches(self, call: Mapping[str, Any]) -> list[Tensor]:
        """The model itself packs the patches' numbers as it packs their features, and -1 for a newline."""
        import torch

        config, sizes = self.model.config, call["image_sizes"]
        layouts = [anyres.layout((int(height), int(width)), config) for height, width in sizes]
        tiles = [1 + layout.tiles[0] * layout.tiles[1] for layout in layouts]
        patches = self.shape.vision.tile_tokens or 0
        number = torch.arange(sum(tiles) * patches, device=call["pixel_values"].device).float()
        strategy = call.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
        packed, _ = self.core.pack_image_features(
            number.view(-1, patches, 1).split(tiles), sizes, strategy, image_newline=number.new_full((1,), -1)
        )
        return [image[:, 0].long() for image in packed]

    def grid_of(self, count: int) -> tuple[int, int] | None:
        return None

    def plain_prompt(self, question: str, images: int, videos: int) -> str:
        return Llava.prompt(self, question, images)


def _written(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "llava_next",
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": CLIP_336,
        "text_config": text,
    }


class LlavaNextVicuna7B(Known, LlavaNext):
    """LLaVA-NeXT with Vicuna 7B."""

    default_pretrained = "llava-hf/llava-v1.6-vicuna-7b-hf"
    written = _written(decoder("llama", 4096, 11008, 32, 32, 32, 32064))


class LlavaNextVicuna13B(Known, LlavaNext):
    """LLaVA-NeXT with Vicuna 13B."""

    default_pretrained = "llava-hf/llava-v1.6-vicuna-13b-hf"
    written = _written(decoder("llama", 5120, 13824, 40, 40, 40, 32064))


class LlavaNextMistral7B(Known, LlavaNext):
    """LLaVA-NeXT with Mistral 7B."""

    default_pretrained = "llava-hf/llava-v1.6-mistral-7b-hf"
    written = _written(decoder("mistral", 4096, 14336, 32, 32, 8, 32064))


class LlavaNext34B(Known, LlavaNext):
    """LLaVA-NeXT with Yi 34B."""

    default_pretrained = "llava-hf/llava-v1.6-34b-hf"
    written = _written(decoder("llama", 7168, 20480, 60, 56, 8, 64064))


class LlavaNextLlama3_8B(Known, LlavaNext):
    """LLaVA-NeXT with Llama 3 8B."""

    default_pretrained = "llava-hf/llama3-llava-next-8b-hf"
    written = _written(decoder("llama", 4096, 14336, 32, 32, 8, 128320))


class LlavaNext72B(Known, LlavaNext):
    """LLaVA-NeXT with Qwen1.5 72B."""

    default_pretrained = "llava-hf/llava-next-72b-hf"
    written = _written(decoder("qwen2", 8192, 24576, 80, 64, 64, 152064))


class LlavaNext110B(Known, LlavaNext):
    """LLaVA-NeXT with Qwen1.5 110B."""

    default_pretrained = "llava-hf/llava-next-110b-hf"
    written = _written(decoder("qwen2", 8192, 49152, 80, 64, 8, 152064))
