"""Pictures of pocket's scenes with packed questions, as a source of training batches, and the validation on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.data.training.batch import IGNORE, WHOLE, Batch, Part, on_device
from vtc.data.training.source import Answers
from vtc.errors import UserError, unknown
from vtc.pocket.data import caption_batch, draw_questions, draw_scenes, image_prefix, pack, render
from vtc.pocket.questions import KINDS, TASK_OF_KIND
from vtc.pocket.scenes import Scene, scene_rng
from vtc.settings import DataSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone


class PocketSource:
    """Scenes drawn anew for every step, each with questions in blocks of their own behind one picture, and a caption.

    Args:
        name: of the stage; every stage draws other scenes.
        data: its batch_size, questions, weights and twins: negatives that differ in their binding alone, for
            contrastive losses.
        embed: whether a block for the image's embedding stands behind the questions.
    """

    def __init__(self, name: str, data: DataSettings, seed: int, embed: bool = False) -> None:
        self.name, self.seed, self.embed = name, seed, embed
        self.batch_size, self.questions = data.batch_size, data.questions
        self.weights, self.twins = dict(data.weights), data.twins

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
        first = [data.weights.get(kind, 0) for kind in data.first_kinds] if data.first_share else [1]
        if not sum(data.weights.values()) or not sum(first):
            raise UserError("training.data.weights: leaves no kind of question; at least one weight must be above 0")

    def pack(self, rng: np.random.Generator, scenes: list[Scene], weights: Mapping[str, float], count: int) -> Batch:
        """The scenes' pictures with `count` questions each."""
        questions = [draw_questions(rng, s, count, dict(weights), caption=True) for s in scenes]
        packed = pack(image_prefix(), questions, render(scenes), embed=self.embed)
        packed.captions = caption_batch([scene.caption for scene in scenes])
        return packed

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        """A part of the global batch of a step; a function of the seed, the step and the part alone."""
        rng = scene_rng(self.seed, self.name, step)
        scenes = draw_scenes(rng, self.batch_size, "train", self.twins)
        return self.pack(rng, scenes, self.weights, self.questions).rows(part.of(self.batch_size))

    def validate(self, answers: Answers, device: torch.device) -> dict[str, float]:
        """Share of exactly right answers by kind on 128 validation scenes; see `validated`."""
        return validated(self.pack, answers, device)


@torch.no_grad()
def validated(pack: Callable[..., Any], answers: Answers, device: torch.device) -> dict[str, float]:
    """Share of exactly right answers by kind (those of `vtc.pocket.questions`) on 128 validation scenes, their mean
    over the tasks, and where there are embeddings how often the own caption is the nearest of 32."""
    right: dict[str, list[float]] = {}
    nearest: list[bool] = []
    for step in range(4):
        rng = scene_rng(0, "question-validation", step)
        kinds = {k: 1.0 for k in KINDS if k != "captions"}
        batch = on_device(pack(rng, draw_scenes(rng, 32, "validation"), kinds, 16), device)
        logits, pairs = answers(batch)
        for kind, values in exact_answers(logits, batch if isinstance(batch, Batch) else batch[0]).items():
            right.setdefault(kind, []).extend(values)
        if pairs is not None:
            image, text = (F.normalize(e.float(), dim=-1) for e in pairs)
            near = (image @ text.T).argmax(1)
            nearest += (near == torch.arange(len(near), device=near.device)).tolist()
    scores = {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
    tasks: dict[str, list[float]] = {}
    for kind, values in right.items():
        tasks.setdefault(TASK_OF_KIND[kind], []).extend(values)
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
