"""How long it takes, by Victor's protocol: batches of 16, prompts of 64 text tokens, 2 and 128 new tokens, cache on.

A method and the uncompressed model take turns, so that a machine that grows hot or busy slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vtc.profiling import parts
from vtc.settings import ProfileSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor


@dataclass
class Timing:
    """Seconds of one model.

    Attributes:
        first_token: prefills of one row, from pixels and token ids on the device to the first new token.
        own: of prefills of one row measured by themselves, (seconds of the method's own work, seconds of the prefill).
        generate: new tokens → a whole batch, prefill included.
        peak_memory: bytes allocated on the GPU at most; None where there is none.
    """

    first_token: list[float] = field(default_factory=list)
    own: list[tuple[float, float]] = field(default_factory=list)
    generate: dict[int, list[float]] = field(default_factory=dict)
    peak_memory: int | None = None

    def ttft_ms(self) -> dict[str, float] | None:
        """Milliseconds to the first token; None where none was timed."""
        ordered = sorted(self.first_token)
        if not ordered:
            return None
        return {
            "median": 1e3 * statistics.median(ordered),
            "p95": 1e3 * ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        }

    def method_ms(self) -> float | None:
        """Milliseconds of the method's own work in a prefill; None where none was timed."""
        return None if not self.own else 1e3 * statistics.median(mine for mine, _ in self.own)

    def method_share(self) -> float | None:
        """The method's own work as a share of the prefill that it was measured in; None where none was timed."""
        return None if not self.own else statistics.median(mine / whole for mine, whole in self.own)

    def decode_ms(self) -> float | None:
        """Milliseconds a decoding step of the batch: prefill cancels in the difference of the two lengths. None where
        no batch was timed."""
        if not all(self.generate.values()):
            return None
        short, long = min(self.generate), max(self.generate)
        spent = statistics.median(self.generate[long]) - statistics.median(self.generate[short])
        return 1e3 * spent / (long - short)

    def throughput(self, batch_size: int) -> dict[str, float]:
        """New tokens a second, by how many are generated; empty where no batch was timed."""
        return {str(n): batch_size * n / statistics.median(t) for n, t in sorted(self.generate.items()) if t}


def synchronise(device: torch.device) -> None:
    """Wait for the device: its work is started, not done, when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def example(backbone: Backbone, rows: int, prompt_tokens: int, seed: int = 0) -> Any:
    """Inputs of `rows` equal rows: one image of noise and `prompt_tokens` text tokens, the template's included."""
    import numpy as np
    from PIL import Image

    side = backbone.image_size or backbone.shape.vision.image_size
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    words = 1
    for _ in range(4):  # a word is one token nearly everywhere; a few corrections find the length
        inputs = backbone.inputs([" ".join(["a"] * words)], [[image]])
        text = int((~backbone.visual(inputs["input_ids"][0])).sum())
        if text == prompt_tokens:
            break
        words = max(1, words + prompt_tokens - text)
    return backbone.inputs([" ".join(["a"] * words)] * rows, [[image]] * rows)


def generate(backbone: Backbone, inputs: Any, count: int) -> None:
    """Exactly `count` new tokens a row: a prefill, and a decoding step for each but the first."""
    pad = getattr(backbone.tokenizer, "pad_token_id", None) or 0
    greedily = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    backbone.model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, pad_token_id=pad, **greedily)


def generator(backbone: Backbone, method: Compressor, inputs: Any, new_tokens: int) -> Callable[[], None]:
    """A call that generates exactly `new_tokens` tokens a row, the method in place."""
    from vtc.engine import compressing

    def run() -> None:
        with torch.inference_mode(), compressing(backbone, method):
            generate(backbone, inputs, new_tokens)

    return run


def measure(backbone: Backbone, methods: Sequence[Compressor], protocol: ProfileSettings) -> list[Timing]:
    """Time each method, in turns.

    Args:
        methods: on the same backbone; the uncompressed model is the method `none`.
    """
    device = backbone.device
    timings = [Timing(generate={n: [] for n in protocol.new_tokens}) for _ in methods]
    if not protocol.repeats and not protocol.first_token_repeats:
        return timings
    one = example(backbone, 1, protocol.prompt_tokens)
    first = [generator(backbone, m, one, 1) for m in methods]
    whole: list[dict[int, Callable[[], None]]] = [{} for _ in methods]
    if protocol.repeats:
        many = example(backbone, protocol.batch_size, protocol.prompt_tokens)
        whole = [{n: generator(backbone, m, many, n) for n in protocol.new_tokens} for m in methods]

    def timed(run: Callable[[], None]) -> float:
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        return time.perf_counter() - start

    for run in first:  # the first calls allocate, tune and compile
        run()
        run()
    for index, runs in enumerate(whole if protocol.repeats else ()):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        runs[min(runs)]()
        if device.type == "cuda":
            timings[index].peak_memory = int(torch.cuda.max_memory_allocated(device))
    for turn in range(protocol.first_token_repeats):
        for index in _turn(turn, len(methods)):
            timings[index].first_token.append(timed(first[index]))
    for turn in range(protocol.first_token_repeats):
        for index in _turn(turn, len(methods)):
            timings[index].own.append(own_work(backbone, methods[index], first[index]))
    for turn in range(protocol.repeats):
        for n in protocol.new_tokens:
            for index in _turn(turn, len(methods)):
                timings[index].generate[n].append(timed(whole[index][n]))
    return timings


def own_work(backbone: Backbone, method: Compressor, run: Callable[[], None]) -> tuple[float, float]:
    """Seconds that `method` itself takes in `run`, and seconds of `run`. The device is waited for at every border,
    which takes time too: the two belong together."""

    def clock() -> float:
        synchronise(backbone.device)
        return time.perf_counter()

    start = clock()
    with parts.metering(backbone, method, clock, decoder=False) as spent:
        run()
    return spent[parts.METHOD], clock() - start


def _turn(turn: int, count: int) -> Sequence[int]:
    """Forwards, then backwards: nobody always goes second."""
    return range(count) if turn % 2 == 0 else range(count - 1, -1, -1)
