"""A random-weight InternVL3, small enough to run hundreds of checks on two cores."""

from __future__ import annotations

from typing import Any

import torch

from vtc.backbones.internvl import InternVL
from vtc.testing.models import TOWER, decoder_sizes, drawn, tokenizer
from vtc.testing.tiny_tiles import PATCH, SHUFFLE, SIDE, TOKENS


def tiny_internvl(
    width: int = 32,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    attention: str = "sdpa",
    seed: int = 0,
    image_size: int | None = SIDE,
    tiles: bool | None = None,
) -> InternVL:
    """An `InternVLForConditionalGeneration` of random weights, 16 visual tokens a tile, its processor, in eval mode.

    Args:
        image_size: 16: one tile; 32: four of them, and the whole picture; None: as many as its aspect asks for.
    """
    import transformers

    special = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|im_start|>", "<|im_end|>"]
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = tokenizer(special, named | {"video_token": "<video>"})
    words.eos_token = "<|im_end|>"
    vision = transformers.InternVLVisionConfig(
        image_size=(SIDE, SIDE), patch_size=(PATCH, PATCH), layer_scale_init_value=1.0, **TOWER
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**decoder_sizes(width, depth, heads, kv_heads)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
        downsample_ratio=1 / SHUFFLE,
        tie_word_embeddings=False,
    )

    def make() -> Any:
        model = transformers.InternVLForConditionalGeneration(config)
        torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.2)  # zeros, as drawn
        return model

    square = {"height": SIDE, "width": SIDE}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=square),
        tokenizer=words,
        video_processor=transformers.InternVLVideoProcessor(size=square),
        image_seq_length=TOKENS,
        chat_template=InternVL.template,
    )
    return InternVL.wrap(drawn(make, seed, attention), processor, image_size=image_size, tiles=tiles)
