"""Pictures of pocket's scenes with packed questions, as a source of training batches, and the validation on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.data.training.batch import IGNORE, WHOLE, Batch, Part, on_device
from vtc.data.training.source import Answers
from vtc.errors import UserError, unknown
from vtc.pocket.data import caption_batch, image_prefix, pack, render
from vtc.pocket.questions import KINDS
from vtc.pocket.scenes import scene_rng
from vtc.pocket.worlds import SCENES, WORLDS, World, turn
from vtc.settings import DataSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone


class PocketSource:
    """Scenes drawn anew for every step, each with questions in blocks of their own behind one picture, and a caption.

    Args:
        name: of the stage; every stage draws other scenes.
        data: its batch_size, questions, weights and twins: negatives that differ in their binding alone, for
            contrastive losses; and its worlds, which take turns from step to step.
        embed: whether a block for the image's embedding stands behind the questions.
    """

    def __init__(self, name: str, data: DataSettings, seed: int, embed: bool = False) -> None:
        self.name, self.seed, self.embed = name, seed, embed
        self.batch_size, self.questions = data.batch_size, data.questions
        self.weights, self.twins, self.worlds = dict(data.weights), data.twins, dict(data.worlds)

    @classmethod
    def of_stage(cls, name: str, data: DataSettings, backbone: Backbone, seed: int, embed: bool) -> PocketSource:
        """See `vtc.data.training.source.TrainingSource.of_stage`. Its words are pocket's own, not the backbone's."""
        return cls(name, data, seed, embed)

    @classmethod
    def check(cls, data: DataSettings) -> None:
        """Refuses weights of questions that there are none of.

        Raises:
            UserError: an unknown kind, or weights that leave none.
        """
        for key in ("weights", "first_kinds"):
            for kind in getattr(data, key):
                if kind not in KINDS:
                    raise unknown(f"training.data.{key}", kind, KINDS)
        for world in data.worlds:
            if world not in WORLDS:
                raise unknown("training.data.worlds", world, WORLDS)
        if not sum(data.worlds.values()):
            raise UserError("training.data.worlds: leaves none; at least one number of steps must be above 0")
        first = [data.weights.get(kind, 0) for kind in data.first_kinds] if data.first_share else [1]
        if not sum(data.weights.values()) or not sum(first):
            raise UserError("training.data.weights: leaves no kind of question; at least one weight must be above 0")

    def pack(
        self,
        rng: np.random.Generator,
        shown: Sequence[Any],
        weights: Mapping[str, float],
        count: int,
        world: World = SCENES,
    ) -> Batch:
        """The pictures of what a world shows with `count` questions each."""
        questions = [world.ask(rng, item, count, dict(weights)) for item in shown]
        pixels = render([scene for item in shown for scene in world.frames(item)])
        packed = pack(image_prefix(world.images), questions, pixels, embed=self.embed and world.captions)
        if world.captions:
            packed.captions = caption_batch([scene.caption for scene in shown])
        return packed

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        """A part of the global batch of a step; a function of the seed, the step and the part alone."""
        rng = scene_rng(self.seed, self.name, step)
        world = turn(self.worlds, step)
        shown = world.draw(rng, world.rows(self.batch_size), "train", self.twins)
        return self.pack(rng, shown, self.weights, self.questions, world).rows(part.of(len(shown)))

    def validate(self, answers: Answers, device: torch.device) -> dict[str, float]:
        """Share of exactly right answers by kind on validation scenes of its worlds; see `validated`."""
        return validated(self.pack, answers, device, self.worlds)


@torch.no_grad()
def validated(
    pack: Callable[..., Any], answers: Answers, device: torch.device, worlds: Mapping[str, int]
) -> dict[str, float]:
    """Share of exactly right answers by kind (those of `vtc.pocket.questions`) on 128 validation scenes of each world
    (a quarter as many videos), their mean over the tasks, and where there are embeddings how often the own caption is
    the nearest of 32."""
    right: dict[str, list[float]] = {}
    tasks: dict[str, list[float]] = {}
    nearest: list[bool] = []
    kinds = {k: 1.0 for k in KINDS if k != "captions"}
    for world in (WORLDS[name] for name, steps in worlds.items() if steps):
        for step in range(4):
            rng = scene_rng(0, "question-validation", step)
            shown = world.draw(rng, world.rows(32), "validation", False)
            batch = on_device(pack(rng, shown, kinds, 16, world), device)
            logits, pairs = answers(batch)
            for kind, values in exact_answers(logits, batch if isinstance(batch, Batch) else batch[0]).items():
                right.setdefault(kind, []).extend(values)
                tasks.setdefault(world.task_of_kind[kind], []).extend(values)
            if pairs is not None:
                image, text = (F.normalize(e.float(), dim=-1) for e in pairs)
                near = (image @ text.T).argmax(1)
                nearest += (near == torch.arange(len(near), device=near.device)).tolist()
    scores = {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
    if nearest:
        scores["caption nearest of 32"] = float(np.mean(nearest))
    return scores | {"mean": float(np.mean([np.mean(values) for values in tasks.values()]))}


def exact_answers(logits: Tensor, batch: Batch) -> dict[str, list[float]]:
    """Which blocks are answered exactly by greedy decoding, by kind (teacher forcing tells the same)."""
    right = (logits[:, :-1].argmax(-1) == batch.labels[:, 1:]) | (batch.labels[:, 1:] == IGNORE)
    blocks: dict[str, list[float]] = {}
    for row, kinds in enumerate(batch.kinds):
        for block, kind in enumerate(kinds, 1):
            inside = batch.blocks[row, 1:] == block  # type: ignore[index]
            blocks.setdefault(kind, []).append(float(right[row][inside].all()))
    return blocks
