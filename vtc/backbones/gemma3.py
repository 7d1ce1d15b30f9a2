"""Gemma 3 (arXiv 2503.19786), as transformers has it: SigLIP at 896×896 pixels, 4×4 patches of which are averaged into
one visual token, a norm and one linear map, and a decoder five of six layers of which attend in a window.

Every picture is 256 visual tokens between `<start_of_image>` and `<end_of_image>`; they see each other both ways, where
the call says which tokens they are (`token_type_ids`). Pan and scan, which puts crops of a picture beside it, is off,
as in the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

from vtc.backbones.base import decoder_sizes, tower_sizes
from vtc.backbones.chat import Chat
from vtc.backbones.clip_tower import ClipTower
from vtc.errors import UserError
from vtc.interface import BackboneShape, Tower, TowerShape

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature

    from vtc.backbones.parts import Clips


class Gemma3(ClipTower, Chat):
    """Any `Gemma3ForConditionalGeneration`."""

    model_type, model_class = "gemma3", "Gemma3ForConditionalGeneration"
    version = 1
    windows, both_ways = True, "token_type_ids"
    tower_outputs = ("last_hidden_state",)
    image_text = "<start_of_image>"
    turn_end = "<end_of_turn>"
    template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
        "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )

    def __init__(self, name: str, model: Any, processor: Any, shape: BackboneShape, **options: Any) -> None:
        super().__init__(name, model, processor, shape, **options)
        if _see_the_size not in self.projector._forward_pre_hooks.values():  # a model may be wrapped again
            self.projector.register_forward_pre_hook(_see_the_size)

    @classmethod
    def shape_from(cls, config: Any, name: str) -> BackboneShape:
        if getattr(config.text_config, "use_bidirectional_attention", None):
            raise UserError(f"backbone={name}: every token of its decoder sees those behind it; it can't generate")
        vision, decoder = config.vision_config, decoder_sizes(config.text_config)
        cells, side = vision.image_size // vision.patch_size, round(config.mm_tokens_per_image**0.5)
        return BackboneShape(
            name=name,
            visual_tokens=side * side,
            grid=(side, side),
            vision=TowerShape(
                feature_layer=-1,
                **tower_sizes(vision),
                tokens=cells * cells,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                merge=cells // side,
                projector=vision.hidden_size * decoder["width"],
            ),
            **decoder,
        )

    # -- tower
    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        outputs = self.encoded(kwargs).get("image")
        return None if outputs is None else list(outputs.pooler_output)

    def tower_pictures(self, medium: str, call: Mapping[str, Any], features: Tensor) -> Tower:
        """Picture by picture; a cell is a square of patches, and its feature their mean."""
        import torch

        merge, side = self.projector.kernel_size, isqrt(features.shape[1])
        number = torch.arange(side * side, device=features.device).view(side // merge, merge, side // merge, merge)
        cells = number.transpose(1, 2).reshape(-1, merge * merge)
        return Tower(features[:, cells].mean(2), cells=cells)

    def project(self, features: Tensor) -> Tensor:
        projector = self.projector
        projected: Tensor = projector.mm_soft_emb_norm(features) @ projector.mm_input_projection_weight
        return projected.type_as(features)

    def unprojected(self, features: Tensor) -> Tensor:
        merged = features.shape[1] // self.projector.kernel_size**2
        return features.new_zeros(len(features), merged, self.shape.width)

    # -- pictures
    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        pictures = {"images": images, "do_pan_and_scan": False} if any(images) else {}
        return self.processor(text=text, padding=True, padding_side="left", return_tensors="pt", **pictures)

    def row(self, text: str, images: Sequence[Image], **options: Any) -> Mapping[str, Any]:
        pictures = {"images": [list(images)], "do_pan_and_scan": False} if images else {}
        return self.processor(text=[text], return_tensors="pt", **pictures, **options)


def _see_the_size(projector: Any, args: tuple[Tensor]) -> None:
    """The projector takes every picture for one of the size that its configuration states; smaller ones it averages
    in the same squares once it knows of how many patches a side they are."""
    projector.patches_per_image = isqrt(args[0].shape[1])
