"""The losses that every method shares; a method's own are in its file."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vtc.data.training.batch import IGNORE

EMBED_TEMPERATURE = 0.07  # CLIP's


def answer_loss(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Next-token cross entropy, mean over the answers' tokens (LLaVA's loss; L_AR, eq. 2, of Fwd2Bot).

    Args:
        head: hidden states [..., D] → logits [..., V]; run on the states that predict an answer's token alone, since
            the logits of a whole batch are its largest tensor.
        hidden: [B, L, D] last hidden states.
        labels: [B, L], -100 where nothing is answered.
    """
    following = labels[:, 1:]
    counted = following != IGNORE
    return F.cross_entropy(head(hidden[:, :-1][counted]).float(), following[counted])
