"""A budget that is a mean over a set of images: how complex they are, which a pass of the vision tower says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vtc.engine.engine import compressing
from vtc.errors import UserError
from vtc.interface import SUMMARY_PROMPT, Compressor
from vtc.interface.spread import scale_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.backbones.base import Backbone


@dataclass
class Complexities:
    """Of the images of a set, one behind the other.

    Attributes:
        complexity: as the method says it; sizes: visual tokens that each has.
        weights: how much each counts in the mean: those of one sample share one, as where tokens are counted.
    """

    complexity: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @torch.no_grad()
    def add(self, backbone: Backbone, method: Compressor, inputs: Mapping[str, Any]) -> None:
        """The images of some rows, inputs of the model; the LLM doesn't run."""
        if not bool(backbone.visual(inputs["input_ids"]).any()):
            return
        with compressing(backbone, method) as engine:
            complexity, sizes, row = engine.complexities(dict(inputs))
        if not bool((complexity > 0).all()):
            least = float(complexity.min())
            raise UserError(f"method={method.name}: gives a complexity of {least:g}; needed: numbers above 0")
        self.complexity += complexity.double().tolist()
        self.sizes += sizes.tolist()
        self.weights += (1 / torch.bincount(row)[row].double()).tolist()

    def add_images(self, backbone: Backbone, method: Compressor, images: Sequence[Image]) -> None:
        """Images without a question."""
        self.add(backbone, method, backbone.inputs([SUMMARY_PROMPT] * len(images), [[image] for image in images]))

    def scale(self, tokens: int) -> float | None:
        """`Compressor.scale` at which they have `tokens` tokens in the mean, or less; None where there are none."""
        return scale_of(self.complexity, self.sizes, tokens, self.weights) if self.sizes else None


def spread_over(backbone: Backbone, method: Compressor, images: Sequence[Image], rows: int = 16) -> None:
    """From here on images have as many tokens as their complexity gives them, and these have `method.tokens` in the
    mean. It ends where `method.scale` becomes None.

    Args:
        rows: images at a time.

    Raises:
        UserError: a method that leaves every image as many tokens; no images.
    """
    if not method.spreads or method.tokens is None or not images:
        what = "a budget to spread, and images" if method.spreads else "a method that says how complex an image is"
        raise UserError(f"method={method.name}: a mean over images needs {what}")
    method.scale, seen = None, Complexities()
    for start in range(0, len(images), rows):
        seen.add_images(backbone, method, images[start : start + rows])
    method.scale = seen.scale(method.tokens)
