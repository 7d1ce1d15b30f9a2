"""The contract between a compression method and the framework: what a method sees, and what it is.

Sizes (`BackboneShape`), tokens (`TokenSequence`), everything else that a method may look at (`Context`, `Tower`), and
the base classes: `Compressor`, and narrower ones of which a method overrides one verb. It imports nothing above it.
"""

from vtc.interface.compressor import (
    SUMMARY_PROMPT,
    Compressor,
    Resampler,
    SelfCompressor,
    TokenMerger,
    TokenPruner,
    VideoPruner,
    require_tokens,
    two_level,
)
from vtc.interface.context import Context
from vtc.interface.layers import resolve_layer, scaled_layer
from vtc.interface.shape import BackboneShape, TowerShape
from vtc.interface.tokens import REGISTER, TEXT, VISUAL, TokenSequence, keep_best, keep_best_of_rows, merge_images
from vtc.interface.tower import (
    Tower,
    TowerUse,
    View,
    evenly,
    projected_layer,
    require_cls,
    require_patches,
    resolve_tower_layer,
    views,
)
from vtc.interface.tower_methods import (
    Condensed,
    FewerPatches,
    TowerCompressor,
    TowerPruner,
    TowerResampler,
    best,
)

__all__ = [
    "REGISTER",
    "SUMMARY_PROMPT",
    "TEXT",
    "VISUAL",
    "BackboneShape",
    "Compressor",
    "Condensed",
    "Context",
    "FewerPatches",
    "Resampler",
    "SelfCompressor",
    "TokenMerger",
    "TokenPruner",
    "TokenSequence",
    "Tower",
    "TowerCompressor",
    "TowerPruner",
    "TowerResampler",
    "TowerShape",
    "TowerUse",
    "VideoPruner",
    "View",
    "best",
    "evenly",
    "keep_best",
    "keep_best_of_rows",
    "merge_images",
    "projected_layer",
    "require_cls",
    "require_patches",
    "require_tokens",
    "resolve_layer",
    "resolve_tower_layer",
    "scaled_layer",
    "two_level",
    "views",
]
