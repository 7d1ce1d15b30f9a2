"""Random-weight LLaVA-NeXT, LLaVA-OneVision and Video-LLaVA with their own processors, small enough to run hundreds of
checks on two cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtc.backbones.llava_next import LlavaNext
from vtc.backbones.llava_onevision import LlavaOnevision
from vtc.backbones.video_llava import VideoLlava
from vtc.backbones.words import IMAGE, tokenizer
from vtc.testing.models import TOWER, drawn, tiny_decoder

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchFeature

    from vtc.backbones.parts import Clips

PATCH = 4
VIDEO = 27  # the first token behind those of the tokenizer of all tiny models
NEXT_TILE, NEXT_RESOLUTIONS = 8, [[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]]
NEXT_TEMPLATE = (
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}"
    "{% for part in m.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # what Vicuna's checkpoints of LLaVA-NeXT say, in fewer words
ONEVISION_TILE = 12
ONEVISION_RESOLUTIONS = [[h * ONEVISION_TILE, w * ONEVISION_TILE] for h in range(1, 5) for w in range(1, 5)]
ONEVISION_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for part in m.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # what the checkpoints say, in fewer words
VIDEO_SIDE = 16


def tiny_llava_next(kind: str = "llama", image_size: int | None = 16, seed: int = 0, patch: int = PATCH) -> LlavaNext:
    """A `LlavaNextForConditionalGeneration` in eval mode. A square of 16 pixels is five tiles: 24 visual tokens.

    Args:
        kind: of the decoder: llama, mistral, qwen2.
        image_size: as the backbone's.
        patch: side of a patch in pixels; a tile has (8 / patch)² of them.
    """
    import transformers

    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=NEXT_TILE, patch_size=patch, **TOWER),
        text_config=tiny_decoder(kind),
        image_token_id=IMAGE,  # type: ignore[call-arg]
        image_grid_pinpoints=NEXT_RESOLUTIONS,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": NEXT_TILE},
            crop_size={"height": NEXT_TILE, "width": NEXT_TILE},
            image_grid_pinpoints=NEXT_RESOLUTIONS,
        ),
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=NEXT_TEMPLATE,
    )
    model = drawn(lambda: transformers.LlavaNextForConditionalGeneration(config), seed)
    return LlavaNext.wrap(model, processor, image_size=image_size)


def tiny_llava_onevision(image_size: int | None = ONEVISION_TILE) -> LlavaOnevision:
    """A `LlavaOnevisionForConditionalGeneration` in eval mode.

    A picture of 12 pixels is two tiles of nine patches, 21 visual tokens; a frame has 4, and the last one of a video 5.
    """
    import transformers

    sizes = {name: size for name, size in TOWER.items() if name != "initializer_range"}
    tile = {"height": ONEVISION_TILE, "width": ONEVISION_TILE}
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            image_size=ONEVISION_TILE,
            patch_size=PATCH,
            vision_use_head=False,  # type: ignore[call-arg]
            **sizes,
        ),
        text_config=tiny_decoder("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=ONEVISION_RESOLUTIONS,
    )
    words = tokenizer(["<video>", "<|im_start|>", "<|im_end|>"], {"image_token": "<image>", "video_token": "<video>"})
    words.eos_token = "<|im_end|>"
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=tile, image_grid_pinpoints=ONEVISION_RESOLUTIONS
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=tile),
        tokenizer=words,
        num_image_tokens=(ONEVISION_TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )
    model = drawn(lambda: transformers.LlavaOnevisionForConditionalGeneration(config))
    return LlavaOnevision.wrap(model, processor, image_size=image_size)


class OneFrameVideos(VideoLlava):
    """Every image is a video of one frame: what the contracts make of images goes through the tower of videos."""

    image_text = "<video>"

    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        return super()._processed(text, [], [[[image] for image in row] for row in images])


def tiny_video_llava(frames: bool = False) -> VideoLlava:
    """A `VideoLlavaForConditionalGeneration` in eval mode: 16 patches of a picture, 17 tokens of a frame.

    Args:
        frames: as `OneFrameVideos`.
    """
    import transformers

    config = transformers.VideoLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=VIDEO_SIDE, patch_size=PATCH, **TOWER),
        text_config=tiny_decoder("llama"),
        image_token_id=IMAGE,  # type: ignore[call-arg]
        video_token_id=VIDEO,
    )
    size: dict[str, Any] = {
        "size": {"shortest_edge": VIDEO_SIDE},
        "crop_size": {"height": VIDEO_SIDE, "width": VIDEO_SIDE},
    }
    processor = transformers.VideoLlavaProcessor(
        image_processor=transformers.VideoLlavaImageProcessor(**size),
        video_processor=transformers.VideoLlavaVideoProcessor(**size),
        tokenizer=tokenizer(["<video>"], {"image_token": "<image>", "video_token": "<video>"}),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = drawn(lambda: transformers.VideoLlavaForConditionalGeneration(config))
    return (OneFrameVideos if frames else VideoLlava).wrap(model, processor)
