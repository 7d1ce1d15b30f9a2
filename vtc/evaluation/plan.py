"""`dry_run=true`: what an evaluation would load, download, keep in memory and compute, without doing it.

Names, budgets and weights are resolved as the run itself resolves them; the model is built on torch's meta device, from
its configuration alone. Sizes of downloads are the hub's to say: where it can't be reached they are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.assemble import Plan
    from vtc.interface import BackboneShape
from vtc.evaluation import catalogue, requires, suite

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}  # a parameter; checkpoints of LVLMs come in 16 bit
PROMPT, ANSWER = 64, 128  # text tokens of a row: the profile's prompt and its longer answer


@dataclass(frozen=True)
class Download:
    """Something that comes from the hub, or is here.

    Attributes:
        size: bytes of the whole repository; None where the hub can't be asked.
        here: on this machine already, as a folder or in the hub's cache.
    """

    name: str
    kind: str
    size: int | None
    here: bool

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
            return Download(name, kind, None, True)
        from huggingface_hub import HfApi, snapshot_download

        try:
            snapshot_download(name, repo_type=kind, local_files_only=True)
            return Download(name, kind, None, True)
        except Exception:  # not in the cache; which error says so changes from version to version
            pass
        size = None
        if self.reachable:
            try:
                info: Any = HfApi().repo_info(name, repo_type=kind, files_metadata=True, timeout=10)
                size = sum(file.size or 0 for file in info.siblings or ())
            except Exception:  # no network, no such repository, no access: the size is unknown in any case
                self.reachable = False
        return Download(name, kind, size, False)


def describe(settings: Mapping[str, Any]) -> list[str]:
    """The plan of `action=evaluate`, in lines for the console.

    Args:
        settings: the resolved configuration as plain dicts.

    Raises:
        UserError: whatever the run would refuse before it loads weights, and a task that nobody has.
    """
    from dataclasses import replace

    from omegaconf import OmegaConf

    from vtc.assemble import backbone_of, plan
    from vtc.backbones.loading import weight_bytes
    from vtc.evaluation.run import sources
    from vtc.registry import families

    cfg, hub = OmegaConf.create(dict(settings)), Hub()
    made = plan(cfg)
    shape, method = made.shape, made.method
    source, checkpoint = sources(settings)
    loading = backbone_of(settings)
    family, item = families.get(loading.family), BYTES[loading.dtype]
    weights = weight_bytes(family.skeleton(loading), item, loading.quantization)
    lines = [f"backbone    {hub.look_up(source, 'model')}"]
    lines.append(f"checkpoint  {checkpoint or 'none needed' if not method.needs_training else checkpoint}")
    if shape.visual_tokens is not None:
        lines += _costs(settings, made, shape, weights, item, "; the same for every task")
    else:
        side = shape.vision.image_size
        example = family.shape_of(replace(loading, image_size=side))
        lines += _costs(settings, made, example, weights, item, f", of {side}×{side} pixels; others have their own")
    lines += _tasks(settings, hub)
    return lines


def _costs(
    settings: Mapping[str, Any], made: Plan, shape: BackboneShape, weights: int, item: int, about: str
) -> list[str]:
    """Tokens, FLOPs and memory for images of one size.

    Args:
        shape: of the backbone for these images; about: says which they are.
    """
    from vtc.budget import compression_ratio, relative_flops
    from vtc.profiling import flops
    from vtc.profiling.display import number

    full = shape.visual_tokens or 0
    layers = made.method.layer_tokens(made.tokens, shape, **made.options)
    prefill = relative_flops(layers, shape) * flops.uncompressed(shape, PROMPT)
    rows, left = int(settings["batch_size"]), full if made.tokens is None else made.tokens
    kept = [min(count, left) if made.method.bottleneck else count for count in layers]
    cache = rows * flops.cache_bytes(shape, [count + PROMPT + ANSWER for count in kept], item)
    widest = rows * item * (max(layers) + PROMPT) * (2 * shape.width + 2 * shape.intermediate)
    return [
        f"tokens      {left} of {full} visual tokens an image at the end; by layer "
        f"{_runs(layers)} (compression ratio {compression_ratio(layers, shape):.2f}){about}",
        f"FLOPs       {number(prefill)} a prefill of one image and {PROMPT} text tokens in the decoder "
        f"({relative_flops(layers, shape):.2f}× uncompressed)"
        + (f", {number(flops.vision(shape))} in tower and projector" if flops.vision(shape) else ""),
        f"memory      weights {number(weights, 'B')}, a batch of {rows} rows: KV cache {number(cache, 'B')}, "
        f"widest layer {number(widest, 'B')}; at least {number(weights + cache + widest, 'B')} in all",
    ]


def _runs(counts: list[int]) -> str:
    """[576, 576, 64, 64, 64] → "2 × 576, 3 × 64"."""
    from itertools import groupby

    return ", ".join(f"{len(list(same))} × {count}" for count, same in groupby(counts))


def _tasks(settings: Mapping[str, Any], hub: Hub) -> list[str]:
    """The tasks with the data that each needs, and the first thing that is missing."""
    benchmark = settings["benchmark"]
    tasks, limit = list(benchmark["tasks"]), benchmark.get("limit")
    lines = [f"benchmark   {benchmark['name']}, {len(tasks)} tasks" + (f", {limit} samples each" if limit else "")]
    inside = {} if benchmark["name"] in suite.OWN else requires.names(tasks, benchmark.get("include") or ())
    for task in tasks:
        if task.startswith("pocket_"):
            data = "drawn here where it isn't yet"
        elif task.startswith("own_"):
            data = str(benchmark["data"])
        else:
            folder = f"{benchmark['data']}/" if benchmark.get("data") else ""
            names = dict.fromkeys(name for member in inside[task] for name in _data_of(benchmark, member))
            data = ", ".join(str(hub.look_up(folder + name, "dataset")) for name in names)
        lines.append(f"            {task}: {data}")
    if missing := requires.missing(settings):
        lines.append(f"missing     {missing}")
    return lines


def _data_of(benchmark: Mapping[str, Any], task: str) -> list[str]:
    """The data sets that a task reads: folders or ids."""
    file = catalogue.files(benchmark.get("include") or ()).get(task)
    if file is None:
        raise UserError(f"benchmark.tasks={task}: its data can't be told")
    return [str(catalogue.settings(file)["dataset_path"])]
