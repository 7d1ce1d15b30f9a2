"""LLaVA-1.5: a CLIP tower, a two-layer projector, a Llama decoder (arXiv 2310.03744), as transformers has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones.base import Backbone, BackboneShape
from vtc.errors import UserError

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
        text, vision = config.text_config, config.vision_config
        side = vision.image_size // vision.patch_size
        count = side * side
        first = int(getattr(vision, "model_type", "clip_vision_model") != "siglip_vision_model")
        full = bool(first) and config.vision_feature_select_strategy == "full"  # keeps the CLS token
        layers = vision.num_hidden_layers
        level = config.vision_feature_layer
        return BackboneShape(
            name=name,
            depth=text.num_hidden_layers,
            width=text.hidden_size,
            visual_tokens=count + full,
            grid=None if full else (side, side),
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            vocab=text.vocab_size,
            vision={
                "depth": layers,
                "feature_layer": level if isinstance(level, int) else max(level),
                "width": vision.hidden_size,
                "intermediate": vision.intermediate_size,
                "heads": vision.num_attention_heads,
                "tokens": count + first,
                "cls": first,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
            },
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

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        import torch

        return torch.stack(self.core.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output)

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


class _Llava15(Llava):
    """LLaVA-1.5 in one of its sizes, which is known without asking the hub: a plan needs no network."""

    depth: ClassVar[int]
    width: ClassVar[int]
    intermediate: ClassVar[int]
    heads: ClassVar[int]

    @classmethod
    def shape_of(cls, cfg: Mapping[str, Any]) -> BackboneShape:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super().shape_of(cfg)
        return BackboneShape(
            name=cfg.get("name") or cls.__name__,
            depth=cls.depth,
            width=cls.width,
            visual_tokens=576,
            grid=(24, 24),
            intermediate=cls.intermediate,
            heads=cls.heads,
            kv_heads=cls.heads,
            vocab=32064,
            vision={
                "depth": 24,
                "feature_layer": -2,
                "width": 1024,
                "intermediate": 4096,
                "heads": 16,
                "tokens": 577,
                "cls": 1,
                "image_size": 336,
                "patch_size": 14,
            },
        )

    @classmethod
    def _skeleton_config(cls, cfg: Mapping[str, Any]) -> Any:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super()._skeleton_config(cfg)
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        shape = cls.shape_of(cfg)
        v = shape.vision
        text = LlamaConfig(
            hidden_size=shape.width,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocab,
        )
        vision = CLIPVisionConfig(
            hidden_size=v["width"],
            intermediate_size=v["intermediate"],
            num_hidden_layers=v["depth"],
            num_attention_heads=v["heads"],
            image_size=v["image_size"],
            patch_size=v["patch_size"],
        )
        return LlavaConfig(text_config=text, vision_config=vision, vision_feature_layer=v["feature_layer"])


class Llava15_7B(_Llava15):
    """LLaVA-1.5 7B."""

    default_pretrained = "llava-hf/llava-1.5-7b-hf"
    depth, width, intermediate, heads = 32, 4096, 11008, 32


class Llava15_13B(_Llava15):
    """LLaVA-1.5 13B."""

    default_pretrained = "llava-hf/llava-1.5-13b-hf"
    depth, width, intermediate, heads = 40, 5120, 13824, 40
