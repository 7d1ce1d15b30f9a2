"""Names of methods, backbones and sources of tasks → classes.

Built-ins are a table of import paths, so that listing names imports nothing heavy; third parties add theirs through the
entry points `vtc.methods`, `vtc.backbones` and `vtc.sources`, or with the `register` decorator. The registry holds
classes, never instances.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from vtc.errors import UserError, unknown

C = TypeVar("C", bound=type)


def parts(name: str) -> dict[str, str]:
    """The methods that `name` puts together with +, by the key of their options: the method's name, numbered where it
    comes more than once. `fastv+fastv+avgpool` → {fastv1: fastv, fastv2: fastv, avgpool: avgpool}."""
    names = name.split("+")
    return {n if names.count(n) == 1 else f"{n}{names[: i + 1].count(n)}": n for i, n in enumerate(names)}


class Registry:
    """Names → classes for one kind of thing (`kind` is the config key that a user sets, e.g. "method").

    Lookup order: registered at run time, built in, installed plug-ins (entry points of `group`); then, of a kind that
    can be put together, several names with + between them, which `composed` (an import path) makes a class of.
    """

    def __init__(self, kind: str, group: str, builtin: dict[str, tuple[str, str]], composed: str | None = None) -> None:
        self.kind, self.group, self._composed = kind, group, composed
        self._builtin = dict(builtin)
        self._registered: dict[str, type] = {}
        self._found: dict[str, EntryPoint] | None = None

    def _plugins(self) -> dict[str, EntryPoint]:
        if self._found is None:
            self._found = {e.name: e for e in entry_points(group=self.group)}
        return self._found

    def names(self) -> list[str]:
        """All names, sorted. Imports no method."""
        return sorted({*self._builtin, *self._registered, *self._plugins()})

    def get(self, name: str) -> Any:
        """The class of `name`.

        Raises:
            UserError: no such name (with the nearest match), or a plug-in that can't be imported.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            return imported(self._builtin[name][0])
        if name in self._plugins():
            entry = self._plugins()[name]
            try:
                return entry.load()
            except Exception as error:
                raise UserError(
                    f"{self.kind}={name}: its plug-in {entry.value} can't be imported ({type(error).__name__}: {error})"
                ) from error
        if self._composed and "+" in name:
            return imported(self._composed)(name)
        raise unknown(self.kind, name, self.names())

    def register(self, name: str):
        """Decorator: `@methods.register("mine")` makes a class known under `name` in this process."""

        def add(cls: C) -> C:
            self._registered[name] = cls
            return cls

        return add

    def describe(self, name: str) -> str:
        """One line about `name`, without importing it where it is built in."""
        if name in self._registered:
            doc = self._registered[name].__doc__ or ""
        elif name in self._builtin:
            return self._builtin[name][1]
        elif name in self._plugins():
            entry = self._plugins()[name]
            return f"plug-in {entry.value}" + (f" of {entry.dist.name}" if entry.dist else "")
        else:
            raise unknown(self.kind, name, self.names())
        return doc.strip().splitlines()[0] if doc.strip() else ""


def imported(path: str) -> Any:
    """What an import path `module:attribute` names."""
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


