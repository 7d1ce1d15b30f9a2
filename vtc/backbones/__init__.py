"""Backbones, one file per family; `load` makes one from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.registry import backbones

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone, BackboneShape


def load(cfg: Mapping[str, Any]) -> Backbone:
    """The backbone of a config with `name` and, optionally, pretrained, dtype, device, attention, device_map, trust_remote_code.

    Raises:
        UserError: unknown name, or weights that can't be found.
    """
    return backbones.get(cfg["name"]).load(cfg)


def shape_of(cfg: Mapping[str, Any]) -> BackboneShape:
    """The sizes of that backbone, from its config.json alone."""
    return backbones.get(cfg["name"]).shape_of(cfg)
