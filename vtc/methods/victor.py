"""Victor (arXiv 2410.14072): visual compact token registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.errors import UserError, unknown
from vtc.interface import VISUAL, Compressor, Context, TokenSequence, resolve_layer, two_level
from vtc.methods.avgpool import raster_groups

if TYPE_CHECKING:
    from vtc.interface import BackboneShape
    from vtc.interface.backbone import AttachableBackbone

REGISTERS = ("learnable", "pooled", "zeros", "image_token")
SUBSETS = ("head", "tail")


class Victor(Compressor):
    """M learnable registers stand behind each image's visual tokens; before layer k ALL visual tokens go (algorithm 1).

    x = [x_V; x_R; x_T] runs through layers 0…k−1, which learn to write the image into the registers; [x_R; x_T] through
    layers k…n. Registers are ordinary tokens with positions of their own, right behind the image's; what is left keeps
    its positions. Nothing but next-token prediction trains it: projector and registers first, then the LLM too
    (section 4).

    Args:
        tokens: M, the registers; default 8, the paper's headline.
        layer: k = 3 in the paper (figure 8).
        registers: what they are before layer 0 (A.7, figure 16): learnable; or, nothing learned, pooled (averages of
            M runs of the image's visual tokens), zeros, image_token (M times the LLM's embedding of the word "Image").
        drop: False leaves the visual tokens where they are (figure 9): N + M tokens to the end.
        keep_last: no registers: the last M visual tokens stay when the others go (A.6, figure 15).
        subset: head or tail: of the `trained_tokens` registers that there are weights for, the first or the last M
            are used (A.5, figure 14); only at inference.
        trained_tokens: how many registers the weights are of; `tokens` unless a subset is taken.
    """

    name = "victor"
    needs_training = True
    fixed_budget = True
    trained_options = ("layer", "layer_scale", "registers", "drop", "keep_last")

    def __init__(
        self,
        tokens: int | None,
        shape: BackboneShape,
        layer: int = 3,
        registers: str = "learnable",
        drop: bool = True,
        keep_last: bool = False,
        subset: str | None = None,
        trained_tokens: int | None = None,
        layer_scale: str = "auto",
    ) -> None:
        m = 8 if tokens is None else tokens
        super().__init__(m, shape)
        if registers not in REGISTERS:
            raise unknown("method.registers", registers, REGISTERS)
        if subset is not None and subset not in SUBSETS:
            raise unknown("method.subset", subset, SUBSETS)
        if keep_last and (registers != "learnable" or not drop or subset):
            raise UserError("method.keep_last=true: there are no registers then; leave registers, drop and subset out")
        if (subset is None) != (trained_tokens is None) or (subset and registers != "learnable"):
            raise UserError(
                "method.subset: a part of learnable registers; give method.trained_tokens, how many there are"
            )
        if trained_tokens is not None and trained_tokens < m:
            raise UserError(
                f"method.trained_tokens={trained_tokens}: fewer than tokens={m}, of which they are to be a part"
            )
        self.layer = resolve_layer(layer, shape.depth, layer_scale, lowest=1)
        self.kind, self.dropping, self.keep_last, self.subset = registers, drop, keep_last, subset
        self.registers: nn.Parameter | None = None
        if registers == "learnable" and not keep_last:
            self.registers = nn.Parameter(torch.randn(trained_tokens or m, shape.width) * 0.02)
        self.word: Tensor | None = None  # the token of "Image", once attached to a backbone and so to a tokenizer

    @property
    def trained_for(self) -> int | None:
        return self.tokens if self.registers is None else len(self.registers)

    def attach(self, backbone: AttachableBackbone) -> None:
        """Looks up the word "Image" (or "image", where the tokenizer doesn't know the first)."""
        if self.kind == "image_token" and self.word is None:
            found = [backbone.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("Image", "image")]
            known = [ids for ids in found if backbone.tokenizer.unk_token_id not in ids] or found
            self.word = torch.tensor(known[0][:1])

    def layers(self) -> set[int]:
        return {self.layer} if self.keep_last else {0, self.layer} if self.dropping else {0}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if not tokens.images[0].numel():
            return tokens
        if self.keep_last:
            _, real = tokens.images
            last = real & (real.cumsum(1) > real.sum(1, keepdim=True) - (self.tokens or 0))
            return tokens.keep(tokens.per_token(last, False) | ((tokens.role != VISUAL) & tokens.mask))
        if layer == 0:
            return tokens.insert(self.made(tokens, context), after=VISUAL)
        return tokens.drop(VISUAL)

    def made(self, tokens: TokenSequence, context: Context) -> Tensor:
        """x_R: [M, D], or [I, M, D] where every image has its own."""
        m = self.tokens or 0
        if self.registers is not None:
            return self.registers[-m:] if self.subset == "tail" else self.registers[:m]
        if self.kind == "pooled":
            _, real = tokens.images
            member = F.one_hot(raster_groups(real, m), m).to(tokens.hidden.dtype) * real[..., None]  # [I, N, M]
            return member.transpose(1, 2) @ tokens.visual_hidden() / member.sum(1).clamp(min=1)[..., None]
        if self.kind == "zeros" or self.word is None:
            return tokens.hidden.new_zeros(m, tokens.hidden.shape[-1])
        return context.embed(self.word.to(tokens.hidden.device)).expand(m, -1)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return 8

    @classmethod
    def layer_tokens(
        cls,
        tokens: int | None,
        shape: BackboneShape,
        layer: int = 3,
        drop: bool = True,
        keep_last: bool = False,
        layer_scale: str = "auto",
        **options: Any,
    ) -> list[int]:
        m = 8 if tokens is None else tokens
        if not drop:
            return [(shape.visual_tokens or 0) + m] * shape.depth
        return two_level(
            m, shape, resolve_layer(layer, shape.depth, layer_scale, lowest=1), extra=0 if keep_last else m
        )
