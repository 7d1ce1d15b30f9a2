"""torch's FlopCounterMode, with the attention kernels that its older versions pass over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Note = Callable[[tuple[int, int, int, int] | None, float], None]


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def flop_counter() -> FlopCounterMode:
    """A counter that prints nothing. Before torch 2.15 scaled dot-product attention on a CPU counted as nothing."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    missing = {kernel: formula for kernel, formula in attention.items() if kernel not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=missing)


def product_counter(note: Note) -> FlopCounterMode:
    """A counter that says each matrix product and each attention as it runs.

    Args:
        note: called with the product's sizes (batch, rows, inner, columns) and 0, or with None and the FLOPs of
            attention, of causal attention the half that it needs. The convolution that makes patches isn't among them.
    """
    aten = torch.ops.aten

    def product(left: Any, right: Any, *_: Any, **__: Any) -> int:
        sizes = (*([1] if len(left) == 2 else left[:1]), *left[-2:], right[-1])
        note(sizes, 0.0)
        return 0

    def added(_: Any, left: Any, right: Any, *__: Any, **___: Any) -> int:
        return product(left, right)

    def attention(causal: int) -> Callable[..., int]:
        """Of a kernel whose argument of this number says whether it is causal."""

        def kernel(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
            halved = others[causal - 3] if len(others) > causal - 3 else named.get("is_causal", False)
            note(None, sdpa_flop_count(query, key, value) / (2 if halved else 1))
            return 0

        return kernel

    kernels = {
        aten.mm: product,
        aten.bmm: product,
        aten.addmm: added,
        aten.baddbmm: added,
        aten._scaled_dot_product_flash_attention_for_cpu: attention(4),
        aten._scaled_dot_product_flash_attention: attention(4),
        aten._scaled_dot_product_efficient_attention: attention(6),
        aten._scaled_dot_product_cudnn_attention: attention(6),
    }
    return FlopCounterMode(display=False, custom_mapping=kernels)
