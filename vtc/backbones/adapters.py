"""Which LoRA adapter the decoder runs under, also when gradient checkpointing runs a layer again in the backward pass.

peft's own `set_adapter` freezes every other adapter, so that the first of two passes would get no gradient; and a
layer that is recomputed in the backward pass would take whichever adapter is set by then. Both would train wrongly
without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def tuner_layers(module: nn.Module) -> list[Any]:
    """The peft layers inside `module`; none unless peft has been imported by whoever put them there."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    found: list[Any] = []
    open_modules = [] if peft is None else [module]
    while open_modules:  # `modules()` names each on its way, which takes a good part of a short pass
        one = open_modules.pop()
        if isinstance(one, peft.BaseTunerLayer):  # type: ignore[union-attr]
            found.append(one)
        else:
            open_modules.extend(child for child in reversed(one._modules.values()) if child is not None)
    return found


def activate(layers: list[Any], names: list[str]) -> None:
    """Makes these adapters the active ones, without touching `requires_grad` as peft's `set_adapter` does."""
    for layer in layers:
        vars(layer)["_active_adapter"] = names  # a module's own way to set an attribute looks for parameters first


def remove(module: nn.Module) -> None:
    """Takes all adapters out again: the layers beneath them are in their places as before."""
    tuners = set(map(id, tuner_layers(module)))
    if not tuners:
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in tuners:
                setattr(parent, name, child.base_layer)
        parent.__dict__.pop("peft_config", None)


@contextmanager
def active(layers: list[Any], names: list[str]) -> Iterator[None]:
    """These adapters, then those of before."""
    before = [layer._active_adapter for layer in layers]
    activate(layers, names)
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            vars(layer)["_active_adapter"] = was


@contextmanager
def using(layers: Iterable[Any], name: str | None) -> Iterator[None]:
    """Runs these layers under adapter `name` (None: their own weights), then as before.

    A layer under gradient checkpointing remembers `name` and takes it again when it is recomputed.
    """
    by_layer = {layer: tuner_layers(layer) for layer in layers}
    every = [m for tuners in by_layer.values() for m in tuners]
    if not every:
        yield
        return
    names = [name] if name else []
    replaced = []
    for layer, tuners in by_layer.items():
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            replaced.append((layer, layer._gradient_checkpointing_func))
            layer._gradient_checkpointing_func = _remembering(layer._gradient_checkpointing_func, tuners, names)
    try:
        with active(every, names):
            yield
    finally:
        for layer, function in replaced:
            layer._gradient_checkpointing_func = function


def _remembering(checkpoint, layers: list[Any], names: list[str]):
    def wrapped(forward, *args):
        def under(*inner):
            with active(layers, names):
                return forward(*inner)

        return checkpoint(under, *args)

    return wrapped
