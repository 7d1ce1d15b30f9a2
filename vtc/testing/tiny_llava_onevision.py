"""A LLaVA-OneVision of random weights, with its own processors: tiles of 12×12 pixels and nine patches."""

from __future__ import annotations

from vtc.backbones.llava_onevision import LlavaOnevision
from vtc.testing.models import IMAGE, TOWER, drawn, tokenizer
from vtc.testing.tiny_llava_next import tiny_decoder

TILE, PATCH = 12, 4
VIDEO = 27  # the first token behind those of the tokenizer of all tiny models
RESOLUTIONS = [[h * TILE, w * TILE] for h in range(1, 5) for w in range(1, 5)]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for part in m.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # what the checkpoints say, in fewer words


def tiny_llava_onevision(
    image_size: int | None = TILE, width: int = 32, depth: int = 4, seed: int = 0
) -> LlavaOnevision:
    """A `LlavaOnevisionForConditionalGeneration` in eval mode.

    A picture of 12 pixels is two tiles, 21 visual tokens; a frame has 4, and the last one of a video 5.
    """
    import transformers

    sizes = {name: size for name, size in TOWER.items() if name != "initializer_range"}
    vision = transformers.SiglipVisionConfig(image_size=TILE, patch_size=PATCH, vision_use_head=False, **sizes)  # type: ignore[call-arg]
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=tiny_decoder("qwen2", width, depth),
        image_token_id=IMAGE,  # type: ignore[call-arg]
        video_token_id=VIDEO,  # type: ignore[call-arg]
        image_grid_pinpoints=RESOLUTIONS,
    )
    model = drawn(lambda: transformers.LlavaOnevisionForConditionalGeneration(config), seed)
    words = tokenizer(["<video>", "<|im_start|>", "<|im_end|>"], {"image_token": "<image>", "video_token": "<video>"})
    words.eos_token = "<|im_end|>"
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size={"height": TILE, "width": TILE}, image_grid_pinpoints=RESOLUTIONS
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size={"height": TILE, "width": TILE}),
        tokenizer=words,
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    return LlavaOnevision.wrap(model, processor, image_size=image_size)
