"""The single-forward baseline of Fwd2Bot (arXiv 2503.21757, section 5, table 7)."""

from __future__ import annotations

import torch
from torch import nn

from vtc.identity import WEIGHTS
from vtc.interface import ONE_TOWER, WHOLE_IMAGES, AttachableBackbone, FewerPatches, TowerUse, option, projected_layer
from vtc.interface.options import SOME
from vtc.methods.fwd2bot import COMPRESS, GENERATE


class SingleForward(FewerPatches):
    """The vision tower compresses in place of the LLM: k' learnable summary tokens run through it beside the patches.

    "We use the CLIP vision encoder only, effectively compressing them in the input space of the LLM … the loss is
    directly applied after the LLM, as in LLaVA, using a single forward pass." The summary tokens join CLS and patches
    behind the tower's embeddings, see them in every layer and are seen by them; the projector maps what the tower makes
    of them, and of them alone, into the LLM's space, where they take the place of the image.

    The paper leaves open, and here it is so: the summary tokens have no position embedding (each is learned by itself);
    they pass the tower's first norm as patches do; what is learned beside them mirrors Fwd2Bot's two adapters of equal
    rank: LoRA "compress" in the linear layers of the tower, up to the one that is projected, and "generate" in those of
    the LLM, whose weights stay frozen. Embeddings for retrieval are read after the LLM, as of every other method
    without a loss of its own.

    Args:
        tokens: k', at most the visual tokens that an image has; default 16.
    """

    name = "single_forward"
    about = "Single forward: the vision tower makes the summary tokens, not the LLM (Fwd2Bot's baseline, table 7)."
    reference = "test_single_forward.py::test_equals_a_pass_of_tower_and_llm_written_out"
    default_count = 16
    needs = (ONE_TOWER, WHOLE_IMAGES)
    needs_training = True
    fixed_budget = True
    trained_options = ("rank", "alpha")
    adapter = GENERATE

    rank: int = option(32, "of both LoRA adapters, in the tower and in the LLM", allowed=SOME)
    alpha: int | None = option(None, "their scale is alpha / rank; null: 2 * rank")
    dropout: float = option(0.0, "of the adapters' input", decides=WEIGHTS)

    def make_parameters(self) -> None:
        self.summary = nn.Parameter(torch.randn(self.tokens or 0, self.shape.vision.width) * 0.02)

    def attach(self, backbone: AttachableBackbone) -> None:
        """Adds an adapter to the tower and one to the LLM, and freezes both."""
        alpha = self.alpha or 2 * self.rank
        backbone.add_tower_adapters((COMPRESS,), self.rank, alpha, self.dropout)
        backbone.add_adapters((GENERATE,), self.rank, alpha, self.dropout)

    def tower(self) -> TowerUse:
        return TowerUse(summary=self.summary, adapter=COMPRESS)

    @property
    def extra_parameters(self) -> int:
        """The summary tokens and both adapters: r·(in + out) in each linear layer."""
        v = self.shape.vision
        sides = 4 * 2 * v.width + 2 * (v.width + v.intermediate)
        in_tower = self.rank * (projected_layer(self.shape) + 1) * sides
        in_llm = sum(self.shape.adapter_parameters(self.rank, layer) for layer in range(self.shape.depth))
        return (self.tokens or 0) * v.width + in_tower + in_llm

    def adapter_flops(self, layer: int) -> float:
        return 2.0 * self.shape.adapter_parameters(self.rank, layer)
