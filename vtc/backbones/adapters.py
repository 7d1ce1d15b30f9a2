"""Which LoRA adapter the decoder runs under, also when gradient checkpointing runs a layer again in the backward pass.

peft's own `set_adapter` freezes every other adapter, so that the first of two passes would get no gradient; and a
layer that is recomputed in the backward pass would take whichever adapter is set by then. Both would train wrongly
without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn


def tuner_layers(module: nn.Module) -> list[Any]:
    """The peft layers inside `module`; none unless peft has been imported by whoever put them there."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    return [] if peft is None else [m for m in module.modules() if isinstance(m, peft.BaseTunerLayer)]


def activate(layers: list[Any], names: list[str]) -> None:
    """Makes these adapters the active ones, without touching `requires_grad` as peft's `set_adapter` does."""
    for layer in layers:
        layer._active_adapter = names


def using(decoder: Any, name: str | None) -> AbstractContextManager[None]:
    """Runs `decoder` under adapter `name` (None: its own weights), then as before."""
    return using_in(decoder.layers, name)


@contextmanager
def using_in(layers: Iterable[Any], name: str | None) -> Iterator[None]:
    """Runs these layers under adapter `name` (None: their own weights), then as before.

    A layer under gradient checkpointing remembers `name` and takes it again when it is recomputed.
    """
    by_layer = {layer: tuner_layers(layer) for layer in layers}
    every = [m for tuners in by_layer.values() for m in tuners]
    if not every:
        yield
        return
    names = [name] if name else []
    before = [m._active_adapter for m in every]
    replaced = []
    for layer, tuners in by_layer.items():
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            replaced.append((layer, layer._gradient_checkpointing_func))
            layer._gradient_checkpointing_func = _remembering(layer._gradient_checkpointing_func, tuners, names)
    activate(every, names)
    try:
        yield
    finally:
        for layer, function in replaced:
            layer._gradient_checkpointing_func = function
        for module, was in zip(every, before, strict=True):
            module._active_adapter = was


def _remembering(checkpoint, layers: list[Any], names: list[str]):
    def wrapped(forward, *args):
        def under(*inner):
            before = [m._active_adapter for m in layers]
            activate(layers, names)
            try:
                return forward(*inner)
            finally:
                for module, was in zip(layers, before, strict=True):
                    module._active_adapter = was

        return checkpoint(under, *args)

    return wrapped
