"""A backbone in memory, too small to be of any use but for counting."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vtc.backbones.llava import Llava
from vtc.pocket.model import build_processor, vocabulary_index
from vtc.testing.models import IMAGE, tokenizer


@pytest.fixture(scope="session")
def backbone():
    """96-pixel images, 144 visual tokens, heads that share keys, sizes that no two of are equal."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            image_size=96, patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=160, hidden_size=64, intermediate_size=112, num_hidden_layers=5, num_attention_heads=8,
            num_key_value_heads=2, max_position_embeddings=512,
        ),
        image_token_index=vocabulary_index()["<image>"],
        image_seq_length=144,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return Llava.wrap(LlavaForConditionalGeneration(config).eval(), build_processor(), "tiny")


@pytest.fixture(scope="session")
def wide():
    """LLaVA-1.5 7B at an eighth of its width. Its MLPs give back what they get: FLOPs go by their sizes."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=24, num_attention_heads=2,
            image_size=336, patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=4008, hidden_size=512, intermediate_size=1376, num_hidden_layers=32, num_attention_heads=4,
            max_position_embeddings=4096,
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    side = {"height": 336, "width": 336}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=side, crop_size=side), tokenizer=tokenizer(), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    backbone = Llava.wrap(LlavaForConditionalGeneration(config).eval(), processor, "wide")
    for layer in backbone.decoder.layers:
        layer.mlp.forward = lambda hidden: hidden
    return backbone
