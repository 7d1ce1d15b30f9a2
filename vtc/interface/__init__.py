"""The contract between a compression method and the framework: what a method sees, and what it is.

Sizes (`BackboneShape`), tokens (`TokenSequence`), everything else that a method may look at (`Context`, `Tower`), and
the base classes: `Compressor`, and narrower ones of which a method overrides one verb. It imports nothing above it.
"""

from vtc.interface.compressor import (
    SUMMARY_PROMPT,
    AttachableBackbone,
    Compressor,
    Embedded,
    TokenMerger,
    TokenPruner,
    VideoPruner,
)
from vtc.interface.context import Context, LayerStates
from vtc.interface.flops import OwnPass
from vtc.interface.needs import (
    ATTENTION,
    FIXED_COUNT,
    GRID,
    ONE_PICTURE,
    ONE_TOWER,
    PATCH_ATTENTION,
    PATCHWISE,
    PLACES,
    WHOLE_IMAGES,
    Need,
    refuse_lacking,
)
from vtc.interface.options import layer_option, option, readable, resolve_layer, scaled_layer
from vtc.interface.resampler import Resampler
from vtc.interface.selection import keep_best, merge_images, rank
from vtc.interface.self_compressor import Captions, SelfCompressor
from vtc.interface.shape import BackboneShape, RecurrentShape, TowerShape
from vtc.interface.tokens import REGISTER, TEXT, VISUAL, TokenSequence
from vtc.interface.tower import Tower, TowerUse, projected_layer, resolve_tower_layer
from vtc.interface.tower_methods import (
    Condensed,
    FewerPatches,
    TowerCompressor,
    TowerPruner,
    TowerResampler,
)

__all__ = [
    "ATTENTION", "AttachableBackbone", "BackboneShape", "Captions", "Compressor", "Condensed", "Context", "Embedded",
    "FIXED_COUNT", "FewerPatches", "GRID", "LayerStates", "Need", "ONE_PICTURE", "ONE_TOWER", "OwnPass", "PATCHWISE",
    "PATCH_ATTENTION", "PLACES", "REGISTER", "RecurrentShape", "Resampler", "SUMMARY_PROMPT", "SelfCompressor", "TEXT",
    "TokenMerger", "TokenPruner", "TokenSequence", "Tower", "TowerCompressor", "TowerPruner", "TowerResampler",
    "TowerShape", "TowerUse", "VISUAL", "VideoPruner", "WHOLE_IMAGES", "keep_best", "layer_option", "merge_images",
    "option", "projected_layer", "rank", "readable", "refuse_lacking", "resolve_layer", "resolve_tower_layer",
    "scaled_layer",
]  # fmt: skip
