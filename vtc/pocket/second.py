"""The test sets of pocket's second edition: text alone tells nothing of an answer that two pictures may have.

Hard captions come from PAIRS of scenes that an edit turns into one another, both of the split; which of the two is
shown is a coin's choice. So whatever a caption looks like (its length, its words, how often each occurs), it is right
as often as it is wrong, exactly. Both scenes hold the same colours, names and sizes, so that a bag doesn't tell either.
Existence is balanced in the same way. What can be guessed at the others is measured (`benchmarks/pocket/floors.py`)
and comes from `floors.json`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vtc import shipped
from vtc.identity import digest
from vtc.pocket import dense, video
from vtc.pocket.questions import CAPTION_PROMPT, KINDS, Question
from vtc.pocket.rows import Row, row, written
from vtc.pocket.scenes import CELLS, Scene, Split, Thing, draw_scene, draw_thing, recolor, scene_rng
from vtc.pocket.splits import draw_look_alikes

VERSION = 2  # raise whenever a set changes: results of different versions must not be compared
SEED = 20_240
FLOORS = "benchmarks/pocket/floors.json"
EMBED_PROMPT = "<embed>"
EDITS = ("replace", "swap", "add")
PLAIN = ("existence", "counting", "attributes", "relations", "reading", "choice")
SAMPLES = dict.fromkeys((*PLAIN, "captions"), 300) | {
    "retrieval": 200,
    "hard_captions": 300,
    "dense": 320,
    "video": 240,
}
TASKS = tuple(f"pocket2_{name}" for name in SAMPLES)
Pair = tuple[Scene, Scene]


@dataclass(frozen=True)
class Sample:
    """What is shown (a scene, or the frames of a video) and asked: columns of a row but its picture."""

    scenes: tuple[Scene, ...]
    question: str
    answer: str
    kind: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> Row:
        """Frames stand one below the other."""
        picture = np.concatenate([scene.render() for scene in self.scenes])
        return row(picture, self.question, self.answer, self.kind, **self.more)


def _asked(question: Question, *scenes: Scene) -> Sample:
    return Sample(scenes, question.text, question.answer, question.kind, {"options": list(question.options)})


# Questions -----------------------------------------------------------------------------------------------------------


def _questions(name: str, split: Split, rng: np.random.Generator) -> Iterator[Sample]:
    """One question a scene of three to six things; reading needs two or more digits to tell apart."""
    ask = dense.balanced_existence if name == "existence" else KINDS[name]
    while True:
        things = int(rng.integers(3, 7))
        digits = int(rng.integers(2, things + 1)) if name == "reading" else None
        scene = draw_scene(rng, split, things, digits)
        question = ask(rng, scene)
        if question is not None and not (name == "reading" and question.bag == 1.0):
            yield _asked(question, scene)


def _dense(split: Split, rng: np.random.Generator) -> Iterator[Sample]:
    """Dense scenes, as many of each kind of question."""
    for kind in itertools.cycle(dense.KINDS):
        question = None
        while question is None:
            scene = dense.draw_dense(rng, split, lined=kind == "dense-line")
            question = dense.ask_kind(rng, scene, kind)
        yield _asked(question, scene)


def _video(split: Split, rng: np.random.Generator) -> Iterator[Sample]:
    """Videos of eight frames, as many of each kind of question."""
    for kind in itertools.cycle(video.KINDS):
        shown = video.draw_video(rng, split)
        while (question := video.ask_video(rng, shown)).kind != kind:
            pass
        yield _asked(question, *shown.frames)


# Captions ------------------------------------------------------------------------------------------------------------


def _captions(split: Split, rng: np.random.Generator) -> Iterator[Sample]:
    """Floors are captions too: blind, one that is good for everything (`FLOORS`); bag, the right words with colours
    dealt out anew."""
    blind = _stated().get("captions", {}).get("caption", "")
    while True:
        scene = draw_scene(rng, split, int(rng.integers(3, 7)))
        bag = recolor(scene, rng)
        if bag is None:
            continue
        floors = {"blind_prediction": blind, "bag_prediction": bag.caption}
        yield Sample((scene,), CAPTION_PROMPT, scene.caption, "caption", {"references": [scene.caption]} | floors)


def _retrieval(split: Split, rng: np.random.Generator) -> Iterator[Sample]:
    """Groups of four scenes with the same attributes, bound differently; `group` says which."""
    for group in itertools.count():
        scenes = draw_look_alikes(rng, split)
        yield from (Sample((scene,), EMBED_PROMPT, scene.caption, "pair", {"group": group}) for scene in scenes)


def _hard_captions(split: Split, rng: np.random.Generator) -> Iterator[Sample]:
    """Two captions, of the scene that is shown and of the other one of its pair."""
    for edit in itertools.cycle(EDITS):
        shown, other = draw_pair(rng, split, edit)
        yield Sample((shown,), EMBED_PROMPT, shown.caption, edit, {"options": [other.caption]})


def draw_pair(rng: np.random.Generator, split: Split, edit: str) -> Pair:
    """Two scenes of a split that an edit turns into one another, the one to be shown first (a coin's choice).

    Both hold the same colours, names and sizes; one holds a thing that the other has not, and unless one has one thing
    more, so does the other.

    Args:
        edit: `swap` the colours of two things, `replace` the colour or the name of one, or `add` one.
    """
    edits: Callable[[np.random.Generator, Scene, Split], Iterator[Scene]] = {
        "swap": _swapped,
        "replace": _replaced,
        "add": _added,
    }[edit]
    while True:
        scene = draw_scene(rng, split, int(rng.integers(3, 6)))
        for other in edits(rng, scene, split):
            if other.split == split and _is_pair(scene, other, added=edit == "add"):
                return (scene, other) if rng.random() < 0.5 else (other, scene)


def _is_pair(scene: Scene, other: Scene, added: bool) -> bool:
    here, there = ({t.phrase for t in s.things} for s in (scene, other))
    words, others = ({word.strip(".,") for word in s.caption.split()} for s in (scene, other))
    return words == others and bool(there - here) and (added or bool(here - there))


def _swapped(rng: np.random.Generator, scene: Scene, split: Split) -> Iterator[Scene]:
    pairs = [*itertools.combinations(range(len(scene.things)), 2)]
    for i, j in (pairs[n] for n in rng.permutation(len(pairs))):
        things = list(scene.things)
        things[i], things[j] = (replace(things[a], color=things[b].color) for a, b in ((i, j), (j, i)))
        yield replace(scene, things=tuple(things))


def _replaced(rng: np.random.Generator, scene: Scene, split: Split) -> Iterator[Scene]:
    """A thing with the colour of another one, or with its name where both are shapes or both digits."""
    things = scene.things
    pairs = [(i, j, of) for i in range(len(things)) for j in range(len(things)) for of in ("color", "name") if i != j]
    for i, j, of in (pairs[n] for n in rng.permutation(len(pairs))):
        if of == "name" and things[i].is_digit != things[j].is_digit:
            continue
        like = {"color": things[j].color} if of == "color" else {"name": things[j].name, "glyph": things[j].glyph}
        changed: Thing = replace(things[i], **like)  # type: ignore[arg-type]
        yield replace(scene, things=(*things[:i], changed, *things[i + 1 :]))


def _added(rng: np.random.Generator, scene: Scene, split: Split) -> Iterator[Scene]:
    """One thing more in a free cell, with a colour and a name that are there."""
    free = sorted(set(range(CELLS * CELLS)) - {t.cell for t in scene.things})
    choices = [(cell, a, b) for cell in free for a in scene.things for b in scene.things]
    for cell, a, b in (choices[n] for n in rng.permutation(len(choices))):
        thing = draw_thing(rng, split, cell, a.is_digit, [b.color])
        size = {"size": a.size} if a.size == thing.size else {}
        if not size:  # its place was drawn for another size
            continue
        thing = replace(thing, name=a.name, glyph=a.glyph, **size)
        yield replace(scene, things=tuple(sorted((*scene.things, thing), key=lambda t: t.cell)))


# Sets ----------------------------------------------------------------------------------------------------------------

_MAKERS: dict[str, Callable[[Split, np.random.Generator], Iterator[Sample]]] = {
    **{name: functools.partial(_questions, name) for name in PLAIN},
    "captions": _captions,
    "retrieval": _retrieval,
    "hard_captions": _hard_captions,
    "dense": _dense,
    "video": _video,
}


def drawn(name: str, split: Split, seed: int = 0) -> Iterator[Sample]:
    """Samples of a task (``existence``) without end; the test set's are those of seed 0, without floors."""
    return _MAKERS[name](split, scene_rng(SEED + VERSION, f"{split}/{name}", seed))


def rows(task: str, split: Split = "test", seed: int = 0) -> list[Row]:
    """The rows of one task (``pocket2_existence``), with the floors that were measured."""
    name = task.removeprefix("pocket2_")
    if name not in SAMPLES:
        raise KeyError(f"no pocket task called {task!r}; there are {', '.join(TASKS)}")
    stated = _stated().get(name, {})
    floors = {floor: stated[floor]["score"] for floor in ("blind", "bag") if floor in stated and name != "captions"}
    taken = itertools.islice(drawn(name, split, seed), SAMPLES[name])
    return [each.row() | {"id": f"{name}-{i}"} | floors for i, each in enumerate(taken)]


def _stated() -> dict[str, Any]:
    """What was measured, by task; empty before it was."""
    try:
        return json.loads(shipped.path(FLOORS).read_text(encoding="utf-8"))["tasks"]
    except FileNotFoundError:
        return {}


def materialise(folder: str | os.PathLike, split: Split = "test", seed: int = 0) -> dict[str, Path]:
    """Draws every task's set into a folder, unless it is there already; task name → path.

    Args:
        seed: of the scenes; 0: the published sets. Another needs a folder of its own, as names don't say it.
    """
    ending = f"{split}-v{VERSION}-{digest(_stated())[:8]}"  # floors are in the rows
    return written(folder, TASKS, ending, functools.partial(rows, split=split, seed=seed))
