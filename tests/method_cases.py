"""The one list of methods × settings × backbones that every contract test runs over."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vtc.backbones import wrap
from vtc.backbones.base import Backbone
from vtc.interface import PATCH_ATTENTION, Compressor, TokenPruner
from vtc.methods import build
from vtc.registry import methods, parts
from vtc.testing import tiny_backbone
from vtc.testing.tiny_gemma import tiny_gemma3
from vtc.testing.tiny_llava import tiny_llava_next, tiny_llava_onevision, tiny_video_llava
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_5, tiny_qwen3_vl, tiny_qwen3_vl_moe
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl


@dataclass(frozen=True)
class Case:
    """A method with options and a budget."""

    name: str
    tokens: int
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, backbone: Backbone, tokens: int | None) -> Compressor:
        options = self.options
        if tokens == backbone.shape.visual_tokens:  # a composition's earlier parts keep everything too
            options = {k: _whole(v) if isinstance(v, dict) else v for k, v in options.items()}
        return build(self.name, tokens or None, backbone.shape, **options)  # 0 is no budget, but what is left

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items()), str(self.tokens)])


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("tokens", "ratio")}


METHODS = [
    Case("none", 16),
    Case("random", 5),
    Case("random", 3, {"layer": 2, "seed": 1}),
    Case("avgpool", 4),
    Case("avgpool", 8, {"layer": 2}),
    Case("avgpool", 5, {"dims": 1}),
    Case("avgpool", 7, {"dims": 1, "layer": 1}),
    Case("fastv", 5),
    Case("fastv", 3, {"layer": 1}),
    Case("fastv", 5, {"layer": 3, "layer_scale": "none"}),
    Case("divprune", 5),
    Case("dart", 7, {"visual": 2, "text": 2}),
    Case("dart", 3, {"layer": 3, "layer_scale": "none"}),
    Case("cdpruner", 5),
    Case("cdpruner", 4, {"condition": False}),
    Case("pyramiddrop", 3),
    Case("pyramiddrop", 5, {"layers": [0, 2, 3], "layer_scale": "none"}),
    Case("pyramiddrop", 4, {"layers": [1, 3], "layer_scale": "none", "ratios": [0.6], "renumber": True}),
    Case("fitprune", 5),
    Case("fitprune", 3, {"recipe": {"recipes": [{"left": 0.2, "shares": [0.0, 0.0, 0.6, 1.0]}]}}),
    Case("sparsevlm", 4),
    Case("sparsevlm", 6, {"layers": [1, 3], "layer_scale": "none", "recycle": 0.8}),
    Case("kmeans", 5),
    Case("kmeans", 3, {"layer": 0, "iterations": 2}),
    Case("fastervlm", 5),
    Case("fastervlm", 3, {"tower_layer": -1}),
    Case("downsample", 4),
    Case("downsample", 9),
    Case("tome", 8),
    Case("tome", 11),
    Case("visionzip", 7),
    Case("visionzip", 2, {"merge": "mean", "tower_layer": 1}),
    Case("vispruner", 5),
    Case("vispruner", 4, {"important": 0.25, "remove": 3}),
    Case("scope", 5),
    Case("scope", 3, {"alpha": 0.5, "tower_layer": -1}),
    Case("hiprune", 9, {"alpha": 0.6}),
    Case("hiprune", 3, {"alpha": 1.0, "object_layer": -1}),
    Case("holov", 5, {"crops": 4}),
    Case("holov", 7, {"crops": 5, "alpha": 2.0, "tower_layer": -1}),
    Case("mmtok", 5),
    Case("mmtok", 3, {"alpha": 2.0, "text_temperature": 0.1, "image_temperature": 0.5}),
    Case("vscan", 3, {"window": 2}),
    Case("vscan", 5, {"layer": 1, "layer_scale": "none", "retained": 1.5, "local": 1.0, "window": 3, "renumber": True}),
    Case("prumerge", 5),
    Case("prumerge", 1),
    Case("prunesid", 9),
    Case("prunesid", 3),
    Case("prumerge", 7, {"plus": True, "neighbours": 3, "tower_layer": -1}),
    Case("llavolta", 4),
    Case("llavolta", 5, {"layer": 3, "layer_scale": "none"}),
    Case("pact", 5),
    Case("pact", 3, {"layer": 2, "layer_scale": "none", "keep": 0.8, "alpha": 4.0}),
    Case("pact", 4, {"layer": 1, "proportional": False}),
    Case("vcc", 6, {"block": 4}),
    Case("vcc", 5, {"block": 4, "layer": 0}),
    Case("m3", 4),
    Case("m3", 1, {"scales": [1, 16]}),
    Case("mqt", 4),
    Case("mqt", 5, {"max_tokens": 20, "keys": "image"}),
    Case("victor", 3),
    Case("victor", 4, {"layer": 3, "layer_scale": "none"}),
    Case("victor", 3, {"registers": "pooled"}),
    Case("victor", 3, {"keep_last": True}),
    Case("victor", 3, {"subset": "tail", "trained_tokens": 20}),
    Case("voco", 1),
    Case("voco", 3, {"shared": True}),
    Case("vtw", 0),
    Case("vtw", 0, {"layer": 1, "layer_scale": "none"}),
    Case("fwd2bot", 4, {"rank": 4}),
    Case("fwd2bot", 3, {"rank": 2, "bidirectional": True}),
    Case("fwd2bot", 3, {"rank": 2, "adapters": "single"}),
    Case("fwd2bot", 3, {"adapters": "none"}),
    Case("single_forward", 4, {"rank": 4}),
    Case("single_forward", 16, {"rank": 2}),
    Case("perceiver", 4, {"depth": 2}),
    Case("perceiver", 7, {"depth": 1, "heads": 2, "head_width": 8, "mult": 2}),
    Case("qformer", 4, {"layers": 2}),
    Case("qformer", 7, {"layers": 3, "width": 24, "heads": 4}),
    Case("tokenpacker", 4),
    Case("tokenpacker", 1, {"heads": 2, "tower_layers": [0, -1]}),
    Case("evs", 5),
    Case("vidcom2", 5),
    Case("vidcom2", 9, {"temperature": 1.0}),
    Case("fastvid", 5),
    Case("fastvid", 9, {"segments": 1, "threshold": -1.0, "every": 2, "context": 0.8, "own": 0.0}),
    Case("holitom", 5),
    Case("holitom", 4, {"layer": 1, "layer_scale": "none", "retained": 1.5, "threshold": -0.5, "own": 0.0}),
    Case("prunevid", 4),
    Case("prunevid", 5, {"layer": 1, "layer_scale": "none", "retained": 1.5, "threshold": -0.5, "segments": 0.6}),
    Case("dycoke", 9),
    Case("dycoke", 3),
    Case("avgpool+evs", 5, {"avgpool": {"tokens": 8}}),
    Case("visionzip+fastv", 5),
    Case("fastv+fastv", 3, {"fastv1": {"layer": 1}, "fastv2": {"layer": 3, "layer_scale": "none"}}),
    Case("avgpool+avgpool+fastv", 2, {"avgpool1": {"tokens": 8}, "avgpool2": {"tokens": 4, "layer": 1}}),
    Case("divprune+random+dart", 3, {"random": {"layer": 1, "ratio": 0.375}}),
    Case("downsample+fastervlm", 4),
    Case("tome+pyramiddrop", 3),
    Case("ppe", 16),
    Case("kmeans+ppe", 5, {"ppe": {"positions": 3}}),
    Case("kmeans+ppe", 5, {"kmeans": {"layer": 0}, "ppe": {"layer": 2, "layer_scale": "none", "positions": 2}}),
    Case("avgpool+ppe+fastv", 3, {"avgpool": {"tokens": 4, "dims": 1}, "ppe": {"layer": 0, "positions": 4}}),
    Case("pact+fastv", 3, {"pact": {"layer": 1, "tokens": 6}}),
    Case("vcc+fastv", 4, {"vcc": {"block": 4, "layer": 1}}),
    Case("quecc", 4),
    Case("quecc", 1, {"heads": 2, "tower_layers": [1, 0]}),
]


def attaches(name: str) -> bool:
    """Whether a method, or a part of a composition, puts anything into the backbone, so that it needs one to itself."""
    return any(methods.get(part).attach is not Compressor.attach for part in parts(name).values())


def pocket() -> Backbone:
    """The pocket architecture with random weights: 144 visual tokens, 6 layers of width 128."""
    import torch

    from vtc.pocket.model import build_model, build_processor

    with torch.random.fork_rng(devices=[]):
        model = build_model(seed=0)
    with torch.no_grad():  # as drawn for training, attention is nearly even: every ranking would be decided by rounding
        for name, parameter in model.model.language_model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(8)
    return wrap(model.eval(), build_processor())


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "gqa": lambda: tiny_backbone(),
    "siglip": lambda: tiny_backbone(tower="siglip"),
    "mha": lambda: tiny_backbone(kv_heads=4, seed=1),
    "pocket": pocket,
    "llava_next": tiny_llava_next,
    # A picture as small as a tile is seen twice, and every token would have its double: choices would be rounding's.
    "llava_onevision": lambda: tiny_llava_onevision(image_size=24),
    "video_llava": lambda: tiny_video_llava(frames=True),
    "qwen2": tiny_qwen2_vl,
    "qwen2.5": tiny_qwen2_5_vl,
    "qwen3": tiny_qwen3_vl,
    "qwen3_moe": tiny_qwen3_vl_moe,
    "qwen3.5": tiny_qwen3_5,
    "gemma3": tiny_gemma3,
    "internvl": tiny_internvl,
    "idefics3": tiny_idefics3,
    "idefics3_tiles": lambda: tiny_idefics3(image_size=32),  # an image's 80 visual tokens stand apart, tile by tile
}
POCKET_METHODS = [
    Case("none", 144),
    Case("random", 16),
    Case("avgpool", 16),
    Case("avgpool", 16, {"dims": 1, "layer": 3}),
    Case("fastv", 16),
    Case("divprune", 16),
    Case("dart", 16),
    Case("cdpruner", 16),
    Case("pyramiddrop", 16),
    Case("fitprune", 16),
    Case("sparsevlm", 16),
    Case("kmeans", 16),
    Case("fastervlm", 16),
    Case("downsample", 16),
    Case("tome", 16),
    Case("visionzip", 16),
    Case("vispruner", 16),
    Case("scope", 16),
    Case("hiprune", 16),
    Case("holov", 16),
    Case("mmtok", 16),
    Case("vscan", 16),
    Case("prumerge", 16),
    Case("prunesid", 16),
    Case("prumerge", 16, {"plus": True}),
    Case("llavolta", 16),
    Case("pact", 16),
    Case("vcc", 16),
    Case("m3", 36),
    Case("mqt", 16),
    Case("victor", 16),
    Case("voco", 16),
    Case("vtw", 0),
    Case("fwd2bot", 16),
    Case("single_forward", 16),
    Case("perceiver", 16),
    Case("qformer", 16),
    Case("tokenpacker", 16),
    Case("evs", 16),
    Case("vidcom2", 16),
    Case("dycoke", 16),
    Case("fastvid", 16),
    Case("holitom", 16),
    Case("prunevid", 16),
    Case("visionzip+fastv", 16),
    Case("kmeans+ppe", 16),
    Case("divprune+pyramiddrop", 16),
    Case("quecc", 16),
]
FIRST = list({m.name: m for m in reversed(METHODS)}.values())  # one setting of each method
# Methods of towers whose patches are the visual tokens.
TOWER = {name for name in methods.names() if methods.get(name).tower is not Compressor.tower}
GRID = {"avgpool", "downsample", "m3", "mqt"}  # methods of images whose visual tokens are in a grid
ONE_PICTURE = GRID | {"qformer"}  # methods of images that the tower sees as a whole
# Of TOWER, methods that choose among visual tokens, whatever the projector makes them of.
CHOOSING = {name for name in TOWER if any(PATCH_ATTENTION in vars(c).get("needs", ()) for c in methods.get(name).mro())}
_SHAPE = BACKBONES["gqa"]().shape


def _before_the_llm(case: Case) -> bool:
    """Whether a method chooses some of an image's visual tokens, or merges into these, before the LLM, which it leaves
    alone: to the LLM it is as `random` is."""
    method = build(case.name, case.tokens or None, _SHAPE, **case.options)
    alone = method.layers() <= {0} and not method.probes()
    return alone and (case.name in CHOOSING or isinstance(method, TokenPruner)) and case.name != "random"


CHOSEN = {case.name for case in FIRST if len(parts(case.name)) == 1 and _before_the_llm(case)}
# Where the projector merges patches.
MERGING = [m for m in FIRST if not (TOWER - CHOOSING - ONE_PICTURE) & {*parts(m.name).values()}]
GRIDLESS = [Case("avgpool", 5, {"dims": 1})]  # where an image is several tiles
WHOLE = ("none", "ppe")  # methods that leave every token
GRIDLESS += [m for m in MERGING if not ONE_PICTURE & {*parts(m.name).values()} and m.name not in WHOLE]
APART = [  # each thing that is done to tokens, on an image whose tokens have text between them
    Case("none", 80),
    Case("random", 5),
    Case("avgpool", 6, {"dims": 1, "layer": 2}),
    Case("kmeans", 5, {"layer": 0, "iterations": 2}),
    Case("fastv", 5),
    Case("sparsevlm", 4),
    Case("pact", 5),
    Case("vcc", 9, {"block": 16}),
    Case("victor", 3),
    Case("voco", 2),
    Case("fwd2bot", 4, {"rank": 4}),
    Case("fitprune", 5),
]
# Qwen2.5-VL is Qwen2-VL but for the windows of its tower, and Qwen3-VL with experts is Qwen3-VL but for the MLPs of its
# LLM, which see each token alone.
KIN = {"qwen2.5", "qwen3_moe"}
WINDOWS = TOWER | {"none", "random", "fastv", "victor", "fwd2bot", "voco"}
# What chooses before the LLM never meets its heads.
CASES = (
    [("gqa", m) for m in METHODS]
    + [("mha", m) for m in FIRST if m.name not in CHOOSING | CHOSEN]
    + [("pocket", m) for m in POCKET_METHODS]
)
CASES += [("siglip", m) for m in FIRST if m.name in TOWER]
CASES += [(b, m) for b in ("qwen2", "qwen2.5", "qwen3", "qwen3_moe") for m in MERGING]
# Linear attention hides nothing behind a mask, and every other layer has none that could be read: no two after another.
CASES += [("qwen3.5", m) for m in MERGING if m.name not in ("voco", "fitprune", "fastv+fastv")]
CASES += [("llava_next", m) for m in GRIDLESS]
CASES += [("video_llava", m) for m in GRIDLESS if not CHOOSING & {*parts(m.name).values()}]  # two towers
CASES += [("llava_onevision", Case("vcc", 15, {"block": 4}) if m.name == "vcc" else m) for m in GRIDLESS]
CASES += [(b, Case(m, n)) for m in WHOLE for b, n in (("llava_next", 24), ("llava_onevision", 51), ("video_llava", 17))]
CASES += [(b, m) for b in ("gemma3", "internvl", "idefics3") for m in MERGING] + [("idefics3_tiles", m) for m in APART]

# What the LLM does afterwards, whichever visual tokens it was given: `random` is held to it on every backbone, and each
# method on the first. VTC_EVERY_CONTRACT=1 holds every method to it on each.
AFTERWARDS = {
    "beams_work",
    "cached_equals_uncached",
    "text_rows_are_unchanged",
    "the_cache_can_be_cropped",
    "the_loss_is_right",
    "turns_go_on_from_the_cache",
}


def held(contract: str, backbone: str, case: Case) -> bool:
    """Whether a case of a backbone is held to a contract."""
    elsewhere = backbone != "gqa" and case.name in CHOSEN or backbone in KIN and case.name not in WINDOWS
    return contract not in AFTERWARDS or not elsewhere or bool(os.environ.get("VTC_EVERY_CONTRACT"))
