"""Dense scenes: many small things, or two lines of digits, so that few visual tokens can't hold what is there.

Things are 12 pixels wide and stand in a grid of 6 x 6 cells, each two patches wide: ten to sixteen of them, or two
lines of four to six digits and a few shapes. Most of the 144 patches of a picture show something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vtc.pocket.questions import Question, attributes, relations
from vtc.pocket.scenes import COLOR_NAMES, DIGIT_SHARE, Scene, Split, Thing, draw_thing, recolor

CELLS = 6  # a side
SIDE = 12  # pixels of a thing
THINGS = (10, 17)  # from, below
LINE = (4, 7)  # digits of a line
CLUTTER = (2, 5)  # shapes beside two lines
ATTEMPTS = 50  # draws of a kind of question, after which another kind is asked


def draw_dense(rng: np.random.Generator, split: Split, lined: bool | None = None) -> Scene:
    """A dense scene of a split: with lines or without, or as a coin falls."""
    while True:
        written = rng.random() < 0.5 if lined is None else lined
        things = _lines(rng, split) if written else _crowd(rng, split)
        scene = Scene(tuple(sorted(things, key=lambda t: t.cell)), int(rng.integers(2**31)))
        if scene.split == split:
            return scene


def _crowd(rng: np.random.Generator, split: Split) -> list[Thing]:
    cells = rng.permutation(CELLS * CELLS)[: rng.integers(*THINGS)]
    return [draw_thing(rng, split, int(c), rng.random() < DIGIT_SHARE, COLOR_NAMES, CELLS, SIDE) for c in cells]


def _lines(rng: np.random.Generator, split: Split) -> list[Thing]:
    """Two rows of digits, each of one colour and without gaps, and shapes in other rows."""
    things = []
    chosen = [int(row) for row in rng.permutation(CELLS)[:2]]
    for row in chosen:
        length = int(rng.integers(*LINE))
        start, color = int(rng.integers(CELLS - length + 1)), COLOR_NAMES[rng.integers(len(COLOR_NAMES))]
        cells = range(row * CELLS + start, row * CELLS + start + length)
        things += [draw_thing(rng, split, cell, True, [color], CELLS, SIDE) for cell in cells]
    free = [cell for cell in range(CELLS * CELLS) if cell // CELLS not in chosen]
    clutter = rng.permutation(free)[: rng.integers(*CLUTTER)]
    return things + [draw_thing(rng, split, int(cell), False, COLOR_NAMES, CELLS, SIDE) for cell in clutter]


def lines(scene: Scene) -> list[list[Thing]]:
    """The lines of digits of a scene, from the top; none where any digit stands alone in its row."""
    rows = {t.cell // CELLS for t in scene.things if t.is_digit}
    found = [[t for t in scene.things if t.is_digit and t.cell // CELLS == row] for row in sorted(rows)]
    whole = all(
        len(line) >= LINE[0] and line[-1].cell - line[0].cell == len(line) - 1 and len({t.color for t in line}) == 1
        for line in found
    )
    return found if whole and len(found) == 2 else []


def balanced_existence(rng: np.random.Generator, scene: Scene) -> Question | None:
    """``is there a red circle?`` Of the scene and its neighbour with the colours dealt out anew, one has it. Either was
    as likely to be the one that is shown, so neither the words nor the attributes in the picture tell."""
    other = recolor(scene, rng)
    if other is None:
        return None
    here, there = ({t.phrase for t in s.things} for s in (scene, other))
    answer = "yes" if rng.random() < 0.5 else "no"
    phrases = sorted(here - there if answer == "yes" else there - here)
    if not phrases:
        return None
    return Question(f"is there a {phrases[rng.integers(len(phrases))]}?", answer, "existence", 0.5, 0.5)


def read_line(rng: np.random.Generator, scene: Scene) -> Question | None:
    """``read the top line.`` → ``3 1 4 1 5``, its digits from the left."""
    rows = lines(scene)
    if not rows:
        return None
    at = int(rng.integers(2))
    answer = " ".join(t.name for t in rows[at])
    return Question(f"read the {('top', 'bottom')[at]} line.", answer, "line", float("nan"), float("nan"))


def ask_dense(rng: np.random.Generator, scene: Scene) -> Question:
    """A question about a dense scene: its lines where it has some, else existence, a colour, or a relation."""
    while True:
        if (question := read_line(rng, scene)) is not None:
            return replace(question, kind="dense-line")
        ask = ASK[rng.integers(len(ASK))]
        for _ in range(ATTEMPTS):
            if (question := _of_kind(rng, scene, ask)) is not None:
                return question


def ask_kind(rng: np.random.Generator, scene: Scene, kind: str) -> Question | None:
    """A question of one of `KINDS`, where the scene has an answer to it."""
    if kind == "dense-line":
        question = read_line(rng, scene)
        return question and replace(question, kind=kind)
    return _of_kind(rng, scene, next(ask for ask in ASK if KIND_OF[ask.__name__] == kind))


def _of_kind(rng: np.random.Generator, scene: Scene, ask: Ask) -> Question | None:
    """All things are small, so that sizes aren't asked."""
    question = ask(rng, scene)
    return None if question is None or question.kind == "size" else replace(question, kind=KIND_OF[ask.__name__])


Ask = Callable[[np.random.Generator, Scene], Question | None]
ASK: tuple[Ask, ...] = (balanced_existence, attributes, relations)
KIND_OF = {"balanced_existence": "dense-existence", "attributes": "dense-attribute", "relations": "dense-relation"}
KINDS = (*KIND_OF.values(), "dense-line")
