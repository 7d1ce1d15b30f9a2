"""LLaVA-1.5: a CLIP tower, a two-layer projector, a Llama decoder (arXiv 2310.03744), as transformers has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtc.backbones.base import Backbone, decoder_sizes
from vtc.backbones.known import CLIP_336, Known, decoder
from vtc.errors import UserError
from vtc.interface import BackboneShape, TowerShape

if TYPE_CHECKING:
    from torch import Tensor


class Llava(Backbone):
    """Any `LlavaForConditionalGeneration`."""

    model_class = "LlavaForConditionalGeneration"

    @classmethod
    def _check(cls, config: Any, source: str) -> None:
        if config.model_type != "llava":
            raise UserError(
                f"backbone.pretrained={source}: a {config.model_type} model; this backbone reads llava ones"
            )

    @classmethod
    def shape_from(cls, config: Any, name: str) -> BackboneShape:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        count = side * side
        first = int(getattr(vision, "model_type", "clip_vision_model") != "siglip_vision_model")
        full = bool(first) and config.vision_feature_select_strategy == "full"  # keeps the CLS token
        layers = vision.num_hidden_layers
        level = config.vision_feature_layer
        return BackboneShape(
            name=name,
            visual_tokens=count + full,
            grid=None if full else (side, side),
            vision=TowerShape(
                depth=layers,
                feature_layer=level if isinstance(level, int) else max(level),
                width=vision.hidden_size,
                intermediate=vision.intermediate_size,
                heads=vision.num_attention_heads,
                tokens=count + first,
                cls=first,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
            ),
            **decoder_sizes(config.text_config),
        )

    @property
    def tower_layers(self) -> Sequence[Any]:
        return self.vision_tower.encoder.layers

    @property
    def tower_embeddings(self) -> Any:
        return self.vision_tower.embeddings

    def tower_halves(self, layer: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
        block = self.tower_layers[layer]

        def attend(hidden: Tensor, bias: Tensor) -> Tensor:
            return hidden + block.self_attn(block.layer_norm1(hidden), attention_mask=bias)[0]

        def mlp(hidden: Tensor) -> Tensor:
            return hidden + block.mlp(block.layer_norm2(hidden))

        return attend, mlp

    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        outputs = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if outputs is None and kwargs.get("pixel_values") is not None:
            names = ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes")
            chosen = {k: kwargs[k] for k in names if kwargs.get(k) is not None}
            outputs = self.core.get_image_features(pixel_values=kwargs["pixel_values"], return_dict=True, **chosen)
            kwargs["mm_encoder_outputs"] = {**(kwargs.get("mm_encoder_outputs") or {}), "image": outputs}
            kwargs["pixel_values"] = None
        return None if outputs is None else outputs.pooler_output

    def prompt(self, question: str, images: int = 1, videos: int = 0) -> str:
        """LLaVA-1.5's: `USER: <image>\\n{question} ASSISTANT:`, one `<image>\\n` per image."""
        return "USER: " + "<image>\n" * images + f"{question} ASSISTANT:"


class Pocket(Llava):
    """The shipped miniature: a LLaVA of a few million parameters, 96×96 images, 144 visual tokens."""

    @classmethod
    def pretrained(cls, cfg: Mapping[str, Any]) -> str:
        if cfg.get("pretrained"):
            return str(cfg["pretrained"])
        from vtc.shipped import path

        return str(path("benchmarks/pocket/weights/base"))


def _written(width: int, intermediate: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llava",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": CLIP_336,
        "text_config": decoder("llama", width, intermediate, depth, heads, heads, 32064),
    }


class Llava15_7B(Known, Llava):
    """LLaVA-1.5 7B."""

    default_pretrained = "llava-hf/llava-1.5-7b-hf"
    written = _written(4096, 11008, 32, 32)


class Llava15_13B(Known, Llava):
    """LLaVA-1.5 13B."""

    default_pretrained = "llava-hf/llava-1.5-13b-hf"
    written = _written(5120, 13824, 40, 40)
