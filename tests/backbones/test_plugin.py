"""A family of somebody else's: registered, it is a choice, and models of it are known by their configuration."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch

from vtc.backbones import wrap
from vtc.backbones.llava import Llava
from vtc.configuration.choices import choices
from vtc.configuration.compose import backbone_settings
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.registry import Registry, families
from vtc.testing import batch, tiny_backbone


class Mine(Llava):
    """A LLaVA under another name."""

    model_type, version = "mine", 1


def _model() -> torch.nn.Module:
    model = tiny_backbone().model
    model.config.model_type = "mine"
    return model


def test_models_of_a_registered_family_are_compressed(monkeypatch) -> None:
    model, tiny = _model(), tiny_backbone()
    with pytest.raises(UserError, match="model=mine: no backbone adapter for it; there is one for .*llava"):
        wrap(model)
    monkeypatch.setitem(families._registered, "mine", Mine)
    assert type(wrap(model)) is Mine
    with torch.no_grad(), compressing(model, build("fastv", 5, tiny.shape)) as engine:
        model(**batch(tiny))
    assert engine.report.tokens_out == [5, 5, 5]


def test_a_plug_in_s_family_is_a_choice_with_the_defaults(monkeypatch, tmp_path) -> None:
    entry = EntryPoint("mine", f"{__name__}:Mine", "vtc.families")
    monkeypatch.setattr(families, "_plugins", lambda: {"mine": entry})
    assert "mine" in choices("backbone") and "llava" not in choices("backbone")
    settings = backbone_settings("mine")
    assert (settings.name, settings.family, settings.dtype, settings.source) == ("mine", "mine", "float32", "None")
    family = families.get("mine")
    assert issubclass(family, Llava)
    with pytest.raises(UserError, match="backbone=mine: no weights are known of it; give backbone.pretrained="):
        family.shape_of(settings)
    _model().config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"llava"', '"mine"'))
    assert family.shape_of(backbone_settings("mine", pretrained=str(tmp_path))).visual_tokens == 16


def test_the_table_of_families_takes_entry_points(monkeypatch) -> None:
    entries = [EntryPoint("mine", f"{__name__}:Mine", "vtc.families")]
    monkeypatch.setattr("vtc.registry.entry_points", lambda group: entries)
    registry = Registry("backbone.family", "vtc.families", {"llava": ("vtc.backbones.llava:Llava", "LLaVA")})
    assert registry.names() == ["llava", "mine"] and registry.external() == ["mine"]
