"""Backbones, one file per family; `load` makes one from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.registry import backbones, imported

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import BackboneShape


def load(cfg: Mapping[str, Any]) -> Backbone:
    """The backbone of a config with `name` and, optionally, pretrained, dtype, device, attention, device_map,
    trust_remote_code.

    Raises:
        UserError: unknown name, or weights that can't be found.
    """
    return backbones.get(cfg["name"]).load(cfg)


def shape_of(cfg: Mapping[str, Any]) -> BackboneShape:
    """The sizes of that backbone, from its config.json alone."""
    return backbones.get(cfg["name"]).shape_of(cfg)


FAMILIES = {  # a model's `model_type` → the class that knows it
    "idefics3": "vtc.backbones.idefics3:Idefics3",
    "internvl": "vtc.backbones.internvl:InternVL",
    "llava": "vtc.backbones.llava:Llava",
    "llava_next": "vtc.backbones.llava_next:LlavaNext",
    "llava_onevision": "vtc.backbones.llava_onevision:LlavaOnevision",
    "smolvlm": "vtc.backbones.idefics3:SmolVLM",
    "video_llava": "vtc.backbones.video_llava:VideoLlava",
    "qwen2_vl": "vtc.backbones.qwen_vl:Qwen2VL",
    "qwen2_5_vl": "vtc.backbones.qwen_vl:Qwen2_5VL",
    "qwen3_vl": "vtc.backbones.qwen_vl:Qwen3VL",
}


def wrap(model: Any, processor: Any | None = None, image_size: int | None = None) -> Backbone:
    """A transformers model in memory as a backbone of its family (also inside DDP or a PeftModel).

    Args:
        image_size: see `Backbone`.

    Raises:
        UserError: a model of no known family.
    """
    from vtc.errors import UserError

    while hasattr(model, "module") and not hasattr(model, "config"):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise UserError(f"model={kind}: no backbone adapter for it; there is one for {', '.join(FAMILIES)}")
    return imported(FAMILIES[kind]).wrap(model, processor, image_size=image_size)
