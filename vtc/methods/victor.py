"""Victor (arXiv 2410.14072): visual compact token registers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.allowed import one_of
from vtc.errors import UserError
from vtc.interface import REGISTER, VISUAL, AttachableBackbone, Compressor, Context, TokenSequence, layer_option, option
from vtc.methods.avgpool import raster_groups


class Victor(Compressor):
    """M learnable registers stand behind each image's visual tokens; before layer k ALL visual tokens go (algorithm 1).

    x = [x_V; x_R; x_T] runs through layers 0…k−1, which learn to write the image into the registers; [x_R; x_T] through
    layers k…n. Registers are ordinary tokens with positions of their own, right behind the image's; what is left keeps
    its positions. Nothing but next-token prediction trains it: projector and registers first, then the LLM too
    (section 4).

    Args:
        tokens: M, the registers; default 8, the paper's headline.
    """

    name = "victor"
    about = "Victor: learnable registers take over and every visual token is dropped (arXiv 2410.14072)."
    reference = "test_victor.py::test_equals_algorithm_1"
    default_count = 8
    needs_training = True
    fixed_budget = True
    trained_options = ("layer", "layer_scale", "registers", "drop", "keep_last")

    layer: int = layer_option(3, "all visual tokens are dropped before this decoder layer (figure 8)", lowest=1)
    kind: str = option(
        "learnable",
        "what they are before layer 0: learnable; or, nothing learned: pooled (averages of runs of the image's visual "
        "tokens), zeros, image_token (the LLM's embedding of the word Image) (A.7, figure 16)",
        name="registers",
        allowed=one_of("learnable", "pooled", "zeros", "image_token"),
    )
    drops: bool = option(True, "false: the visual tokens stay beside the registers (figure 9)", name="drop")
    withdraws: bool = option(
        False, "true: the registers go with the visual tokens, at inference; what is left is what the text has read of "
        "the picture in the layers before, the floor of this method's score", name="withdraw",
    )  # fmt: skip
    keep_last: bool = option(False, "true: no registers, the last visual tokens stay instead (A.6, figure 15)")
    subset: str | None = option(
        None, "head, tail: a part of the trained registers, at inference (A.5, figure 14)",
        allowed=one_of("head", "tail").or_null(),
    )  # fmt: skip
    trained_tokens: int | None = option(None, "how many registers were trained, where a subset of them is used")

    def prepare(self) -> None:
        m, trained = self.tokens or 0, self.trained_tokens
        if self.keep_last and (self.kind != "learnable" or not self.drops or self.subset):
            raise UserError("method.keep_last=true: there are no registers then; leave registers, drop and subset out")
        if self.withdraws and (self.keep_last or not self.drops):
            raise UserError("method.withdraw=true: visual tokens would stay; leave keep_last and drop out")
        if (self.subset is None) != (trained is None) or (self.subset and self.kind != "learnable"):
            raise UserError(
                "method.subset: a part of learnable registers; give method.trained_tokens, how many there are"
            )
        if trained is not None and trained < m:
            raise UserError(f"method.trained_tokens={trained}: fewer than tokens={m}, of which they are to be a part")
        self.registers: nn.Parameter | None = None
        self.word: Tensor | None = None  # the token of "Image", once attached to a backbone and so to a tokenizer

    def make_parameters(self) -> None:
        if self.kind == "learnable" and not self.keep_last:
            count = self.trained_tokens or self.tokens or 0
            self.registers = nn.Parameter(torch.randn(count, self.shape.width) * 0.02)

    @property
    def trained_for(self) -> int | None:
        return self.trained_tokens or self.tokens

    def attach(self, backbone: AttachableBackbone) -> None:
        """Looks up the word "Image" (or "image", where the tokenizer doesn't know the first)."""
        if self.kind == "image_token" and self.word is None:
            ids = [backbone.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("Image", "image")]
            known = [own for own in ids if backbone.tokenizer.unk_token_id not in own] or ids
            self.word = torch.tensor(known[0][:1])

    def layers(self) -> set[int]:
        return {self.layer} if self.keep_last else {0, self.layer} if self.drops else {0}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.keep_last:
            _, real = tokens.images
            return tokens.keep_visual(real.cumsum(1) > real.sum(1, keepdim=True) - (self.tokens or 0))
        if layer == 0:
            return tokens.insert(self.initial(tokens, context))
        left = tokens.drop(VISUAL)
        return left.drop(REGISTER) if self.withdraws else left

    def initial(self, tokens: TokenSequence, context: Context) -> Tensor:
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

    def layer_tokens(self) -> list[int]:
        m, full = self.tokens or 0, self.shape.visual_tokens or 0
        early = full if self.keep_last else full + m
        late = 0 if self.withdraws else m if self.drops else early
        return [early] * self.layer + [late] * (self.shape.depth - self.layer)
