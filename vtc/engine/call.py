"""What one call of the model brings that its decoder isn't given: images, and where the questions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.engine.questions import Questions
from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone


@dataclass
class Images:
    """Where a call's visual tokens are, of which image, and their features.

    Attributes:
        visual: [B, T] bool.
        image: [B, T] index of a visual token's image in its row; -1 elsewhere.
        features: [N_i, D] of each image, as projected.
        grids: (height, width) of each image in visual tokens; None if unknown.
        rows, media: of each image, its row and its kind, `image` or `video`.
        outputs: what the model's encoder made, by that kind.
    """

    visual: Tensor
    image: Tensor
    features: list[Tensor]
    grids: list[tuple[int, int] | None]
    rows: list[int]
    media: list[str]
    outputs: Mapping[str, Any]

    @classmethod
    def of_call(cls, backbone: Backbone, ids: Tensor | None, kwargs: dict) -> Images | None:
        """Of a call of the multimodal model; None without images, and where their features don't fit their places,
        which the model itself will say.

        Args:
            ids: [B, T] `input_ids`.
            kwargs: changed so that the model doesn't compute the features again.

        Raises:
            UserError: there are images and no `ids`.
        """
        features = backbone.image_features(kwargs)
        if not features:
            return None
        if ids is None:
            raise UserError("inputs_embeds with images: compression needs input_ids to know where the images are")
        visual = backbone.visual(ids)
        sizes = torch.tensor([f.shape[0] for f in features], device=ids.device)
        owner = torch.repeat_interleave(torch.arange(len(features), device=ids.device), sizes)
        if owner.numel() != int(visual.sum()):
            return None
        image = torch.full_like(ids, -1)
        image[visual] = owner
        first = torch.where(visual, image, len(features)).amin(1, keepdim=True)
        starts = (sizes.cumsum(0) - sizes).cpu()
        rows = visual.nonzero()[:, 0].cpu()[starts].tolist()
        kinds = dict(zip(backbone.placeholders, ("image", "video"), strict=False))
        media = [kinds[token] for token in ids[visual].cpu()[starts].tolist()]
        grids, outputs = backbone.grids(kwargs, features), kwargs.get("mm_encoder_outputs") or {}
        return cls(visual, torch.where(visual, image - first, -1), features, grids, rows, media, outputs)


@dataclass
class Call:
    """One call of the model, from its first hook to its last.

    Attributes:
        questions: where its questions are, and where each ends.
        images: None where it brings none.
        both_ways: whether the visual tokens of an image see each other both ways.
        new_tokens: how many `generate` may still add, which must fit into the context too; None: the whole generation
            was found to fit.
    """

    questions: Questions
    images: Images | None = None
    both_ways: bool = False
    new_tokens: int | None = 0
