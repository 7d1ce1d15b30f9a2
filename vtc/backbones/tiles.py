"""Families that cut a picture into square tiles of one size: what InternVL and Idefics3 have in common.

An image is the picture with ALL of its tiles, the whole picture in small among them. Its visual tokens may stand apart
in the prompt, with text between them that says which tile comes next; that is text, and no method drops it. A frame of
a video is an image of one tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones import regions
from vtc.backbones.base import decoder_sizes, tower_sizes
from vtc.backbones.chat import Chat
from vtc.errors import UserError
from vtc.interface import BackboneShape, Tower, TowerShape

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature

    from vtc.backbones.parts import Clips

Frames = Sequence["Image"]


class Tiled(Chat):
    """A family whose pictures are cut into tiles.

    Args:
        tiles: whether they are; None: as the checkpoint's processor has it (they are). Without, every picture is one
            tile. With `image_size` every picture is resized to that square, a multiple of the tile's side, and cut into
            the tiles that it has, beside itself in small.

    Attributes:
        most_tiles: along the side of the largest `image_size`.
    """

    most_tiles: ClassVar[int]
    of_any_size: ClassVar[dict[str, Any]] = {}
    size_options = ("image_size", "tiles")
    tiles: bool | None = None

    # -- sizes
    @classmethod
    def tile_from(cls, config: Any, name: str) -> BackboneShape:
        """The sizes with pictures of one tile."""
        raise NotImplementedError

    @classmethod
    def shape_from(
        cls, config: Any, name: str, image_size: int | None = None, tiles: bool | None = None
    ) -> BackboneShape:
        tile = cls.tile_from(config, name)
        if tiles not in (None, True, False):
            raise UserError(f"backbone.tiles={tiles}: allowed: true, false, null (as the checkpoint has it)")
        if image_size is None:
            return tile if tiles is False else dataclasses.replace(tile, visual_tokens=None, grid=None)
        side, cut = tile.vision.image_size, tiles is not False
        allowed = [side * n for n in range(1, cls.most_tiles + 1 if cut else 2)]
        if image_size not in allowed:
            raise UserError(
                f"backbone.image_size={image_size}: {name} reads tiles of {side}×{side} pixels"
                f"{'' if cut else ', with tiles=false one a picture'}; allowed: {', '.join(map(str, allowed))}, null"
            )
        if image_size == side:
            return tile
        count = (image_size // side) ** 2 + 1
        tokens = count * (tile.vision.tile_tokens or 0)
        return dataclasses.replace(
            tile, visual_tokens=tokens, grid=None, vision=dataclasses.replace(tile.vision, tiles=count)
        )

    def grid_of(self, count: int) -> tuple[int, int] | None:
        """One tile is a grid; several are grids beside each other and the whole picture once more."""
        return super().grid_of(count) if count == self.shape.vision.tile_tokens else None

    def regions(self, size: tuple[int, int], count: int, grid: tuple[int, int] | None) -> list[regions.Region]:
        tokens = self.shape.vision.tile_tokens or 0
        if not tokens or count % tokens:
            return []
        side, tiles = round(tokens**0.5), count // tokens
        if tiles == 1:
            return [regions.Region(side, side)]
        return regions.tiled((1, 1) if self.image_size else size, tiles - 1, side, side, whole=True)

    # -- features
    def image_sizes(self, input_ids: Tensor) -> list[int]:
        """Visual tokens of every image of these rows [B, L], row by row. A tile is a run of placeholders."""
        visual = input_ids == self.image_token_id
        starts = visual.clone()
        starts[:, 1:] &= ~visual[:, :-1]
        ends = self.last_tiles(input_ids, *starts.nonzero().T)
        image = ends.cumsum(0) - ends.long()  # of each tile
        tile = (starts.flatten().cumsum(0) - 1)[visual.flatten()]
        return image[tile].bincount().tolist()

    def last_tiles(self, input_ids: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """[T] bool: which of the runs that begin at these places end an image; all, where tiles have no gaps."""
        return row >= 0

    def images_in(self, inputs: Mapping[str, Tensor]) -> int:
        return len(self.image_sizes(inputs["input_ids"]))

    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        import torch

        outputs = self.encoded(kwargs).get("image")
        if outputs is None:
            return None
        if kwargs.get("input_ids") is None:
            raise UserError("inputs_embeds with images: compression needs input_ids to know where the images are")
        features = outputs.pooler_output  # [T, N, D], or a list of [tiles · N, D]
        flat = features.flatten(0, 1) if isinstance(features, torch.Tensor) else torch.cat(list(features))
        sizes = self.image_sizes(kwargs["input_ids"])
        return list(flat.split(sizes)) if sum(sizes) == len(flat) else [flat]  # the model itself says what is wrong

    # -- tower
    @property
    def shuffle(self) -> int:
        """Patches along a side that become one visual token (pixel shuffle)."""
        raise NotImplementedError

    def tower_pictures(self, medium: str, call: Mapping[str, Any], features: Tensor) -> Tower:
        """Tile by tile; a cell is a square of patches."""
        import torch

        s, patches = self.shuffle, self.patches_read(features)
        side = round(patches**0.5)
        number = torch.arange(patches, device=features.device).view(side // s, s, side // s, s)
        cells = number.transpose(1, 2).reshape(-1, s * s)
        tokens = torch.arange(len(features) * len(cells), device=features.device).view(len(features), -1)
        return Tower(self.cells_read(features, cells), cells=cells, patches=list(tokens))

    def patches_read(self, features: Tensor) -> int:
        """N of what the projector reads."""
        raise NotImplementedError

    def cells_read(self, features: Tensor, cells: Tensor) -> Tensor:
        """[T, F, C'] of what the projector reads, `cells` [F, m] by `cells`."""
        raise NotImplementedError

    # -- pictures
    def _options(self) -> dict[str, Any]:
        """What `tiles` and `image_size` are to the family's processor."""
        raise NotImplementedError

    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        """Row by row: rows may have different numbers of tiles, which are then put one behind the other."""
        import torch
        from torch.nn.utils.rnn import pad_sequence
        from transformers import BatchFeature

        clips: Sequence[Sequence[Frames]] = [[]] * len(text) if videos is None else videos
        encoded = [self.row(*row) for row in zip(text, images, clips, strict=True)]
        rows = [one["input_ids"][0] for one in encoded]
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        batch = {"input_ids": ids, "attention_mask": mask}
        pixels = [one["pixel_values"] for one in encoded if "pixel_values" in one]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
        return BatchFeature(batch)

    def row(
        self, text: str, images: Sequence[Image], videos: Sequence[Frames] = (), **options: Any
    ) -> Mapping[str, Any]:
        import numpy as np

        pictures: dict[str, Any] = {"images": [list(images)], **self._options()} if images else {}
        if videos:
            clips = [np.stack([np.asarray(frame.convert("RGB")) for frame in clip]) for clip in videos]
            pictures |= {"videos": clips, **self._video_options(videos)}
        return self._flat(self.processor(text=[text], return_tensors="pt", **pictures, **options))

    def _video_options(self, videos: Sequence[Frames]) -> dict[str, Any]:
        """What the family's processor wants to know beside the frames."""
        return {}

    def _flat(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row that the processor made, with its tiles one behind the other along the first dimension."""
        return row


def one_tile(config: Any, name: str, shuffle: int, cls_tokens: int = 0, projector_layers: int = 1) -> BackboneShape:
    """The sizes with pictures of one tile.

    Args:
        shuffle: patches along a side that become one visual token.
        cls_tokens: in front of the patches in the tower.
        projector_layers: linear layers of the projector: 1 or 2.
    """
    decoder, vision = decoder_sizes(config.text_config), config.vision_config
    image, patch = _side(vision.image_size), _side(vision.patch_size)
    cells, width, level = image // patch, decoder["width"], getattr(config, "vision_feature_layer", -1)
    side = cells // shuffle
    return BackboneShape(
        name=name,
        visual_tokens=side * side,
        grid=(side, side),
        vision=TowerShape(
            feature_layer=level if isinstance(level, int) else max(level),
            **tower_sizes(vision),
            tokens=cells * cells + cls_tokens,
            cls=cls_tokens,
            image_size=image,
            patch_size=patch,
            tile_tokens=side * side,
            merge=shuffle,
            projector=vision.hidden_size * shuffle**2 * width + (projector_layers - 1) * width**2,
        ),
        **decoder,
    )


def _side(size: Any) -> int:
    """Of a square whose side, or height and width, a config says."""
    return int(size if isinstance(size, int) else size[0])
