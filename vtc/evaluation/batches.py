"""How many requests are answered at a time: as many as asked for, or (`auto`) as memory has room for.

A method that leaves few tokens has room for more of them. What a row takes is estimated before, from sizes alone; where
that was too little the batch is halved, and so are those that follow.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.interface.flops import cache_bytes
from vtc.job import AUTO

if TYPE_CHECKING:
    import torch

    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

USUAL = 32  # rows, where what a row takes or what memory has isn't known
MOST = 512  # rows, beyond which nothing becomes faster
MOST_ON_CPU = 128  # there it is the overhead of a step that many rows share, and soon there is none left
SHARE = 0.5  # of the free memory, that a batch by the estimate may take: allocators leave gaps, kernels need room
MEMINFO = Path("/proc/meminfo")


def rows(asked: int | str, backbone: Backbone, method: Compressor, text: int, new_tokens: int, images: int = 1) -> int:
    """Requests at a time.

    Args:
        asked: a number, or `auto`: the largest power of two that memory has room for.
        text: tokens of the longest prompt beside its visual ones.
        new_tokens: of the longest answer.
        images: of a prompt, or frames.
    """
    if asked != AUTO:
        return int(asked)
    device = backbone.device
    free, each = free_bytes(device), row_bytes(backbone, method, text, new_tokens, images)
    if free is None or each is None:
        return USUAL
    most = MOST if device.type == "cuda" else MOST_ON_CPU
    fitting = min(most, max(1, int(SHARE * free / each)))
    return 1 << (fitting.bit_length() - 1)


def row_bytes(backbone: Backbone, method: Compressor, text: int, new_tokens: int, images: int = 1) -> float | None:
    """Memory that a row of a batch takes at most, by sizes alone; None where an image has no fixed number of tokens.

    Keys and values of every layer; hidden states, projections and the gated MLP of the widest one, or of a pass of the
    method's own; the tower with the hidden states that it hands out; two rows of logits in float32.
    """
    shape, vision, item = backbone.shape, backbone.shape.vision, backbone.dtype.itemsize
    if shape.visual_tokens is None:
        return None
    cached = [images * tokens + text + new_tokens for tokens in method.cached_tokens()]
    passes = [round(one.visual) + one.text for one in method.own_passes(shape.visual_tokens, text)]
    widest = max(images * max(method.layer_tokens()) + text, *passes, 0)
    decoder = item * widest * (6 * shape.width + 3 * shape.intermediate)
    patches = images * vision.tiles * (vision.tokens or shape.visual_tokens)
    tower = item * patches * ((vision.depth + 6) * vision.width + 2 * vision.intermediate)
    return cache_bytes(shape, cached, item) + decoder + tower + 8.0 * shape.vocab


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where nobody says."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a batch was too large for memory."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's own words on a CPU
