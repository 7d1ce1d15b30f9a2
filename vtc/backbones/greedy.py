"""Greedy decoding, whatever a checkpoint's own generation settings say."""

from __future__ import annotations

from typing import Any

TOKEN_IDS = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")


def decode_greedily(model: Any) -> dict[str, Any]:
    """Leaves of a model's generation config its special tokens alone: an answer is the most probable token after the
    other, whatever sampling, penalties or banned words its checkpoint brings, so that checkpoints and methods are
    compared by one rule.

    Returns:
        the settings that no longer apply.
    """
    from transformers import GenerationConfig

    own = model.generation_config.to_diff_dict()
    model.generation_config = GenerationConfig(**{key: own.pop(key) for key in TOKEN_IDS if key in own})
    for key in ("transformers_version", "_from_model_config"):
        own.pop(key, None)
    return {key: value for key, value in own.items() if value and (key, value) != ("use_cache", True)}
