"""What the machine can do at best: matrix products of given sizes, copying memory, starting an operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from vtc.profiling.latency import synchronise

COPIED = 256 * 2**20  # bytes: more than caches hold
LAUNCHES = 1000
LEAST = 0.02  # seconds that a measurement takes at least


class Product(NamedTuple):
    """`batch` products of [rows, inner] with [inner, columns] matrices."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Machine:
    """The measured machine.

    Attributes:
        rates: FLOPs a second of each product by itself.
        bandwidth: bytes a second, read and written ones counted, of a copy, or read by a sum where that is more.
        launch: seconds from one operation on a single number to the next.
    """

    rates: dict[Product, float]
    bandwidth: float
    launch: float

    @property
    def best_rate(self) -> float:
        return max(self.rates.values())

    def summary(self) -> dict[str, float]:
        """Plain values, for a result file."""
        return {
            "best_flops_per_second": self.best_rate,
            "lowest_flops_per_second": min(self.rates.values()),
            "products": len(self.rates),
            "bandwidth_bytes_per_second": self.bandwidth,
            "launch_us": 1e6 * self.launch,
        }


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype, products: Iterable[Product]) -> Machine:
    """Measures the machine once; a best of several tries is taken, as a limit is what it can do at best."""

    def seconds(one: Product) -> float:
        left = torch.randn(one.batch, one.rows, one.inner, device=device, dtype=dtype)
        right = torch.randn(one.batch, one.columns, one.inner, device=device, dtype=dtype).transpose(1, 2)
        if one.batch > 1:
            return _best(lambda: left @ right, device)
        sides = [right[0], right[0].contiguous()]  # a linear layer's weights, by rows and by columns
        return min(_best(partial(torch.matmul, left[0], side), device) for side in sides)

    rates = {one: one.flops / seconds(one) for one in sorted(set(products))}
    source = torch.ones(COPIED // 4, device=device)
    target, single = torch.empty_like(source), torch.zeros(1, device=device)
    copied = 2 * COPIED / _best(lambda: target.copy_(source), device)
    read = COPIED / _best(source.sum, device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            single.add_(1)

    return Machine(rates, max(copied, read), _best(launches, device) / LAUNCHES)


def _best(run: Callable[[], Any], device: torch.device, tries: int = 5) -> float:
    """Seconds of the fastest of some tries, each of enough calls to be measured."""
    run()

    def seconds(count: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(count):
            run()
        synchronise(device)
        return (time.perf_counter() - start) / count

    count = max(1, round(LEAST / max(seconds(1), 1e-9)))
    return min(seconds(count) for _ in range(tries))
