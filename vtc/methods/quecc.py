"""QueCC (arXiv 2411.03312): inference optimal VLMs need only one visual token but larger models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.interface import TEXT, Context, OwnPass, TokenSequence, Tower
from vtc.methods.windows import WindowAttention, WindowResampler, mlp, side_by_side


class QueCC(WindowResampler):
    """TokenPacker whose queries know the question, for budgets down to one token (section 4; figure 4).

    The LLM reads the question alone, and its last hidden state at the last token, t, is projected to the tower's width
    and added to every patch: X_q = MLP_q(X + LN(W t)). A depth-wise s×s convolution with stride s makes the M = N/s²
    queries of it (the "convolutional" part), and each attends to the s×s patches under it, whose keys and values are
    made of several layers of the tower (`WindowAttention`). An MLP of two layers maps to the LLM's width.

    As in the authors' code: no gradient flows into the pass that reads the question, and no residual past the
    attention. There the question is cut out of the prompt and read by itself; here it is read as it stands behind the
    image, from the first text token behind it to the last one before the answer ("… ASSISTANT:"), so that what follows
    the image in this turn decides; where nothing does, the text before the image is read. The tower's layers, heads
    and windows are TokenPacker's.

    Questions that are packed behind one image in training share its tokens: t is then the mean of theirs, each read by
    itself. That is not what one question gets alone: train with few questions an image (`data.questions`).

    The compressed image serves only the question that it was made for; every question costs a pass of its text.

    Args:
        tokens: M; default: a quarter of the visual tokens.
    """

    name = "quecc"
    about = "QueCC: TokenPacker whose queries know the question, for budgets down to one token (arXiv 2411.03312)."
    reference = "test_quecc.py::test_equals_loops_over_windows"
    reads_prompt = True

    def make_parameters(self) -> None:
        width = self.shape.vision.width
        self.text = nn.Sequential(nn.Linear(self.shape.width, width), nn.LayerNorm(width, eps=1e-6))
        self.query = nn.Sequential(*mlp(width, width), nn.LayerNorm(width, eps=1e-6))
        self.shrink = nn.Conv2d(width, width, self.stride, self.stride, groups=width)
        self.injection = WindowAttention(len(self.fine) * width, width, self.heads)
        self.mlp = mlp(width, self.shape.width)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        rows, _ = tokens.frames
        return tokens.replace(self.pack(context.seen(), self.question(tokens, context)[rows]))

    def own_passes(self, visual: float, text: int) -> list[OwnPass]:
        return [OwnPass(0, text)]  # the question; as if all of the prompt stood behind the image

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Of images about which nothing is asked."""
        return self.pack(context.seen(), features.new_zeros(len(features), self.shape.width))

    def pack(self, tower: Tower, question: Tensor) -> Tensor:
        """What the tower made of I images, and the state [I, D] of each one's question → [I, M, D]."""
        patches = self.query(tower.features + self.text(question)[:, None])
        query = self.shrink(patches.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)
        return self.mlp(self.injection(query, side_by_side(tower, self.fine), self.grid, self.stride))

    @torch.no_grad()
    def question(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[B, D]: the LLM's last hidden state at the end of each row's question, the mean where a row has several."""
        prompt, rows = context.prompt(tokens), len(tokens.mask)
        text = prompt & (tokens.role == TEXT)
        before = (tokens.role == TEXT) & tokens.mask & (tokens.visual.cumsum(1) == 0)
        for other in (before, prompt):  # nothing behind the image; no word at all
            text = torch.where(text.any(1, keepdim=True), text, other)
        number = torch.arange(1 + int((tokens.block * text).max()), device=text.device)[:, None]
        own = text[:, None] & (tokens.block[:, None] == number)  # [B, Q, L]; number 0 is what all questions share
        present = own.any(2)
        present[:, 0] &= ~present[:, 1:].any(1)
        row, which = present.nonzero().T
        words = own[row, which] | own[row, 0]  # [P, L], one question each
        length = words.sum(1)
        order = words.int().argsort(dim=1, descending=True, stable=True)[:, : int(length.max())]
        real = torch.arange(order.shape[1], device=text.device) < length[:, None]
        hidden = context.run_decoder(tokens.hidden[row[:, None], order], real, adapter=self.adapter)
        torch.clear_autocast_cache()  # older torch would learn with weights that were cast without gradients
        last = hidden[torch.arange(len(row), device=row.device), length - 1]
        total = last.new_zeros(rows, last.shape[-1]).index_add(0, row, last)
        return total / present.sum(1, keepdim=True)
