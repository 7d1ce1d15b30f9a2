"""A LLaVA-NeXT of random weights, with its own processor: tiles of 8×8 pixels and four patches."""

from __future__ import annotations

from typing import Any

from vtc.backbones.llava_next import LlavaNext
from vtc.testing.models import BOS, IMAGE, TOWER, decoder_sizes, drawn, tokenizer

TILE, PATCH = 8, 4
RESOLUTIONS = [[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]]
TEMPLATE = (
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}"
    "{% for part in m.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # what Vicuna's checkpoints of LLaVA-NeXT say, in fewer words


def tiny_llava_next(
    kind: str = "llama",
    image_size: int | None = 16,
    width: int = 32,
    depth: int = 4,
    seed: int = 0,
    patch: int = PATCH,
) -> LlavaNext:
    """A `LlavaNextForConditionalGeneration` in eval mode. A square of 16 pixels is five tiles: 24 visual tokens.

    Args:
        kind: of the decoder: llama, mistral, qwen2.
        image_size: as the backbone's.
        patch: side of a patch in pixels; a tile has (8 / patch)² of them.
    """
    import transformers

    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=TILE, patch_size=patch, **TOWER),
        text_config=tiny_decoder(kind, width, depth),
        image_token_id=IMAGE,  # type: ignore[call-arg]
        image_grid_pinpoints=RESOLUTIONS,
    )
    model = drawn(lambda: transformers.LlavaNextForConditionalGeneration(config), seed)
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=RESOLUTIONS,
        ),
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return LlavaNext.wrap(model, processor, image_size=image_size)


def tiny_decoder(kind: str, width: int, depth: int) -> Any:
    """The config of a decoder with grouped queries."""
    from transformers import AutoConfig

    sizes = decoder_sizes(width, depth, positions=2048, bos_token_id=BOS)
    return AutoConfig.for_model(kind, **sizes, head_dim=width // 4, tie_word_embeddings=False)
