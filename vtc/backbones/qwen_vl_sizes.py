"""The released Qwen2-VL, Qwen2.5-VL and Qwen3-VL, whose sizes are known without asking the hub."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from vtc.backbones.base import BackboneShape
from vtc.backbones.qwen_vl import Qwen2_5VL, Qwen2VL, Qwen3VL, QwenVL


class _Known(QwenVL):
    """One of the released sizes, known without asking the hub: a plan needs no network.

    Class attributes:
        text, vision: what its configuration says.
        tied: whether the output embedding is the input's.
        config_class: of transformers.
    """

    text: ClassVar[dict[str, Any]]
    vision: ClassVar[dict[str, Any]]
    tied: ClassVar[bool] = False
    config_class: ClassVar[str]

    @classmethod
    def shape_of(cls, cfg: Mapping[str, Any]) -> BackboneShape:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super().shape_of(cfg)
        config = SimpleNamespace(text_config=SimpleNamespace(**cls.text), vision_config=SimpleNamespace(**cls.vision))
        shape = cls.shape_from(config, cfg.get("name") or cls.__name__, cfg.get("image_size"))
        cls._within(shape, cls.pixels)
        return shape

    @classmethod
    def _skeleton_config(cls, cfg: Mapping[str, Any]) -> Any:
        if cls.pretrained(cfg) != cls.default_pretrained:
            return super()._skeleton_config(cfg)
        import transformers

        return getattr(transformers, cls.config_class)(
            text_config=dict(cls.text), vision_config=dict(cls.vision), tie_word_embeddings=cls.tied
        )


def _text(width: int, mlp: int, depth: int, heads: int, kv_heads: int, vocab: int = 151936, **more: Any) -> dict:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": depth, "vocab_size": vocab}
    return sizes | {"num_attention_heads": heads, "num_key_value_heads": kv_heads, **more}


def _vision(depth: int, patch: int, **more: Any) -> dict:
    sizes = {"depth": depth, "num_heads": 16, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return sizes | more


class _Known2(_Known, Qwen2VL):
    config_class = "Qwen2VLConfig"

    @staticmethod
    def tower(width: int) -> dict[str, Any]:
        """The tower in front of an LLM of this width."""
        return _vision(32, 14, embed_dim=1280, mlp_ratio=4, hidden_size=width)


class Qwen2VL_2B(_Known2):
    """Qwen2-VL 2B."""

    default_pretrained, tied = "Qwen/Qwen2-VL-2B-Instruct", True
    text, vision = _text(1536, 8960, 28, 12, 2), _Known2.tower(1536)


class Qwen2VL_7B(_Known2):
    """Qwen2-VL 7B."""

    default_pretrained = "Qwen/Qwen2-VL-7B-Instruct"
    text, vision = _text(3584, 18944, 28, 28, 4, 152064), _Known2.tower(3584)


class _Known2_5(_Known, Qwen2_5VL):
    config_class = "Qwen2_5_VLConfig"

    @staticmethod
    def tower(width: int, mlp: int = 3420) -> dict[str, Any]:
        """The tower in front of an LLM of this width."""
        windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
        return _vision(32, 14, hidden_size=1280, intermediate_size=mlp, out_hidden_size=width, **windows)


class Qwen2_5VL_3B(_Known2_5):
    """Qwen2.5-VL 3B."""

    default_pretrained, tied = "Qwen/Qwen2.5-VL-3B-Instruct", True
    text, vision = _text(2048, 11008, 36, 16, 2), _Known2_5.tower(2048)


class Qwen2_5VL_7B(_Known2_5):
    """Qwen2.5-VL 7B."""

    default_pretrained = "Qwen/Qwen2.5-VL-7B-Instruct"
    text, vision = _text(3584, 18944, 28, 28, 4, 152064), _Known2_5.tower(3584)


class Qwen2_5VL_72B(_Known2_5):
    """Qwen2.5-VL 72B."""

    default_pretrained = "Qwen/Qwen2.5-VL-72B-Instruct"
    text, vision = _text(8192, 29568, 80, 64, 8, 152064), _Known2_5.tower(8192, 3456)


class _Known3(_Known, Qwen3VL):
    config_class = "Qwen3VLConfig"

    @staticmethod
    def tower(width: int, depth: int, own: int, mlp: int, deepstack: list[int]) -> dict[str, Any]:
        """The tower in front of an LLM of this width: `depth` layers of width `own`."""
        sizes = {"hidden_size": own, "intermediate_size": mlp, "out_hidden_size": width}
        return _vision(depth, 16, num_position_embeddings=2304, deepstack_visual_indexes=deepstack, **sizes)


class Qwen3VL_2B(_Known3):
    """Qwen3-VL 2B."""

    default_pretrained, tied = "Qwen/Qwen3-VL-2B-Instruct", True
    text = _text(2048, 6144, 28, 16, 8, head_dim=128)
    vision = _Known3.tower(2048, 24, 1024, 4096, [5, 11, 17])


class Qwen3VL_4B(_Known3):
    """Qwen3-VL 4B."""

    default_pretrained, tied = "Qwen/Qwen3-VL-4B-Instruct", True
    text = _text(2560, 9728, 36, 32, 8, head_dim=128)
    vision = _Known3.tower(2560, 24, 1024, 4096, [5, 11, 17])


class Qwen3VL_8B(_Known3):
    """Qwen3-VL 8B."""

    default_pretrained = "Qwen/Qwen3-VL-8B-Instruct"
    text = _text(4096, 12288, 36, 32, 8, head_dim=128)
    vision = _Known3.tower(4096, 27, 1152, 4304, [8, 16, 24])
