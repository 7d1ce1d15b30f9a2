"""`dry_run=true`: what an evaluation would load, download, keep in memory and compute, without doing it.

Names, budgets and weights are resolved as the run itself resolves them; the model is built on torch's meta device, from
its configuration alone. Sizes of downloads are the hub's to say: where it can't be reached they are unknown.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vtc import hub
from vtc.errors import UserError
from vtc.evaluation.batches import USUAL
from vtc.evaluation.run_folder import RunFolder
from vtc.job import Job

if TYPE_CHECKING:
    from vtc.interface import BackboneShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}  # a parameter; checkpoints of LVLMs come in 16 bit
PROMPT, ANSWER = 64, 128  # text tokens of a row: the profile's prompt and its longer answer


class Download(NamedTuple):
    """Something that comes from the hub, or is here: as a folder, or in the hub's cache."""

    name: str
    size: int | None = None  # bytes of the whole repository; None where the hub can't be asked
    here: bool = False

    def __str__(self) -> str:
        if self.here:
            return f"{self.name} (here)"
        size = "size unknown: the hub can't be reached" if self.size is None else f"{self.size / 1e9:.1f} GB"
        return f"{self.name} (to be downloaded, {size})"


class Hub:
    """What the hub says of repositories; it is asked no more once it couldn't be reached."""

    def __init__(self) -> None:
        self.reachable = True

    def look_up(self, name: str, kind: str) -> Download:
        """A `model` or `dataset` repository, or a folder."""
        if Path(name).expanduser().exists():
            return Download(name, here=True)
        from huggingface_hub import HfApi, snapshot_download

        try:
            snapshot_download(name, repo_type=kind, local_files_only=True)
            return Download(name, here=True)
        except Exception:  # not in the cache; which error says so changes from version to version
            pass
        if self.reachable:
            try:
                ask = partial(HfApi().repo_info, name, repo_type=kind, files_metadata=True, timeout=hub.PATIENCE)
                info: Any = hub.within(ask)
                return Download(name, sum(file.size or 0 for file in info.siblings or ()))
            except Exception:  # no network, no such repository, no access: the size is unknown in any case
                self.reachable = False
        return Download(name)


def describe(run: RunFolder) -> list[str]:
    """What `action=evaluate` would do, in lines for the console.

    Raises:
        UserError: whatever the run would refuse before it loads weights.
    """
    from vtc.backbones.loading import weight_bytes

    job, hub = run.job, Hub()
    job.check()
    shape, method = job.shape, job.compressor
    item = BYTES[job.backbone.dtype]
    weights = weight_bytes(job.family.skeleton(job.backbone), item, job.backbone.quantization)
    lines = [f"backbone    {hub.look_up(job.backbone.source, 'model')}"]
    lines.append(f"checkpoint  {job.weights or 'none needed' if not method.needs_training else job.weights}")
    if shape.visual_tokens is not None:
        lines += _costs(job, shape, weights, item, "; the same for every task")
    else:
        side = shape.vision.image_size
        example = job.family.shape_of(dataclasses.replace(job.backbone, image_size=side))
        lines += _costs(job, example, weights, item, f", of {side}×{side} pixels; others have their own")
    return lines + _tasks(run, hub)


def _costs(job: Job, shape: BackboneShape, weights: int, item: int, about: str) -> list[str]:
    """Tokens, FLOPs and memory for images of one size.

    Args:
        shape: of the backbone for these images; about: says which they are.
    """
    from vtc.budget import compression, relative_flops
    from vtc.interface import flops
    from vtc.methods import make
    from vtc.profiling.display import number

    full, rows = shape.visual_tokens or 0, USUAL if isinstance(job.batch_size, str) else job.batch_size
    method = make(job.method.name, job.compressor.tokens, shape, **job.method.options)
    layers, left = method.layer_tokens(), full if method.tokens is None else method.tokens
    cost, stored = relative_flops(method), relative_flops(method, beforehand=True)
    cache = rows * flops.cache_bytes(shape, [count + PROMPT + ANSWER for count in method.cached_tokens()], item)
    widest = rows * item * (max(layers) + PROMPT) * (2 * shape.width + 2 * shape.intermediate)
    mean = ", in the mean over a task" if job.budget.is_mean else ""
    return [
        f"tokens      {left} of {full} visual tokens an image at the end{mean}; by layer "
        f"{_runs(layers)} (compression ratio {compression(method):.2f}){about}",
        f"FLOPs       {number(cost * flops.uncompressed(shape, PROMPT))} a prefill of one image and {PROMPT} text "
        f"tokens in decoder and method ({cost:.2f}× uncompressed"
        + (f"; {stored:.2f}× where images were compressed beforehand)" if stored < 0.995 * cost else ")")
        + (f", {number(flops.vision(shape))} in tower and projector" if flops.vision(shape) else ""),
        f"memory      weights {number(weights, 'B')}, a batch of {rows} rows: KV cache {number(cache, 'B')}, "
        f"widest layer {number(widest, 'B')}; at least {number(weights + cache + widest, 'B')} in all",
    ]


def _runs(counts: list[int]) -> str:
    """[576, 576, 64, 64, 64] → "2 × 576, 3 × 64"."""
    from itertools import groupby

    return ", ".join(f"{len(list(same))} × {count}" for count, same in groupby(counts))


def _tasks(run: RunFolder, hub: Hub) -> list[str]:
    """The tasks with the data that each needs, and the first thing that is missing."""
    benchmark, tasks = run.job.benchmark, [spec.name for spec in run.specs]
    limit = f", {benchmark.limit} samples each" if benchmark.limit else ""
    lines = [f"benchmark   {benchmark.name}, {len(tasks)} tasks{limit}"]
    for task in tasks:
        location = run.source.location(task, lambda name: str(hub.look_up(name, "dataset")))
        lines.append(f"            {task}: {location}")
    try:
        run.source.check(run.job, tasks, network=False)
    except UserError as error:
        lines.append(f"missing     {error}")
    return lines
