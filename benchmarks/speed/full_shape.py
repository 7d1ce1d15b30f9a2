"""python benchmarks/speed/full_shape.py --width 8 --out benchmarks/results/full-shape.json

Every method on a LLaVA-1.5 of 7B's shape with random weights: that it loads, compresses and generates, and in how much
memory. `--width 8` divides every width by 8 and leaves the depth (32 layers, 24 of the tower), the 576 visual tokens,
the vocabulary and the size of a head as they are; `--width 1 --device cuda --dtype bfloat16` is the real shape.

The model is written as a transformers folder and read as anyone's weights are. Two rows of one
image and different questions generate 8 tokens under each method with its default options and 64 visual tokens, or as
near as it offers. Memory is the peak above the loaded model, the method's own weights, caches and activations included:
on a CPU the resident set (Linux tells and resets its peak), on a GPU what torch allocated. Time on a CPU is that of the
process, which other programs don't lengthen.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vtc.backbones.adapters import tuner_layers
from vtc.backbones.base import Backbone
from vtc.configuration import parse
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.job import Job
from vtc.methods import build, make
from vtc.profiling.latency import synchronise
from vtc.registry import methods
from vtc.settings import BackboneSettings

TOKENS, NEW, SEED = 64, 8, 0
QUESTIONS = ("what is this ?", "what is left in the image , a red circle or a blue square ?")


def write(folder: Path, job: Job) -> None:
    """The job's backbone with random weights (`profile.weights`), as a transformers folder."""
    backbone = job.load()[0]
    backbone.model.save_pretrained(folder, max_shard_size="2GB")
    backbone.processor.save_pretrained(folder)


class Peak:
    """The most memory in use while it was open, above what was in use when it was opened.

    Attributes:
        bytes: known when it is closed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            with contextlib.suppress(OSError, AttributeError):  # glibc keeps what is freed; other libraries don't
                ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")
        self.bytes = peak - self.before


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def offered(name: str, backbone: Backbone) -> int | None:
    """The number of visual tokens nearest to 64 that a method offers, 0 of one that leaves none; None: all are kept."""
    offers = make(name, None, backbone.shape).offers()
    return None if name == "none" else min(offers, key=lambda n: abs(n - TOKENS))


def measure(backbone: Backbone, name: str) -> dict[str, Any]:
    """Builds the method, compresses and generates; what came of it."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(SEED).integers(0, 256, (len(QUESTIONS), 336, 336, 3), dtype=np.uint8)
    inputs = backbone.inputs(QUESTIONS, [[Image.fromarray(image)] for image in noise])
    tokens, device = offered(name, backbone), backbone.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    torch.manual_seed(SEED)  # of weights that would have been trained
    began = clock()
    with Peak(device) as peak, torch.inference_mode():
        method = build(name, tokens or None, backbone.shape).to(device, backbone.dtype).eval()
        method.attach(backbone)
        with compressing(backbone, method) as engine:
            out = backbone.model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        synchronise(device)
    seconds = clock() - began
    images = backbone.visual(inputs["input_ids"]).sum(1).tolist()
    report = engine.report  # None where nothing is done
    kept = list(report.tokens_out) if report is not None else images
    return {
        "method": name,
        "tokens": tokens,
        "tokens_in": list(report.tokens_in) if report is not None else images,
        "tokens_out": kept,
        "exact": kept == [backbone.shape.visual_tokens if tokens is None else tokens] * len(QUESTIONS),
        "new_tokens": out.shape[1] - inputs["input_ids"].shape[1],
        "peak_bytes": peak.bytes,
        "seconds": round(seconds, 2),
    }


def run(
    width: int, names: Sequence[str] = (), device: str = "cpu", dtype: str = "float32", quantization: str = "none"
) -> dict[str, Any]:
    """Every method of `names` (default: all that are registered) on the model at 1/`width`."""
    words = ["backbone=llava15_7b", f"dtype={dtype}", f"device={device}"]
    drawn = parse(["action=profile", "weights=random", f"profile.width={width}", *words])
    settings = parse([*words, f"quantization={quantization}"]).backbone
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), drawn)
        with loaded(dataclasses.replace(settings, pretrained=folder)) as fresh:
            model = fresh()
            weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
            parameters = sum(p.numel() for p in model.model.parameters())
            shape = {k: v for k, v in dataclasses.asdict(model.shape).items() if k != "name"}
            measure(model, "avgpool")  # what torch sets up once is not the first method's
            del model
            for name in names or methods.names():
                try:
                    row = measure(fresh(), name)
                except UserError as error:
                    row = {"method": name, "refused": str(error)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    return {
        "command": f"python benchmarks/speed/full_shape.py --width {width}"
        + (f" --device {device} --dtype {dtype}" if device != "cpu" else "")
        + (f" --quantization {quantization}" if quantization != "none" else ""),
        "width": width,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": dtype,
        "quantization": quantization,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
        "batch": len(QUESTIONS),
        "parameters": parameters,
        "weight_bytes": weights,
        "shape": shape,
        "methods": rows,
    }


@contextlib.contextmanager
def loaded(settings: BackboneSettings) -> Iterator[Any]:
    """Gives a function that gives the model: loaded again where a method has left adapters in it."""
    held: list[Backbone] = []

    def fresh() -> Backbone:
        if held and tuner_layers(held[0].model):
            held.clear()
            gc.collect()
        if not held:
            held.append(Job(backbone=settings).load()[0])
            for parameter in held[0].model.parameters():  # a mapped file is read when it is used
                parameter.sum()
        return held[0]

    try:
        yield fresh
    finally:
        held.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--width", type=int, default=8, help="what the widths are divided by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--methods", nargs="*", default=[], help="default: every registered one")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    result = run(options.width, options.methods, options.device, options.dtype, options.quantization)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
