"""Qwen3.5, as transformers has it: Qwen3-VL's tower without deepstack, its images and its positions, and a decoder
three of four layers of which have linear attention (the gated delta rule, arXiv 2412.06464).

The others attend, and gate what comes of it by the token's own hidden state.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from vtc.backbones.parts import Parts
from vtc.backbones.qwen_vl import Qwen3VL
from vtc.interface import BackboneShape


class Qwen3_5(Qwen3VL):
    """Any `Qwen3_5ForConditionalGeneration`, the dense ones."""

    model_type, model_class = "qwen3_5", "Qwen3_5ForConditionalGeneration"
    version = 1
    recurrent = True
    linear_layers: ClassVar[tuple[str, ...]] = (
        *Parts.linear_layers, *(f"in_proj_{name}" for name in ("qkv", "z", "b", "a")), "out_proj"
    )  # fmt: skip
    template_options: ClassVar[dict[str, Any]] = {"enable_thinking": False}

    @classmethod
    def shape_from(cls, config: Any, name: str, image_size: int | None = None) -> BackboneShape:
        return dataclasses.replace(super().shape_from(config, name, image_size), gated=True)
