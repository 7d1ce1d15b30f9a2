"""Backbones by the name of their checkpoint and settings that differ from its own, as a user names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtc.backbones.base import Backbone
from vtc.configuration.compose import backbone_settings
from vtc.interface import BackboneShape
from vtc.registry import families
from vtc.settings import BackboneSettings


def settings_of(cfg: Mapping[str, Any]) -> BackboneSettings:
    """`name`, and whatever else differs."""
    return backbone_settings(**cfg)


def load(cfg: Mapping[str, Any]) -> Backbone:
    settings = settings_of(cfg)
    return families.get(settings.family).load(settings)


def shape_of(cfg: Mapping[str, Any]) -> BackboneShape:
    settings = settings_of(cfg)
    return families.get(settings.family).shape_of(settings)
