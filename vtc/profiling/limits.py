"""How far from the machine's limit each part of a run is, and how much of what its FLOPs promise a method gains.

The limit of a part is the longer of two times: that of its arithmetic, each matrix product at the rate that it has by
itself on this machine and attention at the best of these rates; and that of moving its weights and its cache once.
Efficiency is limit ÷ time.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vtc.interface import flops
from vtc.profiling import latency, machine, parts
from vtc.profiling.counter import product_counter
from vtc.profiling.run import count_passes, without_gradients
from vtc.settings import ProfileSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

STEPS, COMPILED_STEPS = 8, 32  # decoding steps in a measurement
PARTS = (parts.TOWER, parts.PROJECTOR, parts.METHOD, parts.PREFILL)


@dataclass
class Work:
    """What a part computes and moves.

    Attributes:
        products: how often each matrix product is computed.
        attention: FLOPs of attention kernels; of causal ones the half that is needed.
        bytes: of weights and cache.
    """

    products: Counter[machine.Product] = field(default_factory=Counter)
    attention: float = 0.0
    bytes: float = 0.0

    @property
    def flops(self) -> float:
        return self.attention + sum(one.flops * n for one, n in self.products.items())

    def limit(self, measured: machine.Machine) -> tuple[float, str]:
        """Seconds, and which of the two binds: `compute` or `memory`."""
        products = sum(n * one.flops / measured.rates[one] for one, n in self.products.items())
        compute, memory = products + self.attention / measured.best_rate, self.bytes / measured.bandwidth
        return max((compute, "compute"), (memory, "memory"))


def limits(backbone: Backbone, method: Compressor, protocol: ProfileSettings) -> dict[str, Any]:
    """Of each part the time, the limit and the efficiency, under `method` and uncompressed, measured in turns.

    Returns:
        machine: see `vtc.profiling.machine.Machine.summary`.
        parts, parts_uncompressed: for `tower`, `projector`, `method` (its own work) and `prefill`, all of one row, and
            for `decode`, a step of the protocol's batch: ms, its quartiles `ms_quartiles`, limit_ms, bound (compute,
            memory), efficiency, flops, bytes.
        speedup: of the parts of a prefill together: what the method's FLOPs promise, what was measured, and the share
            of the promised one that is `realised`.
    """
    from vtc.methods import build

    plain = method if method.name == "none" else build("none", None, backbone.shape)
    methods = [method] if plain is method else [method, plain]
    one = latency.example(backbone, 1, protocol.prompt_tokens)
    many = latency.example(backbone, protocol.batch_size, protocol.prompt_tokens)
    works = [work_of(backbone, each, one, many) for each in methods]
    products = {product for work in works for part in work.values() for product in part.products}
    measured = machine.measure(backbone.device, backbone.dtype, products)
    times = time_parts(backbone, methods, one, many, protocol)
    rows = [
        {name: _row(work[name], seconds[name], measured) for name in (*PARTS, parts.DECODE)}
        for work, seconds in zip(works, times, strict=True)
    ]
    wholes = [[sum(turn) for turn in zip(*(seconds[name] for name in PARTS), strict=True)] for seconds in times]
    promised = _prefill_flops(backbone, plain, one) / _prefill_flops(backbone, method, one)
    gain = statistics.median(b / a for a, b in zip(wholes[0], wholes[-1], strict=True))
    return {
        "machine": measured.summary(),
        "parts": rows[0],
        "parts_uncompressed": rows[-1],
        "speedup": {"promised": promised, "measured": gain, "realised": gain / promised},
    }


def work_of(backbone: Backbone, method: Compressor, one: Any, many: Any) -> dict[str, Work]:
    """What each part does: those of a prefill for the row `one`, a decoding step for the rows of `many`."""
    prefill, decode = _counted(backbone, method, one), _counted(backbone, method, many)
    work = {name: prefill[name] for name in PARTS} | {parts.DECODE: decode[parts.DECODE]}
    item = torch.empty((), dtype=backbone.dtype).element_size()
    ran = count_passes(backbone, method, one)
    cached = flops.cache_bytes(backbone.shape, [c.keys - c.queries for c in ran.steps], item)
    decoder = _bytes(backbone.decoder.layers) + _bytes(backbone.model.get_output_embeddings())
    work[parts.TOWER].bytes = _bytes(backbone.vision_tower)
    work[parts.PROJECTOR].bytes = _bytes(backbone.projector)
    work[parts.METHOD].bytes = _bytes(method)
    work[parts.PREFILL].bytes = decoder + cached
    work[parts.DECODE].bytes = decoder + cached * len(many["input_ids"])
    return work


def time_parts(
    backbone: Backbone, methods: Sequence[Compressor], one: Any, many: Any, protocol: ProfileSettings
) -> list[dict[str, list[float]]]:
    """Seconds of each part under each method, turn by turn."""
    seconds: list[dict[str, list[float]]] = [{name: [] for name in (*PARTS, parts.DECODE)} for _ in methods]
    steps = COMPILED_STEPS if protocol.compiled else STEPS
    for method in methods:  # the first call allocates, and compiles
        _spent(backbone, method, many, 1 + steps, protocol.compiled)
        _spent(backbone, method, one, 1)
    for turn in range(protocol.first_token_repeats):
        for index in latency.turn_order(turn, len(methods)):
            spent = _spent(backbone, methods[index], one, 1)
            for name in PARTS:
                seconds[index][name].append(spent[name])
    for turn in range(protocol.repeats):
        for index in latency.turn_order(turn, len(methods)):
            spent = _spent(backbone, methods[index], many, 1 + steps, protocol.compiled)
            seconds[index][parts.DECODE].append(spent[parts.DECODE] / steps)
    return seconds


def _spent(
    backbone: Backbone, method: Compressor, inputs: Any, new_tokens: int, compiled: bool = False
) -> dict[str, float]:
    """Seconds of the parts of one call of `generate`."""
    from vtc.engine import compressing

    def clock() -> float:
        latency.synchronise(backbone.device)
        return time.perf_counter()

    meter = parts.Meter(clock)
    with (
        torch.inference_mode(),
        compressing(backbone, method, compiled),
        parts.regions(backbone, method, meter, parts.PREFILL),
    ):
        latency.generate(backbone, inputs, new_tokens)
    return meter.spent


def _counted(backbone: Backbone, method: Compressor, inputs: Any) -> dict[str, Work]:
    """What each part computes in a prefill and one decoding step."""
    from vtc.engine import compressing

    work = {name: Work() for name in (*PARTS, parts.DECODE)}
    meter = parts.Meter(lambda: 0.0)

    def note(product: tuple[int, int, int, int] | None, attention: float) -> None:
        part = work[meter.region or parts.PREFILL]
        part.attention += attention
        if product is not None:
            part.products[machine.Product(*product)] += 1

    with (
        torch.inference_mode(),
        without_gradients(method),
        product_counter(note),
        compressing(backbone, method),
        parts.regions(backbone, method, meter, parts.PREFILL),
    ):
        latency.generate(backbone, inputs, 2)
    return work


def _prefill_flops(backbone: Backbone, method: Compressor, one: Any) -> float:
    """FLOPs up to the first token, tower and projector among them."""
    ran = count_passes(backbone, method, one)
    decoder = flops.total(backbone.shape, ran.prefill) + flops.head(backbone.shape)
    return decoder + ran.method_flops + ran.vision_flops


def _bytes(module: nn.Module) -> float:
    return float(sum(p.numel() * p.element_size() for p in module.parameters()))


def _row(work: Work, seconds: Sequence[float], measured: machine.Machine) -> dict[str, Any]:
    limit, bound = work.limit(measured)
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median, median, median)
    return {
        "ms": 1e3 * median,
        "ms_quartiles": [1e3 * low, 1e3 * high],
        "limit_ms": 1e3 * limit,
        "bound": bound,
        "efficiency": limit / median if median else None,
        "flops": work.flops,
        "bytes": work.bytes,
    }
