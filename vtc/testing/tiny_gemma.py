"""A random-weight Gemma 3, small enough to run hundreds of checks on two cores: 8×8 patches are 4×4 visual tokens."""

from __future__ import annotations

from typing import Any

import torch

from vtc.backbones.gemma3 import Gemma3
from vtc.backbones.words import BOS, PAD, tokenizer
from vtc.testing.models import TOWER, drawn

SIDE, PATCH, MERGE = 16, 2, 2
TOKENS = (SIDE // PATCH // MERGE) ** 2
NAMED = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def tiny_gemma3(window: int = 12, attention: str | None = None) -> Gemma3:
    """A `Gemma3ForConditionalGeneration` with its processor, in eval mode: of four layers the second and the last one
    see everything.

    Args:
        window: positions that a token sees in the other layers; as it is, fewer than an image has visual tokens.
    """
    import transformers

    words = tokenizer([*NAMED.values(), "<start_of_turn>", "<end_of_turn>"], NAMED)
    ids = {name: words.convert_tokens_to_ids(token) for name, token in NAMED.items()}
    config = transformers.Gemma3Config(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "vocab_size": 64,
            "max_position_embeddings": 2048,
            "sliding_window": window,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": None,
            "initializer_range": 0.2,
        },
        vision_config={"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH, **TOWER},
        mm_tokens_per_image=TOKENS,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )

    def make() -> Any:
        model = transformers.Gemma3ForConditionalGeneration(config)
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # zeros, as drawn
        for name, parameter in model.model.language_model.named_parameters():
            if "norm" in name:  # ones, as drawn: which of them is which would make no difference
                torch.nn.init.normal_(parameter, std=0.2)
        return model

    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=words,
        chat_template=Gemma3.template,
        image_seq_length=TOKENS,
    )
    return Gemma3.wrap(drawn(make, attention=attention), processor)