methods = Registry(
    "method",
    "vtc.methods",
    {
        "none": ("vtc.methods.none:NoCompression", "the uncompressed backbone: the base of every ratio"),
        "random": ("vtc.methods.random:RandomDropping", "a uniform random subset of the visual tokens, seeded"),
        "avgpool": ("vtc.methods.avgpool:AveragePooling", "1-D or 2-D average pooling before any layer"),
        "fastv": ("vtc.methods.fastv:FastV", "drops what the last prompt token attends to least (arXiv 2403.06764)"),
        "cdpruner": ("vtc.methods.cdpruner:CDPruner", "the most diverse tokens, given the question (arXiv 2506.10967)"),
        "dart": ("vtc.methods.dart:DART", "keeps what a few pivots duplicate least (arXiv 2502.11494)"),
        "divprune": ("vtc.methods.divprune:DivPrune", "tokens far from each other, before the LLM (arXiv 2503.02175)"),
        "kmeans": ("vtc.methods.kmeans:KMeans", "K-Means clusters of the visual tokens become their means"),
        "fastervlm": (
            "vtc.methods.fastervlm:FasterVLM",
            "keeps what the vision tower's CLS attends to (arXiv 2412.01818v1)",
        ),
        "llavolta": ("vtc.methods.llavolta:LLaVolta", "stage-wise average pooling in training (arXiv 2406.20092)"),
        "pyramiddrop": ("vtc.methods.pyramiddrop:PyramidDrop", "drops a share at several layers (arXiv 2410.17247)"),
        "sparsevlm": ("vtc.methods.sparsevlm:SparseVLM", "words rate, some of the dropped return (arXiv 2410.04417)"),
        "vcc": (
            "vtc.methods.vcc:VCC",
            "blocks that the prompt attends to stay, the others are merged (arXiv 2305.04241)",
        ),
        "downsample": ("vtc.methods.downsample:Downsample", "fewer patches of a smaller image (arXiv 2510.07143)"),
        "tome": ("vtc.methods.tome:ToMe", "similar patches merge in every layer of the tower (arXiv 2210.09461)"),
        "visionzip": ("vtc.methods.visionzip:VisionZip", "keeps dominant patches, merges the rest (arXiv 2412.04467)"),
        "vispruner": ("vtc.methods.vispruner:VisPruner", "important and diverse patches (arXiv 2412.01818v2)"),
        "evs": ("vtc.methods.evs:EVS", "video: drops what hardly changed since the previous frame (arXiv 2510.14624)"),
        "vidcom2": (
            "vtc.methods.vidcom2:VidCom2",
            "video: unique frames get more, unique tokens stay (arXiv 2505.14454)",
        ),
        "dycoke": ("vtc.methods.dycoke:DyCoke", "video: merges over time in groups of four frames (arXiv 2411.15024)"),
        "prumerge": ("vtc.methods.prumerge:PruMerge", "outlying patches absorb their like; plus adds uniform ones"),
        "m3": ("vtc.methods.m3:M3", "nested grids of pooled tokens, trained at all scales at once (arXiv 2405.17430)"),
        "mqt": ("vtc.methods.mqt:MQT", "the first m of 256 latent queries read the image (arXiv 2405.19315)"),
        "victor": ("vtc.methods.victor:Victor", "learnable registers take over, visual tokens go before layer k"),
        "voco": ("vtc.methods.voco:VoCo", "text sees the image only through VoCo tokens (arXiv 2406.12275)"),
        "fwd2bot": (
            "vtc.methods.fwd2bot:Fwd2Bot",
            "the LLM summarises the image into k' tokens, then reads those alone",
        ),
        "perceiver": ("vtc.methods.perceiver:Perceiver", "latents attend to the projected image (arXiv 2204.14198)"),
        "qformer": ("vtc.methods.qformer:QFormer", "learned queries in a BERT of their own (arXiv 2301.12597)"),
        "tokenpacker": (
            "vtc.methods.tokenpacker:TokenPacker",
            "coarse queries take in the fine features of their window (arXiv 2407.02392)",
        ),
        "quecc": ("vtc.methods.quecc:QueCC", "the same, with queries that know the question (arXiv 2411.03312)"),
        "single_forward": (
            "vtc.methods.single_forward:SingleForward",
            "the vision tower makes the summary tokens, in one pass (Fwd2Bot's baseline, table 7)",
        ),
    },
    composed="vtc.methods.chain:chain",
)

