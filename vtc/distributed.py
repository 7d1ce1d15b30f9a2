"""Several processes: who this one is, and what all of them know together. For one process nothing is set up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def device(name: str = "auto") -> torch.device:
    """Where this process works: `name`; for ``auto`` a GPU where there is one. Of several GPUs, its own."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind == "cuda" and together():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(kind)


def begin(cpu: bool) -> None:
    """Joins the other processes that were launched with this one, and takes its own GPU; alone it does nothing.

    Args:
        cpu: whether the processes compute on CPUs, where GPUs there may be.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=cpu)


def together() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if together() else 0


def world() -> int:
    """How many processes train."""
    return dist.get_world_size() if together() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if together():
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """The value of each process, by rank."""
    if not together():
        return [value]
    everyone: list[Any] = [None] * world()
    dist.all_gather_object(everyone, value)
    return everyone


def from_main(value: T) -> T:
    """The main process's value, on every process."""
    if not together():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def added(entries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name; a name that an entry lacks counts 0 there."""
    total: dict[str, float] = {}
    for entry in entries:
        for name, value in entry.items():
            total[name] = total.get(name, 0.0) + value
    return total


def sum_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Sums by name over the processes."""
    return added(gather_objects(dict(values)))


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of every process, one process after the other; gradients find their way back.

    Every process gets the gradient of the sum over the processes of what each makes of the result: where all compute
    the same loss from it, scale it by one over their number.

    Args:
        x: [B, …], B may differ between processes.

    Returns:
        [sum of B, …]; `x` itself for one process.
    """
    return _Gather.apply(x) if together() else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        group = _own_group()
        mine = torch.tensor([len(x)], device=x.device)
        sizes = [torch.zeros_like(mine) for _ in range(world())]
        dist.all_gather(sizes, mine, group=group)
        ctx.sizes = [int(size) for size in sizes]
        padded = x.new_zeros(max(ctx.sizes), *x.shape[1:])
        padded[: len(x)] = x
        rows = [torch.empty_like(padded) for _ in ctx.sizes]
        dist.all_gather(rows, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(rows, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient, group=_own_group())
        return gradient.split(ctx.sizes)[rank()]


_groups: dict[int, dist.ProcessGroup] = {}


def _own_group() -> dist.ProcessGroup:
    """A group for gathering alone: in the backward pass DDP's own reductions may come before it or after it, and not in
    the same order on every process (parameters that one of them has no use for are reduced at once)."""
    default = id(dist.group.WORLD)
    if default not in _groups:
        _groups[default] = dist.new_group()  # type: ignore[assignment]
    return _groups[default]


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter that FSDP or DeepSpeed splits over the processes, detached; every process must ask for it."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
