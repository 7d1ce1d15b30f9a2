"""What a stage may train, by the places of the parameters in an LVLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vtc.errors import unknown

if TYPE_CHECKING:
    from torch import nn

    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

PARTS = ("method", "adapters", "projector", "decoder")


def parameters_of(part: str, backbone: Backbone, method: Compressor) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of one part, named as in a checkpoint.

    ``method``: its own (registers, summary tokens); ``adapters``: LoRA; ``projector`` and ``decoder``: the backbone's.
    """
    if part == "method":
        yield from ((f"method.{n}", p) for n, p in method.named_parameters())
        return
    if part not in PARTS:
        raise unknown("training.stages[].train", part, PARTS)
    projector = {id(p) for p in backbone.projector.parameters()}
    tower = {id(p) for p in backbone.vision_tower.parameters()}
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            place = "adapters"
        elif id(parameter) in projector:
            place = "projector"
        else:
            place = "tower" if id(parameter) in tower else "decoder"
        if place == part:
            yield f"backbone.{name}", parameter
