"""Videos: eight frames in which one thing moves, two appear one after the other, and one changes its colour.

Every frame is a scene, all on one background, and shown as an image of its own; what happened can be told from no frame
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vtc.pocket.questions import Question
from vtc.pocket.scenes import CELL, CELLS, COLOR_NAMES, DIGIT_SHARE, SIZE, Scene, Split, Thing, draw_thing

FRAMES = 8
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows and columns of a step
ROLES = ("mover", "first", "last", "changer")  # a video's things in this order; a fifth, where there is one, stays
KINDS = ("video-move", "video-appear", "video-order", "video-change")


@dataclass(frozen=True)
class Video:
    """What happens in eight frames.

    Attributes:
        things: as they are in the beginning: the mover, the first and the last to appear, the changer, others. Their
            phrases differ, and no other thing has the changer's name.
        way: of the mover, one of `WAYS`; steps: cells that it moves.
        appearances: the frames at which the two appear.
        color: the changer's second colour; change: the frame from which it has it.
        background: the seed of all frames'.
    """

    things: tuple[Thing, ...]
    way: str
    steps: int
    appearances: tuple[int, int]
    color: str
    change: int
    background: int

    @property
    def frames(self) -> tuple[Scene, ...]:
        """The eight scenes; of the mover's path each shows an equal part."""
        return tuple(self._frame(at) for at in range(FRAMES))

    def _frame(self, at: int) -> Scene:
        mover, first, last, changer, *others = self.things
        down, right = (round(step * self.steps * CELL * at / (FRAMES - 1)) for step in WAYS[self.way])
        shown = [replace(mover, left=mover.left + right, top=mover.top + down), *others]
        shown += [t for t, since in zip((first, last), self.appearances, strict=True) if at >= since]
        shown.append(replace(changer, color=self.color) if at >= self.change else changer)
        return Scene(tuple(sorted(shown, key=lambda t: t.cell)), self.background)


def draw_video(rng: np.random.Generator, split: Split) -> Video:
    """A video of a split: that of the scene of all its things, as they are in the beginning."""
    while True:
        count = int(rng.integers(len(ROLES), len(ROLES) + 2))
        cells = [int(c) for c in rng.permutation(CELLS * CELLS)[:count]]
        things = [draw_thing(rng, split, c, rng.random() < DIGIT_SHARE, COLOR_NAMES) for c in cells]
        changer = things[ROLES.index("changer")]
        names = [t.name for t in things]
        paths = _paths(cells)
        if len({t.phrase for t in things}) < count or names.count(changer.name) > 1 or not paths:
            continue
        if Scene(tuple(sorted(things, key=lambda t: t.cell)), 0).split != split:
            continue
        way, steps = paths[rng.integers(len(paths))]
        first, last = sorted(int(f) for f in rng.permutation(np.arange(1, FRAMES))[:2])
        colors = [c for c in COLOR_NAMES if c != changer.color]
        color, change = colors[rng.integers(len(colors))], int(rng.integers(2, FRAMES - 1))
        return Video(tuple(things), way, steps, (first, last), color, change, int(rng.integers(2**31)))


def _paths(cells: list[int]) -> list[tuple[str, int]]:
    """Where the first thing can go over free cells, at least one and at most three: each way with every distance."""
    paths = []
    for way, (down, right) in WAYS.items():
        row, column = divmod(cells[0], CELLS)
        for steps in range(1, CELLS):
            row, column = row + down, column + right
            if not (0 <= row < CELLS and 0 <= column < CELLS) or row * CELLS + column in cells:
                break
            paths.append((way, steps))
    return paths


def ask_video(rng: np.random.Generator, video: Video) -> Question:
    """A question about what happens in a video."""
    mover, first, last, changer, *_ = video.things
    nan = float("nan")
    kind = KINDS[rng.integers(len(KINDS))]
    early = rng.random() < 0.5
    when = "first" if early else "last"
    if kind == "video-move":
        return Question(f"which way does the {mover.phrase} move?", video.way, kind, nan, nan)
    if kind == "video-appear":
        return Question(f"what appears {when}?", (first if early else last).phrase, kind, nan, nan)
    if kind == "video-order":
        one, other, answer = (first, last, "yes") if early else (last, first, "no")
        return Question(f"does the {one.phrase} appear before the {other.phrase}?", answer, kind, nan, nan)
    return Question(
        f"what color is the {changer.name} {when}?", changer.color if early else video.color, kind, nan, nan
    )


def strip(video: Video) -> np.ndarray:
    """The frames one below the other, ``[8 * 96, 96, 3]`` uint8: one picture a test sample."""
    return np.concatenate([scene.render() for scene in video.frames])


def cut(height: int) -> list[tuple[int, int, int, int]]:
    """The boxes (left, top, right, bottom) of the frames of a strip of that height."""
    return [(0, top, SIZE, top + SIZE) for top in range(0, height, SIZE)]
