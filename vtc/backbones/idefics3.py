"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299), as transformers has them: SigLIP, pixel shuffle, one
linear projector, a Llama decoder.

A picture is enlarged until its longer side is four tiles long, and cut into rows and columns of them; behind them comes
the whole picture in small, the global tile. Each tile stands in the prompt behind a text of its own, `<row_1_col_2>` or
`<global-img>`, so that an image's visual tokens stand apart. The frames of a video (SmolVLM2) are pictures of one tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones.parts import part
from vtc.backbones.tiles import Frames, Tiled, one_tile
from vtc.errors import UserError
from vtc.interface import BackboneShape

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

GLOBAL = "<global-img>"  # what stands before the last tile of an image
MESSAGES = (  # of the chat templates
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'] is not string and message['content'][0]['type'] == 'image' else ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'video' %}<video>{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Idefics3(Tiled):
    """Any `Idefics3ForConditionalGeneration`: Idefics3 and the first SmolVLM."""

    model_type, model_class = "idefics3", "Idefics3ForConditionalGeneration"
    version = 1
    tower_outputs = ("last_hidden_state",)
    most_tiles = 4
    of_any_size: ClassVar[dict[str, Any]] = {"pixel_attention_mask": None}  # tiles are full
    decoder, projector, vision_tower = part("model.text_model"), part("model.connector"), part("model.vision_model")
    template, turn_end = "{{ bos_token }}" + MESSAGES, "<end_of_utterance>"

    @classmethod
    def tile_from(cls, config: Any, name: str) -> BackboneShape:
        return one_tile(config, name, config.scale_factor)

    @property
    def tower_layers(self) -> Sequence[Any]:
        return self.vision_tower.encoder.layers

    @property
    def shuffle(self) -> int:
        return self.projector.scale_factor

    def patches_read(self, features: Tensor) -> int:
        return features.shape[1]

    def cells_read(self, features: Tensor, cells: Tensor) -> Tensor:
        return self.projector.pixel_shuffle(features, self.shuffle)

    def project(self, features: Tensor) -> Tensor:
        return self.projector.modality_projection(features)

    def unprojected(self, features: Tensor) -> Tensor:
        return features.new_zeros(len(features), features.shape[1] // self.shuffle**2, self.shape.width)

    def last_tiles(self, input_ids: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The one behind `<global-img>`, at the latest the last one of its row."""
        ends = self._behind_global(input_ids, row, column)
        ends[:-1] |= row[1:] != row[:-1]
        ends[-1:] = True
        return ends

    def _behind_global(self, input_ids: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """[T] bool: which of the tiles that begin at these places have `<global-img>` before them.

        In some vocabularies it is one token, in others (Idefics3's own) it is spelled out.
        """
        import torch

        if self.tokenizer is None:
            if self.tiles is False or self.shape.visual_tokens == self.shape.vision.tile_tokens:
                return torch.ones_like(row, dtype=torch.bool)  # every picture is one tile
            raise UserError(
                f"backbone={self.name}: only its tokenizer says where an image of several tiles ends; "
                "make the backbone with its processor"
            )
        tag = torch.tensor(self._global, device=input_ids.device)
        back = column[:, None] - len(tag) + torch.arange(len(tag), device=column.device)
        before = input_ids[row[:, None], back.clamp(min=0)]
        return ((before == tag) & (back >= 0)).all(1)

    @cached_property
    def _global(self) -> list[int]:
        return self.tokenizer(GLOBAL, add_special_tokens=False)["input_ids"]

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.tiles is None else {"do_image_splitting": self.tiles}
        if self.image_size is not None and self.tiles is not False:
            options |= {"do_image_splitting": True, "size": {"longest_edge": self.image_size}}
        return options

    def _flat(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """One row a tile: the model takes rows of tiles [B, T, 3, S, S], in which shorter ones would be filled up. No
        mask of pixels, since tiles are full.
        """
        inputs = {name: value for name, value in row.items() if name != "pixel_attention_mask"}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].flatten(0, 1)[:, None]
        return inputs


class SmolVLM(Idefics3):
    """Any `SmolVLMForConditionalGeneration`: SmolVLM2, which reads videos too."""

    model_type, model_class = "smolvlm", "SmolVLMForConditionalGeneration"
    version = 1
    video_text = "<video>"
    template = "<|im_start|>" + MESSAGES

    def row(
        self, text: str, images: Sequence[Image], videos: Sequence[Frames] = (), **options: Any
    ) -> Mapping[str, Any]:
        if images and videos:
            raise UserError(f"backbone={self.name}: its processor reads images or videos in one question, not both")
        return super().row(text, images, videos, **options)

    def _video_options(self, videos: Sequence[Frames]) -> dict[str, Any]:
        """Frames are given without their times: they are taken to be one a second, as the model's own sampling is."""
        from transformers.video_utils import VideoMetadata

        times = [
            VideoMetadata(total_num_frames=n, fps=1.0, frames_indices=list(range(n)), duration=float(n))
            for n in map(len, videos)
        ]
        return {"video_metadata": times, "do_sample_frames": False}
