"""What truly ran: every pass of every decoder layer, with the number of tokens it saw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vtc.engine.cache import cache_among
from vtc.engine.recurrent import attending
from vtc.interface.flops import Call

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone


@contextlib.contextmanager
def record_calls(backbone: Backbone) -> Iterator[list[Call]]:
    """Collects one `Call` a pass of a decoder layer while it is open.

    It sees whatever the method does with the decoder: Fwd2Bot's first pass is in it, and so are the tokens that a
    method drops between layers, for each layer as it was.
    """
    calls: list[Call] = []
    hooks = []

    def hook(index: int) -> Any:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = cache_among(kwargs)
            holds = cache is not None and attending(cache, range(index, index + 1)) is not None
            cached = int(cache.get_seq_length(index)) if holds else 0  # states hold no tokens
            queries = int(hidden.shape[1])
            calls.append(Call(index, queries, cached + queries, _lora(module)))

        return before

    for index, module in enumerate(backbone.decoder.layers):
        hooks.append(module.register_forward_pre_hook(hook(index), with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()


def _lora(layer: Any) -> float:
    """FLOPs a token of the active, unmerged LoRA adapters in a layer: 2 r (in + out) a linear."""
    flops = 0.0
    for module in layer.modules():
        lora_a = getattr(module, "lora_A", None)
        if not lora_a or getattr(module, "disable_adapters", False) or getattr(module, "merged", False):
            continue
        for name in getattr(module, "active_adapters", ()):
            if name in lora_a:
                a, b = lora_a[name], module.lora_B[name]
                flops += 2.0 * (a.in_features * a.out_features + b.in_features * b.out_features)
    return flops
