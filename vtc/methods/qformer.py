"""The Q-Former (BLIP-2, arXiv 2301.12597), a baseline of the papers that compare trained projectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.allowed import number, whole
from vtc.errors import UserError
from vtc.identity import WEIGHTS
from vtc.interface import ONE_PICTURE, ONE_TOWER, Context, TowerResampler, option


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

    The queries read every patch, also where the family's projector would have merged them (Qwen-VL's merger, the pixel
    shuffle of InternVL and Idefics3): that is part of what the Q-Former takes the place of, and isn't run. What the
    tower does stays, and each picture of a packed sequence is read by itself. Qwen3-VL's deepstack, made of visual
    tokens by mergers of its own, is added to none of the new ones. Tiles of one picture are refused: to the queries
    they were one set of patches, which says of none in which tile it is.

    Args:
        tokens: M; default 32, as BLIP-2's, or all visual tokens where there are fewer.
    """

    name = "qformer"
    about = "The Q-Former: learned queries in a BERT of their own, in the projector's place (BLIP-2, arXiv 2301.12597)."
    reference = "test_qformer.py::test_equals_loops_over_queries_and_heads"
    default_count = 32
    needs = (ONE_TOWER, ONE_PICTURE)
    needs_training = True
    fixed_budget = True
    trained_options = ("layers", "width", "heads")
    depth: int | None = option(
        None,
        "null: half of the tower's (12 for CLIP ViT-L, as in BLIP-2), at least 4",
        name="layers",
        allowed=whole(1).or_null(),
    )
    width: int | None = option(None, "null: the tower's (BLIP-2: 768)", allowed=whole(1).or_null())
    heads: int | None = option(None, "null: the tower's (BLIP-2: 12)", allowed=whole(1).or_null())
    dropout: float = option(
        0.0,
        "of hidden states and attention, in training (BLIP-2: 0.1)",
        allowed=number("0 or more, less than 1", least=0, most=1 - 1e-9),
        decides=WEIGHTS,
    )

    def prepare(self) -> None:
        vision = self.shape.vision
        self.depth = max(4, vision.depth // 2) if self.depth is None else self.depth
        self.width = vision.width if self.width is None else self.width
        self.heads = vision.heads if self.heads is None else self.heads
        if self.width % self.heads:
            raise UserError(f"method.heads={self.heads}: they don't divide method.width={self.width}")

    def make_parameters(self) -> None:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel  # a tenth of a second that others needn't wait

        assert self.width is not None and self.depth is not None and self.heads is not None
        config = Blip2QFormerConfig(
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            encoder_hidden_size=self.shape.vision.width,
            cross_attention_frequency=2,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )
        self.queries = nn.Parameter(torch.randn(self.tokens or 0, self.width) * config.initializer_range)
        self.norm = nn.LayerNorm(self.shape.vision.width)
        self.blocks = Blip2QFormerModel(config)
        self.project = nn.Linear(self.width, self.shape.width)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        queries = self.queries.expand(len(features), -1, -1)
        states = self.blocks(query_embeds=queries, encoder_hidden_states=self.norm(features)).last_hidden_state
        return self.project(states)
