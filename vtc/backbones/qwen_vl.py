"""Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631), as transformers has them.

Images keep their resolution: a picture of H×W pixels is H/28 × W/28 visual tokens (Qwen3-VL: /32), within the bounds of
the processor, and two frames of a video are one such picture. Positions have three axes (M-RoPE). Qwen2.5-VL's tower
attends in windows; Qwen3-VL adds features of three of its tower's layers behind the LLM's first three (deepstack), and
writes the time of each picture of a video before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones.base import decoder_sizes
from vtc.backbones.chat import Chat, chatml
from vtc.backbones.parts import part
from vtc.errors import UserError
from vtc.interface import BackboneShape, Tower, TowerShape, TowerUse

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature
    from transformers.video_utils import VideoMetadata

    from vtc.backbones.parts import Clips
    from vtc.settings import BackboneSettings

Grid = tuple[int, int]
EXAMPLE = 24  # visual tokens along a side of the image that costs are measured on, as LLaVA-1.5 has them
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


class QwenVL(Chat):
    """What the three families share.

    Attributes:
        frames_per_second: of a video whose frames don't say when they are; the processor's own default.
        pixels: the least and the most that an image may have for the released processors.
    """

    position_axes = 3
    frames_per_second: ClassVar[float] = 2.0
    pixels: ClassVar[tuple[int, int]] = 56**2, 3584**2
    image_text = "<|vision_start|><|image_pad|><|vision_end|>"
    video_text = "<|vision_start|><|video_pad|><|vision_end|>"
    template, turn_end = chatml(image_text, video_text, SYSTEM), "<|im_end|>"

    @classmethod
    def shape_from(cls, config: Any, name: str, image_size: int | None = None) -> BackboneShape:
        text, vision = getattr(config, "text_config", config), config.vision_config  # the hub's are flat
        patch, merge = vision.patch_size, vision.spatial_merge_size
        whole = isinstance(image_size, int) and image_size > 0 and image_size % (patch * merge) == 0
        if image_size is not None and not whole:
            raise cls._refused(image_size, name, patch * merge, cls.pixels)
        side = None if image_size is None else image_size // (patch * merge)
        return BackboneShape(
            name=name,
            visual_tokens=None if side is None else side * side,
            grid=None if side is None else (side, side),
            vision=TowerShape(
                depth=vision.depth,
                feature_layer=-1,
                heads=vision.num_heads,
                cls=0,
                image_size=image_size or EXAMPLE * patch * merge,
                patch_size=patch,
                merge=merge,
                **cls._vision_widths(vision),
            ),
            **decoder_sizes(text),
        )

    @classmethod
    def shape_of(cls, settings: BackboneSettings) -> BackboneShape:
        shape = super().shape_of(settings)
        cls._within(shape, cls._pixels_of(settings.source))
        return shape

    def __init__(self, name: str, model: Any, processor: Any, shape: BackboneShape, **options: Any) -> None:
        if processor is not None:
            size = processor.image_processor.size
            self._within(shape, (size["shortest_edge"], size["longest_edge"]))
        super().__init__(name, model, processor, shape, **options)

    @classmethod
    def _within(cls, shape: BackboneShape, pixels: tuple[int, int]) -> None:
        """Raises `UserError` for a size of images that the processor wouldn't leave as it is."""
        side = shape.vision.image_size
        if shape.grid is not None and not pixels[0] <= side * side <= pixels[1]:
            raise cls._refused(side, shape.name, side // shape.grid[0], pixels)

    @staticmethod
    def _refused(side: Any, name: str, step: int, pixels: tuple[int, int]) -> UserError:
        least, most = math.ceil(pixels[0] ** 0.5 / step) * step, math.floor(pixels[1] ** 0.5 / step) * step
        allowed = f"multiples of {step} from {least} to {most}, or null"
        return UserError(f"backbone.image_size={side}: {name} takes {allowed}")

    @classmethod
    def _pixels_of(cls, source: str) -> tuple[int, int]:
        """What the processor in the folder `source` says, else what the released ones do."""
        for name in ("processor_config.json", "preprocessor_config.json"):
            file = Path(source) / name
            if file.is_file():
                content = json.loads(file.read_text(encoding="utf-8"))
                content = content.get("image_processor", content)
                size = content.get("size") or {}
                least = content.get("min_pixels") or size.get("shortest_edge")
                most = content.get("max_pixels") or size.get("longest_edge")
                if least and most:
                    return least, most
        return cls.pixels

    @classmethod
    def _vision_widths(cls, vision: Any) -> dict[str, Any]:
        """Width of the vision tower, and of its MLPs."""
        return {"width": vision.hidden_size, "intermediate": vision.intermediate_size}

    # -- parts
    vision_tower, projector = part("model.visual"), part("model.visual.merger")

    @property
    def tower_layers(self) -> Sequence[Any]:
        return self.vision_tower.blocks

    def tower_attention(self, layer: Any) -> Any:
        return layer.attn

    def project(self, features: Tensor) -> Tensor:
        patches = features.unflatten(-1, (self._merge**2, -1)).flatten(0, -2)
        return self.projector(patches).view(*features.shape[:-1], -1)

    def unprojected(self, features: Tensor) -> Tensor:
        return features.new_zeros(features[..., 0].numel() // self._merge**2, self.shape.width)

    @property
    def _merge(self) -> int:
        """Patches along a side of the square that becomes a visual token."""
        return self.model.config.vision_config.spatial_merge_size

    def tower_pictures(self, medium: str, call: Mapping[str, Any], features: Tensor) -> Tower:
        """All pictures are one sequence, in which the patches of a visual token follow each other."""
        import torch

        grids, merged = call[f"{medium}_grid_thw"], self._merge**2
        cells = torch.arange(len(features), device=features.device).view(-1, merged)
        place = self._token_cells(grids).to(cells.device)
        sizes = [h * w // merged for t, h, w in grids.tolist() for _ in range(t)]
        return Tower(features.view(1, len(cells), -1), cells=cells, patches=list(place.split(sizes)), packed=True)

    def resized(self, medium: str, call: dict[str, Any], pixels: str, use: TowerUse) -> dict[str, Any]:
        from vtc.backbones.pixels import repacked

        vision, grids = self.model.config.vision_config, f"{medium}_grid_thw"
        if use.grid is None:
            return call
        sizes = vision.patch_size, self._merge, vision.temporal_patch_size
        packed, left = repacked(call[pixels], call[grids], use.grid, *sizes)
        return call | {pixels: packed, grids: left}

    def places(self, medium: str, call: Mapping[str, Any], count: int) -> list[int]:
        return [h * w // self._merge**2 for t, h, w in call[f"{medium}_grid_thw"].tolist() for _ in range(t)]

    def _token_cells(self, grids: Tensor) -> Tensor:
        """[M] which of the tower's cells each visual token is."""
        import torch

        return torch.arange(int(grids.prod(-1).sum()) // self._merge**2)

    @property
    def placeholders(self) -> tuple[int, ...]:
        return self.model.config.image_token_id, self.model.config.video_token_id

    # -- what a call brings
    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        import torch

        outputs = self.encoded(kwargs)
        if not outputs:
            return None
        whole = {media: torch.cat(list(out.pooler_output)) for media, out in outputs.items()}
        offset = dict.fromkeys(whole, 0)
        features = []
        for media, count, _ in self._pictures(kwargs):
            if media in whole:
                features.append(whole[media][offset[media] : offset[media] + count])
                offset[media] += count
        return features

    def grids(self, kwargs: dict[str, Any], features: Sequence[Tensor]) -> list[Grid | None]:
        return [grid for _, _, grid in self._pictures(kwargs)]

    def _pictures(self, kwargs: Mapping[str, Any]) -> list[tuple[str, int, Grid | None]]:
        """The images, and the pictures of videos (one for two frames), of a call in the order of its prompts: (`image`
        or `video`, visual tokens, grid).

        The processor's grids say it. `generate` keeps those to itself, but the positions that it passes on tell the
        same.
        """
        ids, merge = kwargs.get("input_ids"), self._merge
        by_media = {media: kwargs.get(f"{media}_grid_thw") for media in ("image", "video")}
        if ids is None:
            return []
        if all(grids is None for grids in by_media.values()):
            return self._pictures_by_position(ids, kwargs.get("position_ids"))
        known = {}
        for media, grids in by_media.items():
            every = [] if grids is None else grids.tolist()
            known[media] = iter([(h // merge, w // merge) for t, h, w in every for _ in range(t)])
        image, video = self.placeholders
        is_video = (ids[(ids == image) | (ids == video)] == video).tolist()
        pictures: list[tuple[str, int, Grid | None]] = []
        at = 0
        while at < len(is_video):
            media = "video" if is_video[at] else "image"
            grid = next(known[media], None)
            if grid is None:
                break  # fewer than the prompt has places for: the model itself says so
            pictures.append((media, grid[0] * grid[1], grid))
            at += grid[0] * grid[1]
        return pictures

    def _pictures_by_position(self, ids: Tensor, position: Tensor | None) -> list[tuple[str, int, Grid | None]]:
        """A picture begins where height and width are those of the first token of its image or video, and its first
        row is as long as the height stays what it is there."""
        import torch
        from torch.nn.functional import pad

        image, video = self.placeholders
        kind = (ids == image).long() + 2 * (ids == video)
        begins = (kind > 0) & (kind != pad(kind, (1, 0))[:, :-1])
        axes = position is not None and position.ndim == 3
        if position is not None and axes:
            column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            first = column.masked_fill(~begins, 0).cummax(1).values
            height, width = position[-2:].to(ids.device)
            top = height == height.gather(1, first)
            begins |= (kind > 0) & top & (width == width.gather(1, first))
        number = begins.flatten().cumsum(0)[kind.flatten() > 0] - 1
        media = ["video" if k == 2 else "image" for k in kind[begins].tolist()]
        counts = number.bincount().tolist()
        if not axes:
            return [(m, n, None) for m, n in zip(media, counts, strict=True)]
        wide = number[top[kind > 0]].bincount().tolist()
        return [(m, n, (n // w, w)) for m, n, w in zip(media, counts, wide, strict=True)]

    def images_in(self, inputs: Mapping[str, Tensor]) -> int:
        return sum(int(inputs[key][:, 0].sum()) for key in ("image_grid_thw", "video_grid_thw") if key in inputs)

    # -- inputs
    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        import torch

        media: dict[str, Any] = {"images": [image for row in images for image in row] or None}
        clips = [frames for row in videos or () for frames in row]
        if clips:
            media["videos"] = [self._clip(frames) for frames in clips]
            media |= {"video_metadata": [self._times(frames) for frames in clips], "do_sample_frames": False}
        if self.image_size is not None:
            media["do_resize"] = False  # in this size they come already
        batch = self.processor(text=text, padding=True, padding_side="left", return_tensors="pt", **media)
        if "second_per_grid_ts" in batch:  # numbers, which no cast to the model's dtype can round
            batch["second_per_grid_ts"] = torch.as_tensor(batch["second_per_grid_ts"]).tolist()
        return batch

    def _clip(self, frames: Sequence[Image]) -> list[Image]:
        """Frames as they are read: at least as many as make one picture."""
        sized = [self.sized(frame) for frame in frames]
        return sized + sized[-1:] * (self.processor.video_processor.temporal_patch_size - len(sized))

    def _times(self, frames: Sequence[Image]) -> VideoMetadata:
        """When each frame is, in thousandths: `info["seconds"]` of the frames, else evenly by `frames_per_second`."""
        from transformers.video_utils import VideoMetadata

        known = [float(frame.info["seconds"]) for frame in frames if "seconds" in frame.info]
        seconds = known if len(known) == len(frames) else [n / self.frames_per_second for n in range(len(frames))]
        apart = (seconds[-1] - seconds[0]) / (len(frames) - 1) if len(frames) > 1 else 0
        whole = len(frames) * (apart if apart > 0 else 1 / self.frames_per_second)
        index = [round(1000 * t) for t in seconds]
        return VideoMetadata(total_num_frames=round(1000 * whole), fps=1000, frames_indices=index)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[3, B, L]: time, height and width."""
        mask = inputs["attention_mask"]
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        grids = {name: inputs[name] for name in names if inputs.get(name) is not None}
        if not grids:
            return super().positions(inputs).expand(3, -1, -1)
        kinds = inputs["mm_token_type_ids"]
        return self.core.get_rope_index(inputs["input_ids"], kinds, attention_mask=mask, **grids)[0]


class Qwen2VL(QwenVL):
    """Any `Qwen2VLForConditionalGeneration`."""

    model_type, model_class = "qwen2_vl", "Qwen2VLForConditionalGeneration"
    version = 1

    @classmethod
    def _vision_widths(cls, vision: Any) -> dict[str, Any]:
        return {"width": vision.embed_dim, "intermediate": vision.embed_dim * vision.mlp_ratio}


class Qwen2_5VL(QwenVL):
    """Any `Qwen2_5_VLForConditionalGeneration`."""

    model_type, model_class = "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"
    version = 1

    def _token_cells(self, grids: Tensor) -> Tensor:
        """The tower works on them window by window."""
        from transformers.vision_utils import get_vision_window_index

        vision = self.model.config.vision_config
        return get_vision_window_index(grids, self._merge, vision.window_size, vision.patch_size)[0].argsort()


class Qwen3VL(QwenVL):
    """Any `Qwen3VLForConditionalGeneration`, the dense ones."""

    model_type, model_class = "qwen3_vl", "Qwen3VLForConditionalGeneration"
    version = 1
    template = chatml(QwenVL.image_text, str(QwenVL.video_text))
    pixels = 256**2, 4096**2


class Qwen3VLMoe(Qwen3VL):
    """Any `Qwen3VLMoeForConditionalGeneration`: the same, but that a router sends each token through some of many MLPs.

    Which ones is told by the token's own hidden state, so that what is dropped changes nothing there.
    """

    model_type, model_class = "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"
    version = 1
