"""Backbones: a family of models is a class, in a file of its own; a checkpoint of it is a file in `conf/backbone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtc.backbones import refused
from vtc.errors import UserError
from vtc.registry import families

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone


def wrap(model: Any, processor: Any | None = None, image_size: int | None = None) -> Backbone:
    """A transformers model in memory as a backbone of its family (also inside DDP or a PeftModel).

    Args:
        image_size: see `vtc.backbones.base.Backbone`.

    Raises:
        UserError: a model of no known family.
    """
    while hasattr(model, "module") and not hasattr(model, "config"):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family in refused.WHY and family not in families.names():
        raise UserError(f"model={family}: no backbone adapter for it: {refused.WHY[family]}")
    if family not in families.names():
        raise UserError(f"model={family}: no backbone adapter for it; there is one for {', '.join(families.names())}")
    return families.get(family).wrap(model, processor, image_size=image_size)
