"""Backbones by the name of their checkpoint and settings that differ from its own, as a user names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtc import backbones
from vtc.backbones.base import Backbone
from vtc.configuration.compose import backbone_settings
from vtc.interface import BackboneShape
from vtc.settings import BackboneSettings


def settings_of(cfg: Mapping[str, Any]) -> BackboneSettings:
    """`name`, and whatever else differs."""
    return backbone_settings(**cfg)


def load(cfg: Mapping[str, Any]) -> Backbone:
    return backbones.load(settings_of(cfg))


def shape_of(cfg: Mapping[str, Any]) -> BackboneShape:
    return backbones.shape_of(settings_of(cfg))
