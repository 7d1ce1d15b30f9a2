"""Scenes: a few coloured shapes and handwritten digits on a noisy 96x96 canvas.

A scene is symbolic first (:class:`Scene`) and drawn second (:meth:`Scene.render`). Which split a scene belongs to is
decided by a hash of what stands where, so train, validation and test share no scene however many are drawn, and each
split writes with digits of its own from scikit-learn's handwritten set.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "validation", "test"]

SIZE = 96  # pixels, both sides
CELLS = 4  # objects stand in the cells of a CELLS x CELLS grid
CELL = SIZE // CELLS
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (150, 60, 180),
    "orange": (240, 140, 30),
    "cyan": (40, 200, 210),
    "white": (245, 245, 245),
}
COLOR_NAMES = tuple(COLORS)
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
DIGITS = tuple("0123456789")
NAMES = SHAPES + DIGITS
SIZES = {"small": 14, "large": 20}  # pixels
MAX_OBJECTS = 6
DIGIT_SHARE = 0.35  # how often a thing is a digit


@dataclass(frozen=True)
class Thing:
    """One object: what it is, its colour, and where it stands."""

    name: str  # one of NAMES
    color: str  # one of COLORS
    size: str  # "small" or "large"; digits are always large
    cell: int  # row-major index into the CELLS x CELLS grid
    left: int  # pixel of its left edge
    top: int  # pixel of its top edge
    glyph: int = -1  # which handwritten digit, for digits
    side: int = 0  # pixels, where a layout has a size of its own; 0: those of its size

    @property
    def is_digit(self) -> bool:
        return self.name in DIGITS

    @property
    def pixels(self) -> int:
        return self.side or SIZES[self.size]

    @property
    def x(self) -> float:
        """Centre, pixels from the left."""
        return self.left + self.pixels / 2

    @property
    def y(self) -> float:
        """Centre, pixels from the top."""
        return self.top + self.pixels / 2

    @property
    def phrase(self) -> str:
        """How questions name it: ``red circle``."""
        return f"{self.color} {self.name}"

    @property
    def description(self) -> str:
        """How captions name it: ``small red circle``; digits have no size."""
        return self.phrase if self.is_digit else f"{self.size} {self.phrase}"


@dataclass(frozen=True)
class Scene:
    """Things in raster order, and the seed of the background."""

    things: tuple[Thing, ...]
    background: int

    @functools.cached_property
    def split(self) -> Split:
        """The split this scene belongs to: 90 % train, 5 % validation, 5 % test.

        The hash takes what stands where, and which colours there are, but not which thing has which: scenes that
        differ in their binding alone are of one split, so that no test scene is a training scene with colours swapped.
        """
        places = ";".join(f"{t.cell},{t.name}" for t in self.things)
        layout = f"{places}|{','.join(sorted(t.color for t in self.things))}"
        bucket = int.from_bytes(hashlib.blake2b(layout.encode(), digest_size=4).digest(), "big") % 20
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"

    @property
    def caption(self) -> str:
        return ", ".join(f"a {t.description}" for t in self.things) + "."

    def render(self) -> np.ndarray:
        """Draw the scene.

        Returns:
            ``[96, 96, 3]`` uint8.
        """
        rng = np.random.Generator(np.random.PCG64(self.background))
        shade = rng.integers(0, 60) + rng.integers(0, 25, 3)
        canvas = shade + 4.0 * rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
        canvas = np.broadcast_to(canvas, (SIZE, SIZE, 3)).astype(np.float32)
        for thing in self.things:
            mask = (_glyph(thing.glyph, thing.pixels) if thing.is_digit else _shape(thing.name, thing.pixels))[
                ..., None
            ]
            window = (slice(thing.top, thing.top + thing.pixels), slice(thing.left, thing.left + thing.pixels))
            canvas[window] = canvas[window] * (1 - mask) + np.array(COLORS[thing.color], dtype=np.float32) * mask
        return canvas.clip(0, 255).astype(np.uint8)

    def image(self) -> Image.Image:
        return Image.fromarray(self.render())


def scene_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """The randomness of one batch: depends on the seed, the stream's name and the step, on nothing that ran before."""
    return np.random.default_rng([seed, *stream.encode(), step])