backbones = Registry(
    "backbone",
    "vtc.backbones",
    {
        "pocket": ("vtc.backbones.llava:Pocket", "the shipped miniature LLaVA: 96x96 images, 144 visual tokens"),
        "llava15_7b": ("vtc.backbones.llava:Llava15_7B", "LLaVA-1.5 7B: 336x336 images, 576 visual tokens"),
        "internvl3_1b": ("vtc.backbones.internvl:InternVL3_1B", "InternVL3 1B: tiles of 448x448, 256 tokens each"),
        "internvl3_2b": ("vtc.backbones.internvl:InternVL3_2B", "InternVL3 2B: tiles of 448x448, 256 tokens each"),
        "internvl3_8b": ("vtc.backbones.internvl:InternVL3_8B", "InternVL3 8B: tiles of 448x448, 256 tokens each"),
        "internvl3_14b": ("vtc.backbones.internvl:InternVL3_14B", "InternVL3 14B: tiles of 448x448, 256 tokens each"),
        "smolvlm2_256m": ("vtc.backbones.idefics3:SmolVLM2_256M", "SmolVLM2 256M: tiles of 512x512, 64 tokens each"),
        "smolvlm2_500m": ("vtc.backbones.idefics3:SmolVLM2_500M", "SmolVLM2 500M: tiles of 512x512, 64 tokens each"),
        "smolvlm2_2b": ("vtc.backbones.idefics3:SmolVLM2_2B", "SmolVLM2 2.2B: tiles of 384x384, 81 tokens each"),
        "smolvlm_2b": ("vtc.backbones.idefics3:SmolVLM_2B", "SmolVLM 2.2B: tiles of 384x384, 81 tokens each"),
        "idefics3_8b": ("vtc.backbones.idefics3:Idefics3_8B", "Idefics3 8B: tiles of 364x364, 169 tokens each"),
        "llava15_13b": ("vtc.backbones.llava:Llava15_13B", "LLaVA-1.5 13B: 336x336 images, 576 visual tokens"),
        "llava_next_vicuna_7b": (
            "vtc.backbones.llava_next:LlavaNextVicuna7B",
            "LLaVA-NeXT (1.6) with Vicuna 7B: tiled images, up to 2928 tokens",
        ),
        "llava_next_vicuna_13b": (
            "vtc.backbones.llava_next:LlavaNextVicuna13B",
            "LLaVA-NeXT (1.6) with Vicuna 13B: tiled images, up to 2928 tokens",
        ),
        "llava_next_mistral_7b": (
            "vtc.backbones.llava_next:LlavaNextMistral7B",
            "LLaVA-NeXT (1.6) with Mistral 7B: tiled images, up to 2928 tokens",
        ),
        "llava_next_34b": (
            "vtc.backbones.llava_next:LlavaNext34B",
            "LLaVA-NeXT (1.6) with Yi 34B: tiled images, up to 2928 tokens",
        ),
        "llava_next_llama3_8b": (
            "vtc.backbones.llava_next:LlavaNextLlama3_8B",
            "LLaVA-NeXT with Llama 3 8B: tiled images, up to 2928 tokens",
        ),
        "llava_next_72b": (
            "vtc.backbones.llava_next:LlavaNext72B",
            "LLaVA-NeXT with Qwen1.5 72B: tiled images, up to 2928 tokens",
        ),
        "llava_next_110b": (
            "vtc.backbones.llava_next:LlavaNext110B",
            "LLaVA-NeXT with Qwen1.5 110B: tiled images, up to 2928 tokens",
        ),
        "llava_onevision_05b": (
            "vtc.backbones.llava_onevision:LlavaOnevision05B",
            "LLaVA-OneVision with Qwen2 0.5B: tiled images; 196 tokens a video frame",
        ),
        "llava_onevision_7b": (
            "vtc.backbones.llava_onevision:LlavaOnevision7B",
            "LLaVA-OneVision with Qwen2 7B: tiled images; 196 tokens a video frame",
        ),
        "llava_onevision_72b": (
            "vtc.backbones.llava_onevision:LlavaOnevision72B",
            "LLaVA-OneVision with Qwen2 72B: tiled images; 196 tokens a video frame",
        ),
        "video_llava_7b": (
            "vtc.backbones.video_llava:VideoLlava7B",
            "Video-LLaVA 7B: images; 257 tokens a video frame",
        ),
        "qwen2vl_2b": (
            "vtc.backbones.qwen_vl_sizes:Qwen2VL_2B",
            "Qwen2-VL 2B: images in their own resolution",
        ),
        "qwen2vl_7b": (
            "vtc.backbones.qwen_vl_sizes:Qwen2VL_7B",
            "Qwen2-VL 7B: images in their own resolution",
        ),
        "qwen25vl_3b": (
            "vtc.backbones.qwen_vl_sizes:Qwen2_5VL_3B",
            "Qwen2.5-VL 3B: images in their own resolution",
        ),
        "qwen25vl_7b": (
            "vtc.backbones.qwen_vl_sizes:Qwen2_5VL_7B",
            "Qwen2.5-VL 7B: images in their own resolution",
        ),
        "qwen25vl_72b": (
            "vtc.backbones.qwen_vl_sizes:Qwen2_5VL_72B",
            "Qwen2.5-VL 72B: images in their own resolution",
        ),
        "qwen3vl_2b": (
            "vtc.backbones.qwen_vl_sizes:Qwen3VL_2B",
            "Qwen3-VL 2B: images in their own resolution, deepstack",
        ),
        "qwen3vl_4b": (
            "vtc.backbones.qwen_vl_sizes:Qwen3VL_4B",
            "Qwen3-VL 4B: images in their own resolution, deepstack",
        ),
        "qwen3vl_8b": (
            "vtc.backbones.qwen_vl_sizes:Qwen3VL_8B",
            "Qwen3-VL 8B: images in their own resolution, deepstack",
        ),
    },
)

sources = Registry(
    "benchmark",
    "vtc.sources",
    {
        "pocket": ("vtc.pocket.tasks:PocketTasks", "the built-in miniature: test sets that vtc draws"),
        "jsonl": ("vtc.evaluation.sources.user_data:JsonlTasks", "questions of one's own in a JSONL file"),
        "hf": ("vtc.evaluation.sources.user_data:HubTasks", "questions of one's own in Hugging Face's layout"),
        "upstream": ("vtc.evaluation.sources.upstream:UpstreamTasks", "tasks of lmms-eval, and files like theirs"),
    },
)
