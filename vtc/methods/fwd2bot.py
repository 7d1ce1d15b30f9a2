"""Fwd2Bot (arXiv 2503.21757): LVLM visual token compression with double forward bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.allowed import one_of
from vtc.errors import UserError
from vtc.identity import WEIGHTS
from vtc.interface import (
    ATTENTION,
    SUMMARY_PROMPT,
    Captions,
    Context,
    OwnPass,
    SelfCompressor,
    TokenSequence,
    option,
    refuse_lacking,
)
from vtc.interface.options import SOME

if TYPE_CHECKING:
    from vtc.interface import AttachableBackbone

COMPRESS, GENERATE, SHARED = "compress", "generate", "shared"
ADAPTERS = {"stage": (COMPRESS, GENERATE), "single": (SHARED, SHARED), "none": (None, None)}  # of either pass
PROMPT_LENGTH = 9  # tokens of H_p in LLaMA's vocabulary


def info_nce(e_v: Tensor, e_t: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """L_disc, eq. 3: symmetric InfoNCE over cosine similarities, mean over the batch of the SUM of both directions.

    Args:
        e_v, e_t: [B, D] image and text embeddings; row k of one belongs to row k of the other.
        temperature: divides the similarities. Eq. 3 prints none (1.0), which bounds the logits by ±1; CLIP's is 0.07.
    """
    s = F.normalize(e_v.float(), dim=-1) @ F.normalize(e_t.float(), dim=-1).T / temperature
    own = torch.arange(len(s), device=s.device)
    return F.cross_entropy(s, own) + F.cross_entropy(s.T, own)


class Fwd2Bot(SelfCompressor):
    """The LLM summarises the image into k' tokens, then answers from those alone (section 3.2).

    First pass, under the adapter "compress": [·, ·, H_v^c] = f(H_v; H_p; H_r) (eq. 1), H_p the prompt's embeddings,
    H_r the k' learnable summary tokens, H_v^c their last hidden states. Second pass, under "generate": H_v^c takes the
    place of the image. The gradient of the answer flows through H_v^c into the first pass (eq. 2); the LLM itself is
    frozen (section 3.5).

    Args:
        tokens: k'; default 16.
    """

    name = "fwd2bot"
    about = "Fwd2Bot: the LLM summarises the image in one pass and reads the summary in a second (arXiv 2503.21757)."
    reference = "test_fwd2bot.py::test_equals_two_passes_with_merged_weights"
    default_count = 16
    needs_training = True
    fixed_budget = True
    trained_options = ("adapters", "rank", "alpha", "bidirectional")

    adapters: str = option(
        "stage", "stage: one for each pass; single: one for both; none: for full fine-tuning (table 6)",
        allowed=one_of(*ADAPTERS),
    )  # fmt: skip
    rank: int = option(32, "of the LoRA adapters, in all linear layers of the LLM", allowed=SOME)
    alpha: int | None = option(None, "their scale is alpha / rank; null: 2 * rank")
    dropout: float = option(0.0, "of the adapters' input", decides=WEIGHTS)
    temperature: float = option(0.07, "of the contrastive loss in training", decides=WEIGHTS)
    bidirectional: bool = option(False, "whether every token sees every other in the first pass (table 12)")
    hide: Sequence[int] = option((), "summary tokens that the second pass does not see, 0 the first (figure 6)")

    def prepare(self) -> None:
        k = self.tokens or 0
        if set(self.hide) - set(range(k)) or len(set(self.hide)) == k:
            raise UserError(f"method.hide={list(self.hide)}: allowed: some of 0 to {k - 1}, not all")
        self.hide = sorted(set(self.hide))
        if self.bidirectional:
            refuse_lacking(self.name, [ATTENTION], self.shape, "set method.bidirectional=false")
        self.compressing, self.adapter = ADAPTERS[self.adapters]
        self.prompt_ids: Tensor | None = None  # tokens of H_p, once attached to a backbone and so to a tokenizer

    def make_parameters(self) -> None:
        self.summary = nn.Parameter(torch.randn(self.tokens or 0, self.shape.width) * 0.02)  # H_r

    def attach(self, backbone: AttachableBackbone) -> None:
        """Adds the adapters to the LLM's linear layers, which freezes the LLM, and tokenizes the prompt."""
        if self.prompt_ids is None:
            self.prompt_ids = torch.tensor(backbone.tokenizer(SUMMARY_PROMPT, add_special_tokens=False)["input_ids"])
        if self.names:
            backbone.add_adapters(self.names, self.rank, self.alpha or 2 * self.rank, self.dropout)

    @property
    def names(self) -> list[str]:
        """The adapters that there are."""
        return [name for name in dict.fromkeys((self.compressing, self.adapter)) if name]

    def summarise(self, embeddings: Tensor, mask: Tensor, context: Context) -> Tensor:
        """H_v^c [I, k', D] of visual tokens [I, N, D] (eq. 1); H_t^c of a text's embeddings in the same way."""
        count = embeddings.shape[0]
        assert self.prompt_ids is not None, "attach it to a backbone first"
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
        if not self.hide:
            return tokens
        hidden = torch.zeros_like(tokens.images[1])
        hidden[:, self.hide] = True
        return tokens.hide(tokens.per_token(hidden, False))

    def losses(self, context: Context, captions: Captions | None = None) -> dict[str, Tensor]:
        """L_disc (eq. 3-4) where the images have captions; the text goes through the same first pass (section 3.3)."""
        if captions is None or "summary" not in context.memo:
            return {}
        e_t = self.summarise(context.embed(captions.ids), captions.mask.bool(), context).mean(1)
        e_v, e_t = captions.gather(context.memo["summary"].mean(1)), captions.gather(e_t)
        return {"contrastive": info_nce(e_v, e_t, self.temperature)}

    @property
    def extra_parameters(self) -> int:
        """H_r and the adapters."""
        own = (self.tokens or 0) * self.shape.width
        layers = range(self.shape.depth)
        return own + len(self.names) * sum(self.shape.adapter_parameters(self.rank, layer) for layer in layers)

    def layer_tokens(self) -> list[int]:
        return [(self.tokens or 0) - len(self.hide)] * self.shape.depth

    def adapter_flops(self, layer: int) -> float:
        return 2.0 * self.shape.adapter_parameters(self.rank, layer) if self.adapter else 0.0

    def own_passes(self, visual: float, text: int) -> list[OwnPass]:
        """The first pass, of H_v, H_p and H_r."""
        prompt = PROMPT_LENGTH if self.prompt_ids is None else len(self.prompt_ids)
        lora = tuple(map(self.adapter_flops, range(self.shape.depth)))
        return [OwnPass(visual + (self.tokens or 0), prompt, lora)]
