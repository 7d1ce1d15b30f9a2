"""What to say before measurements begin that take long: how long, and what would shorten them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from vtc.profiling import latency
from vtc.profiling.limits import STEPS
from vtc.settings import ProfileSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone

SHORT = 120  # seconds about which nothing is said
STEP_TOKENS = 3  # new tokens by which a decoding step is timed
MODELS = 2  # the method and the uncompressed model
ROUNDS = 3  # of first tokens: to the first one, of the method's own work, of the parts


def advice(backbone: Backbone, protocol: ProfileSettings) -> list[str]:
    """Lines for a user who is about to wait; none where it is a matter of two minutes."""
    if not protocol.repeats and not protocol.first_token_repeats:
        return []
    lines = []
    if backbone.device.type == "cpu" and is_emulated(backbone.dtype):
        short = str(backbone.dtype).removeprefix("torch.")
        lines.append(
            f"dtype={short}: this processor has no instructions for it; dtype=float32 is several times as fast"
        )
    prefill, step = one_row(backbone, protocol.prompt_tokens)
    seconds = forecast(prefill, step, protocol)
    if seconds > SHORT:
        shorter = "profile.batch_size=2 profile.repeats=2 profile.first_token_repeats=5"
        lines.append(
            f"this takes up to {seconds / 60:.0f} minutes, by a prefill of one row ({prefill:.1f} s uncompressed); "
            f"shorter: {shorter}, or profile.repeats=0 without throughput"
        )
    return lines


def forecast(prefill: float, step: float, protocol: ProfileSettings) -> float:
    """Seconds that the measurements take at most: as if nothing were compressed, and rows one after the other.

    Args:
        prefill, step: seconds of an uncompressed prefill and of a decoding step of one row.
    """
    batch = protocol.batch_size * prefill
    answers = sum(batch + protocol.batch_size * step * tokens for tokens in protocol.new_tokens)
    parts = batch + protocol.batch_size * step * STEPS if protocol.first_token_repeats else 0.0
    first = ROUNDS * protocol.first_token_repeats * prefill
    return MODELS * (first + protocol.repeats * (answers + parts))


def one_row(backbone: Backbone, prompt_tokens: int) -> tuple[float, float]:
    """Seconds of an uncompressed prefill of one row, and of a decoding step."""
    inputs = latency.example(backbone, 1, prompt_tokens)

    def seconds(new_tokens: int) -> float:
        latency.synchronise(backbone.device)
        start = time.perf_counter()
        with torch.inference_mode():
            latency.generate(backbone, inputs, new_tokens)
        latency.synchronise(backbone.device)
        return time.perf_counter() - start

    seconds(1)
    prefill = seconds(1)
    return prefill, max(0.0, seconds(STEP_TOKENS) - prefill) / (STEP_TOKENS - 1)


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether this processor computes in float32 what is stored in 16 bit, converting both ways."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in supported:
        return False
    try:
        return not getattr(torch.ops.mkldnn, supported[dtype])()
    except (AttributeError, RuntimeError):  # a build of torch without oneDNN
        return False