@functools.cache
def _shape(name: str, pixels: int) -> np.ndarray:
    """Coverage of a shape, ``[pixels, pixels]`` in 0..1, drawn four times as large and reduced."""
    s = pixels * 4
    image = Image.new("L", (s, s), 0)
    draw = ImageDraw.Draw(image)
    if name == "circle":
        draw.ellipse((0, 0, s - 1, s - 1), fill=255)
    elif name == "square":
        draw.rectangle((s * 0.08, s * 0.08, s * 0.92, s * 0.92), fill=255)
    elif name == "triangle":
        draw.polygon([(s / 2, 0), (0, s - 1), (s - 1, s - 1)], fill=255)
    elif name == "cross":
        draw.rectangle((s * 0.36, 0, s * 0.64, s), fill=255)
        draw.rectangle((0, s * 0.36, s, s * 0.64), fill=255)
    elif name == "ring":
        draw.ellipse((0, 0, s - 1, s - 1), fill=255)
        draw.ellipse((s * 0.3, s * 0.3, s * 0.7, s * 0.7), fill=0)
    elif name == "star":
        radii = [s / 2 if i % 2 == 0 else s * 0.2 for i in range(10)]
        angles = [i * math.pi / 5 for i in range(10)]
        corners = [(s / 2 + r * math.sin(a), s / 2 - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]
        draw.polygon(corners, fill=255)
    else:
        raise ValueError(f"no shape called {name!r}")
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.LANCZOS), dtype=np.float32) / 255


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images / 16.0, data.target


@functools.cache
def _glyph(index: int, pixels: int) -> np.ndarray:
    """Coverage of a handwritten digit, ``[pixels, pixels]`` in 0..1."""
    raw = Image.fromarray((_digits()[0][index] * 255).astype(np.uint8))
    return np.asarray(raw.resize((pixels, pixels), Image.Resampling.BICUBIC), dtype=np.float32) / 255


@functools.cache
def _glyphs_of(split: Split) -> np.ndarray:
    """Indices of the handwritten digits that a split writes with: 80 / 10 / 10 %."""
    index = np.arange(len(_digits()[1]))
    bucket = index % 10
    return index[bucket == 0 if split == "test" else bucket == 1 if split == "validation" else bucket > 1]


def draw_thing(
    rng: np.random.Generator,
    split: Split,
    cell: int,
    digit: bool,
    palette: Sequence[str],
    cells: int = CELLS,
    side: int = 0,
) -> Thing:
    """One thing, anywhere in its cell.

    Args:
        split: whose handwriting its digits are of.
        cell: row-major index into a grid of `cells` x `cells`.
        palette: the colours to draw from.
        side: pixels; 0: those of its size, which is drawn for shapes.
    """
    glyphs = _glyphs_of(split)
    glyph = int(glyphs[rng.integers(len(glyphs))]) if digit else -1
    name = str(_digits()[1][glyph]) if digit else SHAPES[rng.integers(len(SHAPES))]
    size = "large" if digit or (not side and rng.random() < 0.5) else "small"
    slack = SIZE // cells - (side or SIZES[size])
    left = int(cell % cells) * (SIZE // cells) + int(rng.integers(0, slack + 1))
    top = int(cell // cells) * (SIZE // cells) + int(rng.integers(0, slack + 1))
    color = palette[int(rng.integers(len(palette)))]
    return Thing(name, color, size, int(cell), left, top, glyph, side)


def draw_scene(rng: np.random.Generator, split: Split, things: int | None = None, digits: int | None = None) -> Scene:
    """Draw a random scene of a split.

    The colours of one scene come from a palette of two to six, so that a colour often stands on several things: to
    know which colours are present is then not to know which thing has which.

    Args:
        rng: source of all randomness.
        split: the split that the scene must fall into (others are rejected and drawn again).
        things: number of things; uniform in 1..6 if not given.
        digits: number of digits among them; each thing is a digit with probability 0.35 if not given.
    """
    while True:
        n = int(things or rng.integers(1, MAX_OBJECTS + 1))
        cells = np.sort(rng.permutation(CELLS * CELLS)[:n])
        palette = [COLOR_NAMES[i] for i in rng.permutation(len(COLORS))[: rng.integers(2, 7)]]
        is_digit = rng.random(n) < DIGIT_SHARE if digits is None else rng.permutation(np.arange(n) < digits)
        drawn = [draw_thing(rng, split, c, d, palette) for c, d in zip(cells, is_digit, strict=True)]
        scene = Scene(tuple(drawn), int(rng.integers(2**31)))
        if scene.split == split:
            return scene


def recolor(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The same things with their colours dealt out anew: same attributes, another binding.

    Returns:
        A scene whose caption differs (of the same split, see there), or None where twenty deals gave none.
    """
    for _ in range(20):
        order = rng.permutation(len(scene.things))
        things = tuple(replace(t, color=scene.things[j].color) for t, j in zip(scene.things, order, strict=True))
        other = Scene(things, int(rng.integers(2**31)))
        if other.caption != scene.caption:
            return other
    return None
