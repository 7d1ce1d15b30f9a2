"""Checkpoints of the hub whose sizes are known without asking it: a plan needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from vtc.backbones.base import Backbone, BackboneShape


class Known(Backbone):
    """A backbone of which `written` says what its checkpoint's config.json does, as far as sizes go.

    Put in front of the family's class: `class LlavaNextMistral7B(Known, LlavaNext)`. Another `pretrained` is read as
    the family reads it.
    """

    written: ClassVar[Mapping[str, Any]]

    @classmethod
    def shape_of(cls, cfg: Mapping[str, Any]) -> BackboneShape:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super().shape_of(cfg)
        config = json.loads(json.dumps(cls.written), object_hook=lambda d: SimpleNamespace(**d))
        return cls._sized(config, cfg.get("name") or cls.__name__, cfg)

    @classmethod
    def _skeleton_config(cls, cfg: Mapping[str, Any]) -> Any:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super()._skeleton_config(cfg)
        from transformers import AutoConfig

        return AutoConfig.for_model(**json.loads(json.dumps(cls.written)))
