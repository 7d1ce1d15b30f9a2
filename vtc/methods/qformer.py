"""The Q-Former (BLIP-2, arXiv 2301.12597), a baseline of the papers that compare trained projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtc.errors import UserError
from vtc.interface import Context, TowerResampler, require_patches

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class QFormer(TowerResampler):
    """M learned queries in a BERT of their own read the tower's features, in the projector's place (section 3.1).

    In each layer the queries attend to each other, in every other one, from the first on, to the image too, then comes
    a feed-forward four times as wide; a norm follows each residual, as in BERT. One linear map leads to the LLM's width
    (section 3.3). The blocks are transformers' `Blip2QFormerModel`, without those that read text: what they are for,
    the first stage of BLIP-2's training (contrastive, matching and captioning losses on image and text), isn't here,
    and next-token prediction alone trains it. Nor does it start from BERT's weights.

    BLIP-2 has 12 layers of width 768 with 12 heads above a tower of 39 layers of width 1408. Here the sizes follow the
    tower: its width, its heads and half of its layers (12 of width 1024 for CLIP ViT-L), at least 4. The features are
    normalised first, as BLIP-2's are by the norm that ends its tower. BLIP-2's dropout of 0.1 is off by default.

    Args:
        tokens: M; default 32, as BLIP-2's, or all visual tokens where there are fewer.
        layers: null: half of the tower's, at least 4.
        width: null: the tower's.
        heads: null: the tower's.
        dropout: of hidden states and attention, in training.
    """

    name = "qformer"
    needs_training = True
    fixed_budget = True
    trained_options = ("layers", "width", "heads")

    def __init__(
        self,
        tokens: int | None,
        shape: BackboneShape,
        layers: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        m = min(32, shape.visual_tokens or 32) if tokens is None else tokens
        super().__init__(m, shape)
        require_patches(self.name, shape)
        vision = shape.vision
        sizes = {
            "layers": max(4, vision.depth // 2) if layers is None else layers,
            "width": vision.width if width is None else width,
            "heads": vision.heads if heads is None else heads,
        }
        for key, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"method.{key}={value}: allowed: a whole number from 1 on, or null")
        if sizes["width"] % sizes["heads"]:
            raise UserError(f"method.heads={sizes['heads']}: they don't divide method.width={sizes['width']}")
        if not 0 <= dropout < 1:
            raise UserError(f"method.dropout={dropout}: allowed: 0 or more, less than 1")
        from transformers import Blip2QFormerConfig, Blip2QFormerModel  # a tenth of a second that others needn't wait

        config = Blip2QFormerConfig(
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=4 * sizes["width"],
            encoder_hidden_size=vision.width,
            cross_attention_frequency=2,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.queries = nn.Parameter(torch.randn(m, sizes["width"]) * config.initializer_range)
        self.norm = nn.LayerNorm(vision.width)
        self.blocks = Blip2QFormerModel(config)
        self.project = nn.Linear(sizes["width"], shape.width)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        queries = self.queries.expand(len(features), -1, -1)
        found = self.blocks(query_embeds=queries, encoder_hidden_states=self.norm(features)).last_hidden_state
        return self.project(found)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return min(32, shape.visual_tokens or 32)
