"""Families that read pictures and videos: both kinds of features in the order of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vtc.backbones.base import Backbone
from vtc.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature

    from vtc.backbones.parts import Clips


class Videos(Backbone):
    """A backbone whose `core` has `get_image_features` and `get_video_features`. Every frame of a video is an image.

    Put in front of the family's class.
    """

    video_text = "<video>"

    @property
    def placeholders(self) -> tuple[int, ...]:
        return self.image_token_id, self.model.config.video_token_id

    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        outputs = self.encoded(kwargs)
        if not outputs:
            return None
        images = list(outputs["image"].pooler_output) if outputs.get("image") is not None else []
        frames = self.frames_of(outputs["video"].pooler_output) if outputs.get("video") is not None else []
        if kwargs.get("input_ids") is None:
            return images + frames
        return in_prompt_order(kwargs["input_ids"], list(zip(self.placeholders, (images, frames), strict=True)))

    def frames_of(self, features: Tensor) -> list[Tensor]:
        """What `get_video_features` gives, frame by frame, a list of [N_i, D]."""
        raise NotImplementedError

    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        lengths = sorted({len(video) for row in videos or [] for video in row})
        if len(lengths) > 1:
            raise UserError(
                f"backbone={self.name}: videos of {', '.join(map(str, lengths))} frames in one batch; it needs "
                "the same number in all, or batch_size=1"
            )
        return super()._processed(text, images, videos)


def in_prompt_order(input_ids: Tensor, kinds: Sequence[tuple[int, Sequence[Tensor]]]) -> list[Tensor]:
    """Features of pictures and of frames, each kind in its own order, as they follow each other in the prompts.

    Args:
        input_ids: [B, L].
        kinds: (token id of the kind's placeholders, features [N_i, D] of every image of that kind).

    Returns:
        The features in order; kind by kind where one has other places than features, of which the model will say so.
    """
    placed: list[tuple[int, Tensor]] = []
    for token, features in kinds:
        places = (input_ids.flatten() == token).nonzero()[:, 0].tolist()
        starts = list(accumulate(map(len, features), initial=0))
        if starts.pop() != len(places):
            return [f for _, every in kinds for f in every]
        placed += [(places[start], f) for start, f in zip(starts, features, strict=True)]
    return [f for _, f in sorted(placed, key=lambda pair: pair[0])]
