"""VidCom² (arXiv 2505.14454): video compression commander, plug-and-play inference acceleration for video LLMs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number
from vtc.interface import Context, TokenSequence, VideoPruner, option, rank

WIDTHS = [2.0**k for k in range(-3, 2)]  # of the Gaussians, in the authors' code


class VidCom2(VideoPruner):
    """Frames unlike the rest of the video get more tokens; in each, the tokens most unlike frame and video are kept.

    A row's images are the frames of a video, in order. With x the projected tokens at unit length, g their mean over
    the video and g_t over frame t, a token is as typical as Σ_α exp(−‖x − g‖² / 2α), α = 1/8 … 2, of the video, and
    likewise of its frame. The uniqueness u_t of a frame is minus the mean of the former over its tokens; its share of
    the budget is `tokens` · (1 + softmax(u / τ)_t − 1/F). In each frame the tokens with the lowest sum of the two are
    kept. All on the half of the channels that vary least over the video, as in the authors' code. Before the LLM.

    Exactly F · `tokens` of F frames are kept (the authors round each share): the shares, moved by one number that is
    the same for all, add up to the budget; no frame gets more than it has, or less than one token. A single image has
    the whole budget, and its typical tokens go.

    Args:
        tokens: the mean over the frames; default: a quarter (25 %, the paper's middle budget).
    """

    name = "vidcom2"
    about = "VidCom2: unique frames of a video get more tokens, unique tokens stay (arXiv 2505.14454)."
    reference = "test_vidcom2.py::test_keeps_what_is_unique"
    default_share = 1 / 4
    # τ of the authors' code.
    temperature: float = option(
        0.01,
        "of the softmax over the frames' uniqueness; higher: shares more alike",
        allowed=number("a number above 0", above=0),
    )

    @torch.no_grad()
    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        index, real = tokens.images
        row, _ = tokens.frames
        hidden, claim = tokens.visual_hidden().float(), torch.zeros(index.shape, device=index.device)
        for video in row.unique():
            own = row == video
            claim[own] = self.claims(hidden[own], real[own])
        return tokens.per_token(claim)

    def claims(self, frames: Tensor, real: Tensor) -> Tensor:
        """[F, N] of one video, frames [F, N, D]: how far a token's place in its frame lies within the frame's share.

        The best of these over the video are F · `tokens` tokens that share it out.
        """
        x = F.normalize(stable_channels(frames, real), dim=-1) * real[..., None]
        sizes = real.sum(1)
        of_frame = x.sum(1, keepdim=True) / sizes[:, None, None]
        of_video = x.sum((0, 1)) / sizes.sum()
        typical = gaussian(x, of_video)
        unique = -(typical * real).sum(1) / sizes
        share = (self.tokens or 0) * (1 + (unique / self.temperature).softmax(0) - 1 / len(frames))
        place = rank(-(typical + gaussian(x, of_frame)).masked_fill(~real, float("inf")))
        return torch.where(place == 0, torch.finfo(share.dtype).max, share[:, None] - place)


def stable_channels(frames: Tensor, real: Tensor) -> Tensor:
    """[F, N, D // 2]: the channels of frames [F, N, D] with the least variance over the video's tokens."""
    variance = frames[real].var(0, unbiased=False)
    return frames[..., variance.argsort(stable=True)[: max(1, frames.shape[-1] // 2)]]


def gaussian(x: Tensor, centre: Tensor) -> Tensor:
    """Σ_α exp(−‖x − centre‖² / 2α) over the last dimension."""
    distance = (x - centre).square().sum(-1)
    return torch.stack([(-distance / (2 * alpha)).exp() for alpha in WIDTHS]).sum(0)
