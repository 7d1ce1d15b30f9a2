"""What a sample showed the model, and what became of its visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

TRACED = 4096  # visual tokens of a sample, all images together, up to which it is kept what became of each


@dataclass
class Kept:
    """Visual tokens (and registers) of one sample, per image: at first, at the end, and in each decoder layer."""

    tokens_in: float
    tokens_out: float
    layers: list[float] = field(default_factory=list)
    images: list[dict[str, Any]] | None = None  # see `ScoredSample.images`


@dataclass(frozen=True)
class Shown:
    """What a sample showed the model: the text, and a hash of each picture's pixels."""

    question: str
    pictures: list[str]


def kept_of(report: Any, visual: Sequence[int], images: Sequence[int], depth: int) -> list[Kept | None]:
    """What became of each row's visual tokens; None for rows without images.

    Args:
        report: the engine's; None where the method does nothing, so that every layer sees everything.
        visual: visual tokens of each row as the user gave it.
        images: images of each row.
        depth: decoder layers.
    """
    out: list[Kept | None] = []
    for row, (tokens, count) in enumerate(zip(visual, images, strict=True)):
        at_first, at_last, layers = tokens, tokens, [tokens] * depth
        if report is not None:
            count = report.images[row]  # the frames of a video are images
            at_first, at_last, layers = report.tokens_in[row], report.tokens_out[row], [n[row] for n in report.layers]
        out.append(Kept(at_first / count, at_last / count, [n / count for n in layers]) if count else None)
    return out


def images_of(backbone: Any, report: Any, row: int, pictures: Sequence[Image.Image]) -> list[dict[str, Any]] | None:
    """What became of each visual token of a row's images; see `ScoredSample.images`."""
    holders = report.holders[row]
    if sum(map(len, holders)) > TRACED:
        return None
    out = []
    for at, (held, made, grid) in enumerate(zip(holders, report.made[row], report.grids[row], strict=True)):
        # Frames that a tower reads in pairs are fewer than the pictures.
        size = (pictures[at].height, pictures[at].width) if len(pictures) == len(holders) else None
        regions = [] if size is None else backbone.regions(size, len(held), grid)
        boxes = [{**asdict(region), "box": list(region.box)} for region in regions]
        out.append({"holders": held, "made": made, "regions": boxes})
    return out
