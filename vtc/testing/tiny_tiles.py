"""What the tiny models of the families with tiles share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vtc.testing.models import PAD

SIDE, PATCH, SHUFFLE = 16, 2, 2  # 8×8 patches of a tile are 4×4 visual tokens
TOKENS = (SIDE // PATCH // SHUFFLE) ** 2

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def decoder_sizes(width: int, depth: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """Of a language model, for its config class."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 64,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.2,
    }


def drawn(make: Callable[[], Any], seed: int, attention: str) -> Any:
    """The model that `make` draws from this seed, in eval mode, generating up to the length asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()
