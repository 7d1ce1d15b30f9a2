"""DyCoke (arXiv 2411.15024): dynamic compression of tokens for fast video large language models."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.interface import PLACES, Context, TokenSequence, VideoPruner, rank
from vtc.methods.evs import beside_whole, similarity

GROUP = 4  # frames
BACK = (0, 1, 2, 1)  # how far before it the frame lies that a frame of a group is compared with


class DyCoke(VideoPruner):
    """Token temporal merging: of frames in groups of four, tokens that repeat an earlier frame of the group go.

    A row's images are the frames of a video, in order. In each group the second frame is compared with the first, the
    fourth with the third, place by place (cosine of the projected tokens); then the third with the first. Of each of
    the three, the same share with the greatest similarity goes; the first stays whole. What
    is merged is dropped, as in the authors' code: the token of the earlier frame stands for it, unchanged. Before the
    LLM. Stage two, the pruning of the KV cache at each decoding step, is not here: it keeps every token, and what it
    leaves out changes from step to step.

    The budget decides the share: exactly F · `tokens` of F frames are kept, and of the frames that are thinned equally
    many, to one token. Where the budget is less than the first frames of all groups have (a quarter, of full groups),
    these can't stay whole: as with EVS each gives its share, `tokens` at even distances in raster order. So does a
    single image. A last group may have fewer than four frames (the authors' code leaves its third frame whole).

    Args:
        tokens: the mean over the frames; default: half, about the paper's setting (0.7 of the three frames go).
    """

    name = "dycoke"
    about = "DyCoke: of a video's frames in groups of four, merges what repeats over time (arXiv 2411.15024)."
    reference = "test_dycoke.py::test_merges_what_repeats"
    default_share = 1 / 2
    needs = (PLACES,)

    @torch.no_grad()
    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        (_, real), (_, frame) = tokens.images, tokens.frames
        number = frame % GROUP
        like = similarity(tokens, torch.tensor(BACK, device=frame.device)[number])
        place = rank(-like.masked_fill(~real, float("inf")))
        return beside_whole(tokens, number == 0, -place.float(), self.tokens or real.shape[1])
