"""Questions about a scene, one function a kind, and what can be guessed without seeing.

Each :class:`Question` carries two floors. ``blind`` is the chance of the best guess from the question alone; ``bag``
that of the best guess of one who knows WHICH colours, names and sizes are in the picture but not which belong
together, and not how often each occurs. A score near a floor is no evidence of seeing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vtc.pocket.scenes import COLORS, DIGITS, NAMES, SHAPES, SIZE, SIZES, Scene, Thing

CAPTION_PROMPT = "describe the image."
LETTERS = "ABCD"
RELATIONS = ("left of", "right of", "above", "below")
MIN_OFFSET = 16  # pixels between two centres before one is called left of, or above, the other


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    kind: str
    blind: float
    bag: float
    options: tuple[str, ...] = ()


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def _unique(things: Sequence[Thing], key: Callable[[Thing], object]) -> list[Thing]:
    keys = [key(t) for t in things]
    return [t for t, k in zip(things, keys, strict=True) if keys.count(k) == 1]


def existence(rng: np.random.Generator, scene: Scene) -> Question:
    """``is there a red circle?`` Half the answers are no; two thirds of those name a colour and a thing that are both
    in the picture, but not together (POPE's adversarial negatives)."""
    phrases = {t.phrase for t in scene.things}
    colors, names = {t.color for t in scene.things}, {t.name for t in scene.things}
    if rng.random() < 0.5:
        return Question(f"is there a {_pick(rng, scene.things).phrase}?", "yes", "present", 0.5, 1.0)
    crossed = sorted(f"{c} {n}" for c in colors for n in names if f"{c} {n}" not in phrases)
    if crossed and rng.random() < 2 / 3:
        # Both attributes are present: the bag says yes, as it must for the true ones.
        return Question(f"is there a {_pick(rng, crossed)}?", "no", "crossed", 0.5, 0.0)
    while True:
        color, name = _pick(rng, list(COLORS)), _pick(rng, NAMES)
        if f"{color} {name}" not in phrases:
            bag = float(not (color in colors and name in names))
            return Question(f"is there a {color} {name}?", "no", "absent", 0.5, bag)


# What guessing gets on counts, measured on scenes of three to six things (tests/pocket measures it again): blind, the
# share of the most common answer; bag, that share among scenes with as many different colours (for one colour), or
# with as many different colours or names, whichever is more (for all things).
BLIND_COUNT = {"color": 0.32, "all": 0.26}
BAG_COUNT = {"color": (0.62, 0.44, 0.46, 0.57, 0.77, 1.0), "all": (1.0, 0.86, 0.64, 0.47, 0.53, 1.0)}


def counting(rng: np.random.Generator, scene: Scene) -> Question:
    """``how many red objects are there?`` and ``how many objects are there?``"""
    draw = rng.random()
    colors, names = {t.color for t in scene.things}, {t.name for t in scene.things}
    if draw < 0.3:
        bag = BAG_COUNT["all"][max(len(colors), len(names)) - 1]
        return Question("how many objects are there?", str(len(scene.things)), "count-all", BLIND_COUNT["all"], bag)
    if draw < 0.9:
        color = _pick(rng, [t.color for t in scene.things])
        count = str(sum(t.color == color for t in scene.things))
        bag = BAG_COUNT["color"][len(colors) - 1]
        return Question(f"how many {color} objects are there?", count, "count-color", BLIND_COUNT["color"], bag)
    absent = [c for c in COLORS if c not in colors]
    color = _pick(rng, absent)
    return Question(f"how many {color} objects are there?", "0", "count-absent", BLIND_COUNT["color"], 1.0)


def attributes(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Colour of a thing, thing of a colour, size of a thing: exactly one answer is right."""
    draw = rng.random()
    colors, names = {t.color for t in scene.things}, {t.name for t in scene.things}
    if draw < 0.4:
        if not (things := _unique(scene.things, lambda t: t.name)):
            return None
        thing = _pick(rng, things)
        return Question(f"what color is the {thing.name}?", thing.color, "color", 1 / len(COLORS), 1 / len(colors))
    if draw < 0.8:
        if not (things := _unique(scene.things, lambda t: t.color)):
            return None
        thing = _pick(rng, things)
        blind = 0.65 / len(SHAPES)
        return Question(f"what is the {thing.color} object?", thing.name, "name", blind, 1 / len(names))
    things = [t for t in _unique(scene.things, lambda t: t.phrase) if not t.is_digit]
    if not things:
        return None
    thing = _pick(rng, things)
    sizes = {t.size for t in scene.things if not t.is_digit}
    return Question(f"what size is the {thing.phrase}?", thing.size, "size", 1 / len(SIZES), 1 / len(sizes))


def relations(rng: np.random.Generator, scene: Scene) -> Question | None:
    """``is the red circle left of the blue 3?`` and ``where is the red circle?``"""
    things = _unique(scene.things, lambda t: t.phrase)
    if rng.random() < 0.4:
        if not things:
            return None
        thing = _pick(rng, things)
        where = f"{'top' if thing.y < SIZE / 2 else 'bottom'} {'left' if thing.x < SIZE / 2 else 'right'}"
        return Question(f"where is the {thing.phrase}?", where, "where", 0.25, 0.25)
    if len(things) < 2:
        return None
    a, b = (things[i] for i in rng.permutation(len(things))[:2])
    offsets = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    relation = _pick(rng, [r for r in RELATIONS if abs(offsets[r]) >= MIN_OFFSET] or [None])
    if relation is None:
        return None
    answer = "yes" if offsets[relation] > 0 else "no"
    return Question(f"is the {a.phrase} {relation} the {b.phrase}?", answer, "relation", 0.5, 0.5)


def reading(rng: np.random.Generator, scene: Scene) -> Question | None:
    """``what digit is red?``: a handwritten digit, told from the others by its colour."""
    digits = [t for t in scene.things if t.is_digit]
    if not (readable := _unique(digits, lambda t: t.color)):
        return None
    thing, bag = _pick(rng, readable), 1 / len({t.name for t in digits})
    return Question(f"what digit is {thing.color}?", thing.name, "digit", 1 / len(DIGITS), bag)


def choice(rng: np.random.Generator, scene: Scene) -> Question | None:
    """A question about an attribute with four options; the answer is a letter (MMBench). Wrong options are in the
    picture as far as they go."""
    question = attributes(rng, scene)
    if question is None or question.kind == "size":
        return None
    of = (lambda t: t.color) if question.kind == "color" else (lambda t: t.name)
    present = sorted({of(t) for t in scene.things} - {question.answer})
    every = list(COLORS) if question.kind == "color" else list(NAMES)
    absent = [o for o in every if o not in present and o != question.answer]
    wrong = [present[i] for i in rng.permutation(len(present))][:3]
    wrong += [absent[i] for i in rng.permutation(len(absent))[: 3 - len(wrong)]]
    options = [([question.answer] + wrong)[i] for i in rng.permutation(4)]
    text = question.text + " " + " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=True))
    bag = 1 / (1 + min(3, len(present)))
    letter = LETTERS[options.index(question.answer)]
    return Question(text, letter, f"choice-{question.kind}", 0.25, bag, tuple(options))


def captions(rng: np.random.Generator, scene: Scene) -> Question:
    """``describe the image.``: everything in it, in raster order."""
    return Question(CAPTION_PROMPT, scene.caption, "caption", float("nan"), float("nan"))


_KINDS_OF_TASK = {
    "existence": ("present", "crossed", "absent"),
    "counting": ("count-all", "count-color", "count-absent"),
    "attributes": ("color", "name", "size"),
    "relations": ("where", "relation"),
    "reading": ("digit",),
    "choice": ("choice-color", "choice-name"),
    "captions": ("caption",),
}
TASK_OF_KIND = {kind: task for task, kinds in _KINDS_OF_TASK.items() for kind in kinds}
KINDS: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    ask.__name__: ask for ask in (existence, counting, attributes, relations, reading, choice, captions)
}


def hard_negative(rng: np.random.Generator, scene: Scene, kind: str) -> str | None:
    """A caption that is wrong in one thing, made only of words that fit the picture (SugarCrepe's three edits).

    Args:
        kind: ``replace`` one thing's colour or name by another one of the picture, ``swap`` the colours of two things,
            or ``add`` a thing whose colour and name are both in the picture, but not together.
    """
    things = list(scene.things)
    phrases = {t.phrase for t in things}
    crossed = [
        (i, c, n)
        for i, t in enumerate(things)
        for c, n in [(o.color, t.name) for o in things] + [(t.color, o.name) for o in things]
        if f"{c} {n}" not in phrases
    ]

    parts = [f"a {t.description}" for t in things]
    if kind == "swap":
        pairs = [
            (i, j)
            for i in range(len(things))
            for j in range(i)
            if things[i].color != things[j].color and things[i].name != things[j].name
        ]
        if not pairs:
            return None
        i, j = _pick(rng, pairs)
        for at, other in ((i, j), (j, i)):
            parts[at] = f"a {replace(things[at], color=things[other].color).description}"
    elif not crossed:
        return None
    else:
        i, color, name = _pick(rng, crossed)
        new = f"a {replace(things[i], color=color, name=name).description}"
        if kind == "replace":
            parts[i] = new
        elif kind == "add":
            parts.insert(int(rng.integers(len(parts) + 1)), new)
        else:
            raise ValueError(f"no edit called {kind!r}")
    return ", ".join(parts) + "."
