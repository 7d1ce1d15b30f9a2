"""Checkpoints of the hub whose sizes are known without asking it: a plan needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from vtc.backbones.base import Backbone


class Known(Backbone):
    """A backbone of which `written` says what its checkpoint's config.json does, as far as sizes go.

    Put in front of the family's class: `class LlavaNextMistral7B(Known, LlavaNext)`. Another `pretrained` is read as
    the family reads it.
    """

    written: ClassVar[Mapping[str, Any]]

    @classmethod
    def _config_text(cls, cfg: Mapping[str, Any]) -> str | None:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super()._config_text(cfg)
        return json.dumps(cls.written)

    @classmethod
    def _skeleton_config(cls, cfg: Mapping[str, Any]) -> Any:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super()._skeleton_config(cfg)
        from transformers import AutoConfig

        return AutoConfig.for_model(**json.loads(json.dumps(cls.written)))


def decoder(
    kind: str, width: int, intermediate: int, depth: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    """The `text_config` of a decoder of this `model_type` and these sizes."""
    more |= {"num_key_value_heads": kv_heads, "vocab_size": vocab}
    return _layers(kind, width, intermediate, depth, heads) | more


def tower(
    kind: str, width: int, intermediate: int, depth: int, heads: int, image_size: Any, patch_size: Any, **more: Any
) -> dict[str, Any]:
    """The `vision_config` of a ViT of this `model_type` and these sizes."""
    more |= {"image_size": image_size, "patch_size": patch_size}
    return _layers(kind, width, intermediate, depth, heads) | more


def _layers(kind: str, width: int, intermediate: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }


CLIP_336 = tower("clip_vision_model", 1024, 4096, 24, 16, 336, 14)
