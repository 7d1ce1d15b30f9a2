"""The worlds that pocket draws pictures of: scenes, dense scenes and videos, each with its questions.

A training says how many steps of each it takes in turn, e.g. ``{scenes: 2, dense: 1, video: 1}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.pocket import dense, video
from vtc.pocket.data import draw_questions, draw_scenes
from vtc.pocket.questions import TASK_OF_KIND, Question
from vtc.pocket.scenes import Scene, Split

Rng = np.random.Generator


@dataclass(frozen=True)
class World:
    """What a row of a batch shows, and what it is asked.

    Attributes:
        images: of a row; a video's are its frames.
        share: a batch has one row for so many of its size.
        draw: (randomness, rows, split, twins) → what the rows show.
        frames: of one of them the scenes that are drawn.
        ask: (randomness, what is shown, how many, weights by kind) → questions.
        task_of_kind: which task each kind of question belongs to.
        captions: whether its rows have captions, for the contrastive loss.
    """

    name: str
    images: int
    share: int
    draw: Callable[[Rng, int, Split, bool], list[Any]]
    frames: Callable[[Any], Sequence[Scene]]
    ask: Callable[[Rng, Any, int, dict[str, float]], list[Question]]
    task_of_kind: Mapping[str, str]
    captions: bool = False

    def rows(self, batch_size: int) -> int:
        """Rows of a batch: fewer than its size where each is many images."""
        return max(1, batch_size // self.share)


def _ask_scene(rng: Rng, scene: Scene, count: int, weights: dict[str, float]) -> list[Question]:
    return draw_questions(rng, scene, count, weights, caption=True)


def _ask_dense(rng: Rng, scene: Scene, count: int, weights: dict[str, float]) -> list[Question]:
    return [dense.ask_dense(rng, scene) for _ in range(count)]


def _ask_video(rng: Rng, shown: video.Video, count: int, weights: dict[str, float]) -> list[Question]:
    return [video.ask_video(rng, shown) for _ in range(count)]


def _draw_dense(rng: Rng, count: int, split: Split, twins: bool) -> list[Scene]:
    return [dense.draw_dense(rng, split) for _ in range(count)]


def _draw_video(rng: Rng, count: int, split: Split, twins: bool) -> list[video.Video]:
    return [video.draw_video(rng, split) for _ in range(count)]


def _alone(scene: Scene) -> tuple[Scene]:
    return (scene,)


def _frames(shown: video.Video) -> tuple[Scene, ...]:
    return shown.frames


SCENES = World("scenes", 1, 1, draw_scenes, _alone, _ask_scene, TASK_OF_KIND, captions=True)
DENSE = World("dense", 1, 1, _draw_dense, _alone, _ask_dense, dict.fromkeys(dense.KINDS, "dense"))
VIDEO = World("video", video.FRAMES, 4, _draw_video, _frames, _ask_video, dict.fromkeys(video.KINDS, "video"))
WORLDS = {world.name: world for world in (SCENES, DENSE, VIDEO)}


def turn(worlds: Mapping[str, int], step: int) -> World:
    """The world of a step: the given numbers of steps of each, one after the other, over and over."""
    order = [name for name, steps in worlds.items() for _ in range(steps)]
    return WORLDS[order[step % len(order)]]
