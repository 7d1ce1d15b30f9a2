"""The test and validation sets of the pocket benchmark, made anew from their seeds wherever they are needed.

Nothing is downloaded and nothing is stored in the repository: drawing all nine sets takes seconds.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vtc.pocket.questions import CAPTION_PROMPT, KINDS, hard_negative
from vtc.pocket.rows import Row, row, written
from vtc.pocket.scenes import Scene, Split, draw_scene, recolor, scene_rng

VERSION = 1  # raise whenever a set changes: results of different versions must not be compared
SEED = 20_240
EDITS = ("replace", "swap", "add")
GALLERY_GROUP = 4  # images of one retrieval group hold the same attributes, bound differently
EMBED_PROMPT = "<embed>"
SAMPLES = dict.fromkeys(KINDS, 300) | {"retrieval": 200, "hard_captions": 300}
TASKS = tuple(f"pocket_{name}" for name in SAMPLES)


def _row(scene: Scene, question: str, answer: str, kind: str, **more: Any) -> Row:
    return row(scene.render(), question, answer, kind, **more)


def _questions(name: str, split: Split, rng: np.random.Generator) -> Iterator[Row]:
    """One question a scene of three to six things; reading needs two or more digits to tell apart."""
    while True:
        things = int(rng.integers(3, 7))
        digits = int(rng.integers(2, things + 1)) if name == "reading" else None
        scene = draw_scene(rng, split, things, digits)
        question = KINDS[name](rng, scene)
        if question is None or (name == "reading" and question.bag == 1.0):
            continue
        floors = {"blind": question.blind, "bag": question.bag}
        yield _row(scene, question.text, question.answer, question.kind, options=list(question.options), **floors)


def _captions(split: Split, rng: np.random.Generator) -> Iterator[Row]:
    """Floors are captions too: blind, that of another scene of the training split; bag, the right words with colours
    dealt out anew."""
    while True:
        scene = draw_scene(rng, split, int(rng.integers(3, 7)))
        bag = recolor(scene, rng)
        if bag is None:
            continue
        blind = draw_scene(rng, "train", int(rng.integers(3, 7)))
        floors = {"blind_prediction": blind.caption, "bag_prediction": bag.caption}
        yield _row(scene, CAPTION_PROMPT, scene.caption, "caption", references=[scene.caption], **floors)


def _retrieval(split: Split, rng: np.random.Generator) -> Iterator[Row]:
    """Groups of four scenes with the same attributes, bound differently. Blind R@1 is one in the gallery; knowing the
    bag finds the group and guesses in it: R@1 = 1/4."""
    floors = {"blind": 1 / SAMPLES["retrieval"], "bag": 1 / GALLERY_GROUP}
    for group in itertools.count():
        for scene in draw_look_alikes(rng, split):
            yield _row(scene, EMBED_PROMPT, scene.caption, "pair", group=group, **floors)


def draw_look_alikes(rng: np.random.Generator, split: Split) -> list[Scene]:
    """`GALLERY_GROUP` scenes with the same attributes, bound differently, no two of one caption."""
    scenes: list[Scene] = []
    while len(scenes) < GALLERY_GROUP:
        scenes = [draw_scene(rng, split, int(rng.integers(4, 7)))]
        for _ in range(20):
            other = recolor(scenes[0], rng)
            if other is not None and all(other.caption != s.caption for s in scenes):
                scenes.append(other)
            if len(scenes) == GALLERY_GROUP:
                break
    return scenes


def _hard_captions(split: Split, rng: np.random.Generator) -> Iterator[Row]:
    """A true caption and one with a single edit that uses only words which fit the picture: both floors are 1/2."""
    for edit in itertools.cycle(EDITS):
        wrong = None
        while wrong is None:
            scene = draw_scene(rng, split, int(rng.integers(3, 6)))
            wrong = hard_negative(rng, scene, edit)
        yield _row(scene, EMBED_PROMPT, scene.caption, edit, options=[wrong], blind=0.5, bag=0.5)


def rows(task: str, split: Split = "test") -> list[Row]:
    """The rows of one task (``existence``, or ``pocket_existence``)."""
    name = task.removeprefix("pocket_")
    if name not in SAMPLES:
        raise KeyError(f"no pocket task called {task!r}; there are {', '.join(TASKS)}")
    rng = scene_rng(SEED + VERSION, f"{split}/{name}", 0)
    makers = {"captions": _captions, "retrieval": _retrieval, "hard_captions": _hard_captions}
    make = makers.get(name, functools.partial(_questions, name))(split, rng)
    return [next(make) | {"id": f"{name}-{i}"} for i in range(SAMPLES[name])]


def materialise(folder: str | os.PathLike, split: Split = "test") -> dict[str, Path]:
    """Draws every task's set into a folder, unless it is there already; task name → path."""
    return written(folder, TASKS, f"{split}-v{VERSION}", functools.partial(rows, split=split))
