"""Optimisers and learning-rate schedules, from torch; nothing of our own but the choice of what goes where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import _muon
from torch.optim.lr_scheduler import LambdaLR

from vtc.settings import DECAY, OPTIMIZER, StageSettings
from vtc.training.identity import is_slow_in_bf16


class Muon(torch.optim.Muon):
    """torch's. Where a processor is many times slower in bfloat16, its products of matrices are in float32: they were
    three quarters of the time of a training of the pocket model."""

    def step(self, closure: Any = None) -> Any:
        if not is_slow_in_bf16(self.param_groups[0]["params"][0].device.type):
            return super().step(closure)
        before = _muon._zeropower_via_newtonschulz
        _muon._zeropower_via_newtonschulz = orthogonal  # type: ignore[assignment]
        try:
            return super().step(closure)
        finally:
            _muon._zeropower_via_newtonschulz = before


def orthogonal(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """torch's Newton-Schulz iteration in the type of the gradient, ``[M, N]``: nearly its orthogonal factor."""
    a, b, c = coefficients
    tall = grad.shape[0] > grad.shape[1]
    x = grad.T if tall else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Weights between two hidden layers, which Muon is for; not embeddings, heads, norms, biases, registers, LoRA."""
    return (
        parameter.ndim == 2
        and name.endswith("weight")
        and not any(part in name for part in ("embed", "lm_head", "head", "lora_"))
    )


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]], settings: StageSettings
) -> list[torch.optim.Optimizer]:
    """``adamw`` for everything, or ``muon``: Muon for the hidden matrices, its updates scaled to AdamW's RMS, so that
    rates compare, and AdamW for the rest."""
    OPTIMIZER.check("training.stages[].optimizer", settings.optimizer)
    rates: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    parameters = [(n, p) for n, p in named_parameters if p.requires_grad]
    if settings.optimizer == "adamw":
        return [torch.optim.AdamW([p for _, p in parameters], betas=settings.betas, **rates)]
    hidden = [p for n, p in parameters if is_hidden_matrix(n, p)]
    rest = [p for n, p in parameters if not is_hidden_matrix(n, p)]
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, adjust_lr_fn="match_rms_adamw", **rates))
    if rest:
        lr = settings.adam_lr or settings.lr
        optimizers.append(torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=settings.betas))
    return optimizers


def build_schedulers(optimizers: list[torch.optim.Optimizer], settings: StageSettings, steps: int) -> list[LambdaLR]:
    """Linear warm-up over a share of the steps, then ``cosine`` to zero, ``constant``, or ``linear``: constant until
    the last ``cooldown`` share, then straight to zero."""
    decay = settings.decay
    DECAY.check("training.stages[].decay", decay)
    warmup_steps = max(1, round(steps * settings.warmup))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        if decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if decay == "linear":
            return min(1.0, (1 - progress) / max(settings.cooldown, 1e-9))
        return 1.0

    return [LambdaLR(optimizer, factor) for optimizer in optimizers]
