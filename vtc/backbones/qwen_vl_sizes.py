"""The released Qwen2-VL, Qwen2.5-VL and Qwen3-VL, whose sizes are known without asking the hub."""

from __future__ import annotations

from typing import Any

from vtc.backbones.known import Known, decoder
from vtc.backbones.qwen_vl import Qwen2_5VL, Qwen2VL, Qwen3VL


def _written(text: dict[str, Any], vision: dict[str, Any], tied: bool = False) -> dict[str, Any]:
    """A config.json; the tower's sizes are those that all families have, and `vision`."""
    shared = {"num_heads": 16, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {
        "model_type": text["model_type"].removesuffix("_text"),
        "text_config": text,
        "vision_config": shared | vision,
        "tie_word_embeddings": tied,
    }


def _tower2(width: int) -> dict[str, Any]:
    """Qwen2-VL's tower in front of an LLM of this width."""
    return {"depth": 32, "patch_size": 14, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": width}


class Qwen2VL_2B(Known, Qwen2VL):
    """Qwen2-VL 2B."""

    default_pretrained = "Qwen/Qwen2-VL-2B-Instruct"
    written = _written(decoder("qwen2_vl_text", 1536, 8960, 28, 12, 2, 151936), _tower2(1536), tied=True)


class Qwen2VL_7B(Known, Qwen2VL):
    """Qwen2-VL 7B."""

    default_pretrained = "Qwen/Qwen2-VL-7B-Instruct"
    written = _written(decoder("qwen2_vl_text", 3584, 18944, 28, 28, 4, 152064), _tower2(3584))


def _tower2_5(width: int, mlp: int = 3420) -> dict[str, Any]:
    """Qwen2.5-VL's tower in front of an LLM of this width."""
    windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
    sizes = {"depth": 32, "patch_size": 14, "hidden_size": 1280, "intermediate_size": mlp, "out_hidden_size": width}
    return sizes | windows


class Qwen2_5VL_3B(Known, Qwen2_5VL):
    """Qwen2.5-VL 3B."""

    default_pretrained = "Qwen/Qwen2.5-VL-3B-Instruct"
    written = _written(decoder("qwen2_5_vl_text", 2048, 11008, 36, 16, 2, 151936), _tower2_5(2048), tied=True)


class Qwen2_5VL_7B(Known, Qwen2_5VL):
    """Qwen2.5-VL 7B."""

    default_pretrained = "Qwen/Qwen2.5-VL-7B-Instruct"
    written = _written(decoder("qwen2_5_vl_text", 3584, 18944, 28, 28, 4, 152064), _tower2_5(3584))


class Qwen2_5VL_72B(Known, Qwen2_5VL):
    """Qwen2.5-VL 72B."""

    default_pretrained = "Qwen/Qwen2.5-VL-72B-Instruct"
    written = _written(decoder("qwen2_5_vl_text", 8192, 29568, 80, 64, 8, 152064), _tower2_5(8192, 3456))


def _tower3(width: int, depth: int, own: int, mlp: int, deepstack: list[int]) -> dict[str, Any]:
    """Qwen3-VL's tower in front of an LLM of this width: `depth` layers of width `own`."""
    sizes = {"depth": depth, "patch_size": 16, "hidden_size": own, "intermediate_size": mlp, "out_hidden_size": width}
    return sizes | {"num_position_embeddings": 2304, "deepstack_visual_indexes": deepstack}


class Qwen3VL_2B(Known, Qwen3VL):
    """Qwen3-VL 2B."""

    default_pretrained = "Qwen/Qwen3-VL-2B-Instruct"
    written = _written(
        decoder("qwen3_vl_text", 2048, 6144, 28, 16, 8, 151936, head_dim=128),
        _tower3(2048, 24, 1024, 4096, [5, 11, 17]),
        tied=True,
    )


class Qwen3VL_4B(Known, Qwen3VL):
    """Qwen3-VL 4B."""

    default_pretrained = "Qwen/Qwen3-VL-4B-Instruct"
    written = _written(
        decoder("qwen3_vl_text", 2560, 9728, 36, 32, 8, 151936, head_dim=128),
        _tower3(2560, 24, 1024, 4096, [5, 11, 17]),
        tied=True,
    )


class Qwen3VL_8B(Known, Qwen3VL):
    """Qwen3-VL 8B."""

    default_pretrained = "Qwen/Qwen3-VL-8B-Instruct"
    written = _written(
        decoder("qwen3_vl_text", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
        _tower3(4096, 27, 1152, 4304, [8, 16, 24]),
    )
