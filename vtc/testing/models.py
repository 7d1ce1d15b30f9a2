"""Random-weight LLaVAs built in memory, small enough to run hundreds of checks on two cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.backbones import wrap
from vtc.backbones.base import Backbone

PAD, BOS, EOS, IMAGE, FIRST_WORD = 0, 1, 2, 3, 4
WORDS = [
    "summarize",
    "the",
    "image",
    "in",
    "a",
    "few",
    "words",
    ".",
    "USER:",
    "ASSISTANT:",
    "what",
    "is",
    "this",
    "one",
    "two",
    "three",
    "red",
    "blue",
    "circle",
    "square",
    "left",
    "right",
]


def tokenizer():
    """One token a word; `<s>` in front; everything unknown is `<unk>`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<s>", "</s>", "<image>", "<unk>", *dict.fromkeys(w.lower() for w in WORDS)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.add_special_tokens(["<pad>", "<s>", "</s>", "<image>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **special)


def tiny_backbone(
    width: int = 32,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    grid: int = 4,
    attention: str = "sdpa",
    seed: int = 0,
) -> Backbone:
    """A `LlavaForConditionalGeneration` of random weights with `grid`² visual tokens, its processor, in eval mode.

    Weights are drawn wide enough (0.2) for attention to differ from token to token.
    """
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    patch = 4
    side = grid * patch
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        initializer_range=0.2,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=64,
        max_position_embeddings=2048,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=IMAGE,  # type: ignore[call-arg]
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
        model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"height": side, "width": side}, crop_size={"height": side, "width": side}, do_center_crop=False
        ),
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return wrap(model, processor)


def full(backbone: Backbone) -> int:
    """Visual tokens per image of a backbone that has a fixed number."""
    assert backbone.shape.visual_tokens is not None
    return backbone.shape.visual_tokens


def batch(
    backbone: Backbone,
    before: Sequence[int] = (2, 5, 3),
    after: Sequence[int] = (6, 3, 9),
    images: Sequence[int] = (1, 1, 1),
    padding: str = "left",
    seed: int = 1,
) -> dict[str, Tensor]:
    """Random rows: `before` words, `images` images, `after` words; padded to one length.

    Returns:
        input_ids, attention_mask [B, L], and pixel_values [I, 3, H, W] where there is an image.
    """
    generator = torch.Generator().manual_seed(seed)
    top = min(backbone.shape.vocab, 64)
    image = backbone.image_token_id
    rows = []
    for b, a, i in zip(before, after, images, strict=True):
        words = torch.randint(10, top, (b + a,), generator=generator)
        words[words == image] = 10 if image != 10 else 11
        rows.append(torch.cat([words[:b], torch.full((i * full(backbone),), image), words[b:]]))
    length = max(len(r) for r in rows)
    ids = torch.full((len(rows), length), PAD if image != PAD else 1)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for n, row in enumerate(rows):
        at = slice(length - len(row), length) if padding == "left" else slice(0, len(row))
        ids[n, at], mask[n, at] = row, 1
    out = {"input_ids": ids, "attention_mask": mask}
    side = backbone.shape.vision["image_size"]
    if sum(images):
        out["pixel_values"] = torch.randn(sum(images), 3, side, side, generator=generator)
    return out
