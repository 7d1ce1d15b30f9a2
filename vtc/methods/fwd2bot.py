"""Fwd2Bot (arXiv 2503.21757): LVLM visual token compression with double forward bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.errors import UserError, unknown
from vtc.interface import SUMMARY_PROMPT, Context, SelfCompressor, TokenSequence

if TYPE_CHECKING:
    from vtc.interface import BackboneShape
    from vtc.interface.backbone import AttachableBackbone

COMPRESS, GENERATE, SHARED = "compress", "generate", "shared"
ADAPTERS = {"stage": (COMPRESS, GENERATE), "single": (SHARED, SHARED), "none": (None, None)}  # of either pass


def info_nce(e_v: Tensor, e_t: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """L_disc, eq. 3: symmetric InfoNCE over cosine similarities, mean over the batch of the SUM of both directions.

    Args:
        e_v, e_t: [B, D] image and text embeddings; row k of one belongs to row k of the other.
        temperature: divides the similarities. Eq. 3 prints none (1.0), which bounds the logits by ±1; CLIP's is 0.07.
    """
    s = F.normalize(e_v.float(), dim=-1) @ F.normalize(e_t.float(), dim=-1).T / temperature
    own = torch.arange(len(s), device=s.device)
    return F.cross_entropy(s, own) + F.cross_entropy(s.T, own)


def lora_parameters(shape: BackboneShape, rank: int) -> int:
    """Parameters of one adapter: r·(in + out) in each linear layer of the LLM."""
    width, head = shape.width, shape.head_width
    queries, keys = shape.heads * head, shape.kv_heads * head
    sides = [(width, queries), (width, keys), (width, keys), (queries, width), *[(width, shape.intermediate)] * 3]
    return shape.depth * rank * sum(i + o for i, o in sides)


class Fwd2Bot(SelfCompressor):
    """The LLM summarises the image into k' tokens, then answers from those alone (section 3.2).

    First pass, under the adapter "compress": [·, ·, H_v^c] = f(H_v; H_p; H_r) (eq. 1), H_p the prompt's embeddings,
    H_r the k' learnable summary tokens, H_v^c their last hidden states. Second pass, under "generate": H_v^c takes the
    place of the image. The gradient of the answer flows through H_v^c into the first pass (eq. 2); the LLM itself is
    frozen (section 3.5).

    Args:
        tokens: k'; default 16.
        adapters: stage: one for each pass (section 3.5); single: one for both; none: the LLM's own weights, for full
            fine-tuning (table 6).
        rank: of the LoRA adapters, in all linear layers of the LLM.
        alpha: their scale is alpha / rank; default 2·rank.
        dropout: of the adapters' input.
        bidirectional: whether the first pass lets every token see every other (table 12); causal by default.
        temperature: of L_disc in training; see `info_nce`.
        hide: summary tokens (0…k'−1) that the second pass doesn't see, as if masked; k' − len(hide) are left (fig. 6).
    """

    name = "fwd2bot"
    needs_training = True
    fixed_budget = True
    trained_options = ("adapters", "rank", "alpha", "bidirectional")

    def __init__(
        self,
        tokens: int | None,
        shape: BackboneShape,
        adapters: str = "stage",
        rank: int = 32,
        alpha: int | None = None,
        dropout: float = 0.0,
        bidirectional: bool = False,
        temperature: float = 0.07,
        hide: Sequence[int] = (),
    ) -> None:
        k = 16 if tokens is None else tokens
        super().__init__(k, shape)
        if adapters not in ADAPTERS:
            raise unknown("method.adapters", adapters, ADAPTERS)
        if set(hide) - set(range(k)) or len(set(hide)) == k:
            raise UserError(f"method.hide={list(hide)}: allowed: some of 0 to {k - 1}, not all")
        if rank < 1:
            raise UserError(f"method.rank={rank}: allowed: 1 or more")
        self.rank, self.alpha, self.dropout, self.bidirectional = rank, alpha or 2 * rank, dropout, bidirectional
        self.temperature, self.hide = temperature, sorted(set(hide))
        self.compressing, self.adapter = ADAPTERS[adapters]
        self.summary = nn.Parameter(torch.randn(k, shape.width) * 0.02)  # H_r
        self.prompt_ids: Any = None  # tokens of H_p, once attached to a backbone and so to a tokenizer

    def attach(self, backbone: AttachableBackbone) -> None:
        """Adds the adapters to the LLM's linear layers, which freezes the LLM, and tokenizes the prompt."""
        if self.prompt_ids is None:
            self.prompt_ids = torch.tensor(backbone.tokenizer(SUMMARY_PROMPT, add_special_tokens=False)["input_ids"])
        if self.names:
            backbone.add_adapters(self.names, self.rank, self.alpha, self.dropout)

    @property
    def names(self) -> list[str]:
        """The adapters that there are."""
        return [name for name in dict.fromkeys((self.compressing, self.adapter)) if name]

    def summarise(self, embeddings: Tensor, mask: Tensor, context: Context) -> Tensor:
        """H_v^c [I, k', D] of visual tokens [I, N, D] (eq. 1); H_t^c of a text's embeddings in the same way."""
        count = embeddings.shape[0]
        prompt = context.embed(self.prompt_ids.to(embeddings.device)).to(embeddings.dtype)
        summary = self.summary.to(embeddings.device, embeddings.dtype)
        tail = torch.cat([prompt, summary]).expand(count, -1, -1)
        mask = torch.cat([mask, mask.new_ones(tail.shape[:2])], 1)
        hidden = context.run_decoder(
            torch.cat([embeddings, tail], 1), mask, adapter=self.compressing, bidirectional=self.bidirectional
        )
        return hidden[:, -len(summary) :]

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        tokens = super().reduce(tokens, layer, context)
        if not self.hide or not tokens.images[0].numel():
            return tokens
        hidden = torch.zeros_like(tokens.images[1])
        hidden[:, self.hide] = True
        return tokens.hide(tokens.per_token(hidden, False))

    def losses(self, context: Context) -> dict[str, Tensor]:
        """L_disc (eq. 3-4) where the images have captions; the text goes through the same first pass (section 3.3)."""
        if context.captions is None or context.summary is None:
            return {}
        ids, mask = context.captions
        e_t = self.summarise(context.embed(ids), mask.bool(), context).mean(1)
        e_v, e_t = context.gather(context.summary.mean(1)), context.gather(e_t)
        return {"contrastive": info_nce(e_v, e_t, self.temperature)}

    @property
    def extra_parameters(self) -> int:
        """H_r and the adapters."""
        return self.summary.numel() + len(self.names) * lora_parameters(self.shape, self.rank)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return 16

    @classmethod
    def layer_tokens(
        cls, tokens: int | None, shape: BackboneShape, hide: Sequence[int] = (), **options: Any
    ) -> list[int]:
        return [(16 if tokens is None else tokens) - len(set(hide))] * shape.depth
