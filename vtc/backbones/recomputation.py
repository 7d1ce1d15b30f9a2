"""Activation checkpointing of transformers' models (Chen et al., arXiv 1604.06174), whatever their version calls it:
layers keep their inputs alone, and run again in the backward pass."""

from __future__ import annotations

from typing import Any


def start(model: Any, **options: Any) -> None:
    """Lets the layers of a model run again in the backward pass.

    Args:
        model: a transformers model.
        options: of `torch.utils.checkpoint.checkpoint`; none: transformers' own, without re-entrance.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options or None)


def stop(model: Any) -> None:
    """Lets the layers of a model keep their activations again."""
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
