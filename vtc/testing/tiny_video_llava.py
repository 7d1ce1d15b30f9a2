"""A Video-LLaVA of random weights, with its own processors: 16 patches of a picture, 17 tokens of a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtc.backbones.video_llava import VideoLlava
from vtc.testing.models import IMAGE, TOWER, drawn, tokenizer
from vtc.testing.tiny_llava_next import tiny_decoder
from vtc.testing.tiny_llava_onevision import VIDEO

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchFeature

    from vtc.backbones.parts import Clips

SIDE, PATCH = 16, 4


class OneFrameVideos(VideoLlava):
    """Every image is a video of one frame: what the contracts make of images goes through the tower of videos."""

    image_text = "<video>"

    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        return super()._processed(text, [], [[[image] for image in row] for row in images])


def tiny_video_llava(frames: bool = False, width: int = 32, depth: int = 4, seed: int = 0) -> VideoLlava:
    """A `VideoLlavaForConditionalGeneration` in eval mode.

    Args:
        frames: as `OneFrameVideos`.
    """
    import transformers

    config = transformers.VideoLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **TOWER),
        text_config=tiny_decoder("llama", width, depth),
        image_token_id=IMAGE,  # type: ignore[call-arg]
        video_token_id=VIDEO,  # type: ignore[call-arg]
    )
    model = drawn(lambda: transformers.VideoLlavaForConditionalGeneration(config), seed)
    words = tokenizer(["<video>"], {"image_token": "<image>", "video_token": "<video>"})
    size: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = transformers.VideoLlavaProcessor(
        image_processor=transformers.VideoLlavaImageProcessor(**size),
        video_processor=transformers.VideoLlavaVideoProcessor(**size),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return (OneFrameVideos if frames else VideoLlava).wrap(model, processor)
