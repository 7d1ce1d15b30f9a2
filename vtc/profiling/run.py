"""The efficiency section of a result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.settings import ProfileSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.engine import Report
    from vtc.interface import Compressor
    from vtc.interface.flops import Call


def efficiency(backbone: Backbone, method: Compressor, protocol: ProfileSettings | None = None) -> dict[str, Any]:
    """What `method` costs on `backbone`, beside the uncompressed model measured in turns with it.

    Returns:
        vision_flops: tower and projector as they ran, one image; vision_flops_uncompressed.
        prefill_flops: decoder and output row for one image and the prompt, every pass of the method included, LoRA too,
            and the method's own arithmetic; prefill_flops_uncompressed the same without compression; flops_ratio their
            quotient; flops_ratio_with_vision that of the sums with vision_flops.
        method_flops: the method's own arithmetic alone (a resampler, a selection), as torch's FlopCounterMode counts.
        answer_flops: the part of prefill_flops that is left where the image was compressed beforehand and stored: the
            last pass of the decoder, or behind a bottleneck (VoCo) the text. It differs for methods that compress
            without the question.
        decode_flops_per_token: the first decoding step after that prefill.
        ttft_ms: {median, p95}, one row, from pixels on the device to the first token; ttft_ms_uncompressed.
        decode_ms_per_token: a step of a whole batch.
        method_ms: the median of the method's own work in such a prefill (see `vtc.profiling.parts`), its own passes of
            the LLM included; method_share: that as a share of the prefill it was measured in.
        throughput: new tokens a second by how many are generated; throughput_uncompressed.
        speedup: throughput relative to uncompressed at the most new tokens; speedup_by_tokens for each; ttft_speedup.
        peak_memory_bytes: on the GPU, one batch; None on a CPU. peak_memory_bytes_uncompressed.
        kv_cache_bytes: of one row after the prefill; kv_cache_bytes_uncompressed.
        extra_parameters: what the method adds to the backbone.
        storage_bytes_per_image: what must be kept of an image to answer later questions about it, in 16 bit.
        visual_tokens: of the image, uncompressed; visual_tokens_out: what is left to answer from; layer_tokens: visual
            tokens and registers in each decoder layer.
        protocol: what was measured, and on what. Times that its numbers of repeats leave out are None, or empty.
    """
    import torch

    from vtc.interface import flops
    from vtc.methods import build
    from vtc.profiling import latency

    protocol = protocol or ProfileSettings()
    shape = backbone.shape
    one = latency.example(backbone, 1, protocol.prompt_tokens)
    text = int((~backbone.visual(one["input_ids"][0])).sum())
    full = int(one["input_ids"].shape[1]) - text
    methods = [method] if method.name == "none" else [method, build("none", None, shape)]
    counted = [count_passes(backbone, each, one) for each in methods]
    timings = latency.measure(backbone, methods, protocol)
    item = torch.empty((), dtype=backbone.dtype).element_size()
    both: list[dict[str, Any]] = [
        {
            "vision_flops": ran.vision_flops,
            "prefill_flops": flops.total(shape, ran.prefill) + flops.head(shape) + ran.method_flops,
            "ttft_ms": timing.ttft_ms(),
            "decode_ms_per_token": timing.decode_ms(),
            "throughput": timing.throughput(protocol.batch_size),
            "peak_memory_bytes": timing.peak_memory,
            "kv_cache_bytes": flops.cache_bytes(shape, [c.keys - c.queries for c in ran.steps], item),
        }
        for ran, timing in zip(counted, timings, strict=True)
    ]
    mine, plain, ran, report = both[0], both[-1], counted[0], counted[0].report
    layer_tokens = [layer[0] for layer in report.layers] if report is not None else [full] * shape.depth
    left = report.tokens_out[0] if report is not None else full
    stored = full if method.needs_question else left if method.bottleneck else min(full, layer_tokens[0])
    # Of a bottleneck the cache of its tokens is kept, of other methods the tokens before the LLM.
    storage = flops.cache_bytes(shape, [left] * shape.depth, 2) if method.bottleneck else 2 * shape.width * stored
    answering = flops.total(shape, method.answering_calls(ran.prefill, text)) + flops.head(shape)
    with_vision = [costs["prefill_flops"] + costs["vision_flops"] for costs in both]
    by_tokens = {n: speed / plain["throughput"][n] for n, speed in mine["throughput"].items()}
    sooner = plain["ttft_ms"]["median"] / mine["ttft_ms"]["median"] if mine["ttft_ms"] else None
    return {
        **mine,
        **{f"{cost}_uncompressed": value for cost, value in plain.items()},
        "flops_ratio": mine["prefill_flops"] / plain["prefill_flops"],
        "flops_ratio_with_vision": with_vision[0] / with_vision[-1],
        "method_flops": ran.method_flops,
        "answer_flops": answering + (ran.method_flops if stored == full else 0),
        "decode_flops_per_token": flops.total(shape, ran.steps) + flops.head(shape),
        "method_ms": timings[0].method_ms(),
        "method_share": timings[0].method_share(),
        "speedup": by_tokens[max(by_tokens, key=int)] if by_tokens else None,
        "speedup_by_tokens": by_tokens,
        "ttft_speedup": sooner,
        "extra_parameters": int(method.extra_parameters),
        "storage_bytes_per_image": storage,
        "visual_tokens": full,
        "visual_tokens_out": left,
        "layer_tokens": layer_tokens,
        "protocol": {
            "batch_size": protocol.batch_size,
            "prompt_tokens": text,
            "new_tokens": list(protocol.new_tokens),
            "repeats": protocol.repeats,
            "first_token_repeats": protocol.first_token_repeats,
            "device": device_name(backbone.device),
            "threads": torch.get_num_threads(),
        },
    }


@dataclass(frozen=True)
class PassCounts:
    """What a prefill and one decoding step did.

    Attributes:
        prefill, steps: passes of decoder layers.
        method_flops, vision_flops: of the method itself, and of tower and projector as they ran.
        report: the engine's; None where the method does nothing.
    """

    prefill: list[Call]
    steps: list[Call]
    method_flops: float
    vision_flops: float
    report: Report | None


def count_passes(backbone: Backbone, method: Compressor, inputs: Any) -> PassCounts:
    """A prefill and one decoding step under `method`, counted as they run."""
    import torch

    from vtc.engine import compressing
    from vtc.profiling import latency, parts
    from vtc.profiling.counter import flop_counter
    from vtc.profiling.recorder import record_calls

    with (
        torch.inference_mode(),
        without_gradients(method),
        flop_counter() as counter,
        parts.metering(backbone, method, counter.get_total_flops) as spent,
        compressing(backbone, method) as engine,
        record_calls(backbone) as calls,
    ):
        latency.generate(backbone, inputs, 2)
    first = len(calls) - backbone.shape.depth  # the second token's step: one query a layer
    return PassCounts(calls[:first], calls[first:], spent[parts.METHOD], spent[parts.VISION], engine.report)


@contextlib.contextmanager
def without_gradients(method: Compressor) -> Iterator[None]:
    """Its parameters ask for no gradient: FlopCounterMode trips over those that are views where none is kept."""
    learning = [p for p in method.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def device_name(device: Any) -> str:
    """`cuda NVIDIA H200`, or the CPU's model."""
    import platform

    import torch

    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            return "cpu " + next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            return f"cpu {platform.processor() or platform.machine()}"
    return str(device.type)
