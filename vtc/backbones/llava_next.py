"""LLaVA-NeXT (LLaVA-1.6): LLaVA whose images are cut into tiles, with newline tokens, as transformers has it.

An image is the whole picture: its base tile, its other tiles and its newline tokens together are what a budget applies
to (`vtc.backbones.anyres`). Newline tokens are visual tokens like others. The tokens are no rectangular grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.backbones import anyres
from vtc.backbones.chat import Chat
from vtc.backbones.llava import Llava
from vtc.backbones.regions import Region
from vtc.interface import BackboneShape, Tower

if TYPE_CHECKING:
    from torch import Tensor


class LlavaNext(Chat, Llava):
    """Any `LlavaNextForConditionalGeneration`."""

    model_type, model_class = "llava_next", "LlavaNextForConditionalGeneration"
    version = 1

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

    def tower_pictures(self, medium: str, call: Mapping[str, Any], features: Tensor) -> Tower:
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
        return Tower(features, patches=[image[:, 0].long() for image in packed])

    def grid_of(self, count: int) -> tuple[int, int] | None:
        return None

    def regions(self, size: tuple[int, int], count: int, grid: tuple[int, int] | None) -> list[Region]:
        """Of a picture that is cut into tiles; of one that is a tile with a newline, and of a frame, its grid."""
        size = size if self.image_size is None else (self.image_size, self.image_size)
        tiles, side = anyres.regions(size, self.model.config), self.shape.vision.grid_side
        if sum(region.tokens for region in tiles) == count:
            return tiles
        return [Region(*grid)] if grid else [Region(side, side)] if count - side * side in (0, 1) else []
