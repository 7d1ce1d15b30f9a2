"""What a method may need of a backbone, and the refusal of a backbone that lacks it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from vtc.errors import UserError
from vtc.interface.shape import BackboneShape


class Need(Enum):
    """A property of backbones. What is lacking is said in the order in which they stand here."""

    PATCHWISE = auto()  # what the tower gives becomes visual tokens one by one, whatever grid it stands in
    FIXED_COUNT = auto()  # every image has as many visual tokens, in a grid
    ONE_TOWER = auto()  # a single vision tower
    PATCH_ATTENTION = auto()  # patches that attend, each part of one visual token: by CLS, or what each receives
    WHOLE_IMAGES = auto()  # one visual token for each patch of an image that the tower sees as a whole
    ONE_PICTURE = auto()  # the tower sees an image as a whole, whatever its visual tokens are made of
    GRID = auto()  # an image's visual tokens form a rectangle
    PLACES = auto()  # the i-th visual tokens of two frames stand for the same place
    MASKS = auto()  # a mask can hide tokens in every layer of the decoder
    ATTENTION = auto()  # every layer of the decoder attends


PATCHWISE, FIXED_COUNT, ONE_TOWER, PATCH_ATTENTION, WHOLE_IMAGES, ONE_PICTURE, GRID, PLACES, MASKS, ATTENTION = Need


def refuse_lacking(method: str, needs: Iterable[Need], shape: BackboneShape, instead: str = "") -> None:
    """Refuses a backbone by the first need that it doesn't meet.

    Args:
        instead: what the user may do about it.

    Raises:
        UserError: it names the method, the need and the backbone.
    """
    for need in sorted(needs, key=lambda n: n.value):
        if reason := lacking(need, shape):
            raise UserError(f"method={method}: {reason}{f', {instead}' if instead else ''}")


def lacking(need: Need, shape: BackboneShape) -> str:
    """Why a backbone doesn't meet a need; empty where it does."""
    vision, name = shape.vision, shape.name
    if need is PATCHWISE and (vision.merge > 1 or vision.tile_tokens is not None):
        square = f"projects squares of {vision.merge}×{vision.merge} patches"
        does = square if vision.merge > 1 else "cuts and pools the grid of its tiles"
        return f"patches that merge in the tower leave no grid; {name} {does} behind it"
    if need is ONE_TOWER and vision.towers > 1:
        return f"it reads the vision tower, and {name} has {vision.towers} of them"
    tokens, cells = vision.tile_tokens or shape.visual_tokens, _patches(shape) // vision.merge**2
    if need is PATCH_ATTENTION and tokens not in (None, cells):
        of = "patches" if vision.merge == 1 else f"squares of {vision.merge}×{vision.merge} patches"
        return f"it reads the attention behind each visual token; {name} has {tokens} of {cells} {of}"
    if need is FIXED_COUNT and (shape.visual_tokens is None or shape.grid is None):
        return f"it needs one visual token a patch, in a fixed number; {name} has none"
    if need is WHOLE_IMAGES and shape.visual_tokens not in (_patches(shape), _patches(shape) + vision.cls):
        has = (
            "no fixed number of them" if shape.visual_tokens is None else f"{shape.visual_tokens} of {_patches(shape)}"
        )
        return f"it needs one visual token a patch; {name} has {has}"
    if need is ONE_PICTURE and vision.tile_tokens is not None and shape.visual_tokens != vision.tile_tokens:
        return f"it reads an image as one picture, and the tower of {name} sees its tiles one by one"
    if need is GRID and shape.grid is None and (shape.visual_tokens is not None or vision.tile_tokens):
        return f"it needs a rectangular grid of visual tokens; {name} has none"
    if need is PLACES and not shape.places:
        return f"it compares frames place by place, and {name} has no grid of places"
    if need is MASKS and shape.recurrent is not None:
        return f"its mask hides visual tokens in every layer, and {name} has linear attention; states have read them"
    if need is ATTENTION and shape.recurrent is not None:
        return f"it reads the attention of every layer, and {name} has linear attention; {attended(shape)} attend"
    return ""


def attended(shape: BackboneShape) -> str:
    """The layers that attend, in words: `layers 3, 7, 11, …`."""
    return f"layers {', '.join(map(str, shape.attending))}"


def _patches(shape: BackboneShape) -> int:
    """What the tower cuts an image, or the example of one, into."""
    vision = shape.vision
    return vision.grid_side**2 if vision.tokens is None else vision.tokens - vision.cls
