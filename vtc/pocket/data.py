"""Batches of pocket scenes for training: a function of (seed, step) alone, so that a resumed run misses nothing.

Questions are PACKED: one image is followed by many questions, each in a block of its own that sees the image and
itself, at the positions it has when asked alone. Twenty questions cost the price of two images, and no answer leaks
from one question to the next, as it does between the turns of a conversation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vtc.data.training.batch import IGNORE, Batch
from vtc.pocket.model import GRID, PATCH, SUMMARY_PROMPT, encode, vocabulary_index
from vtc.pocket.questions import KINDS, Question, captions, existence
from vtc.pocket.scenes import COLORS, NAMES, SIZES, Scene, Split, Thing, draw_scene, recolor

ATTEMPTS = 200  # draws a question, after which a scene is taken to have no answer to any kind that is drawn
PREFIX = ("<s> USER:", "<image>")  # what stands before the first question


def normalise(images: np.ndarray) -> Tensor:
    """``[B, 96, 96, 3]`` uint8 → ``[B, 3, 96, 96]`` in -1..1, exactly as the processor does."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def patches_of(thing: Thing) -> tuple[slice, slice]:
    """Rows and columns of the patch grid that a thing covers by more than a rim of two pixels."""
    rows = slice((thing.top + 2) // PATCH, (thing.top + thing.pixels - 3) // PATCH + 1)
    columns = slice((thing.left + 2) // PATCH, (thing.left + thing.pixels - 3) // PATCH + 1)
    return rows, columns


def patch_labels(scenes: Sequence[Scene]) -> Tensor:
    """Colour, name and size in every patch.

    Returns:
        ``[3, B, 144]`` long; 0 is background, else 1 + the index into COLORS, NAMES and SIZES (digits have no size: 0).
    """
    labels = np.zeros((3, len(scenes), GRID, GRID), dtype=np.int64)
    colors, sizes = list(COLORS), list(SIZES)
    for b, scene in enumerate(scenes):
        for thing in scene.things:
            size = 0 if thing.is_digit else 1 + sizes.index(thing.size)
            rows, columns = patches_of(thing)
            labels[0, b, rows, columns] = 1 + colors.index(thing.color)
            labels[1, b, rows, columns] = 1 + NAMES.index(thing.name)
            labels[2, b, rows, columns] = size
    return torch.from_numpy(labels).flatten(2)


def attention(batch: Batch) -> Tensor:
    """Who sees whom in a packed batch, as one explicit mask ``[B, 1, L, L]`` bool, for a decoder without the engine."""
    blocks, length = batch.blocks, batch.input_ids.shape[1]
    if blocks is None:
        raise ValueError("a batch of packed questions is needed")
    q, k = blocks[:, :, None], blocks[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    allowed = ((k == 0) | (k == q)) & causal & batch.attention_mask[:, None, :].bool()
    return (allowed | torch.eye(length, dtype=torch.bool, device=q.device))[:, None]


def pack(
    prefix: Sequence[int], rows: Sequence[Sequence[Question]], pixels: Tensor | None, embed: bool = False
) -> Batch:
    """Lay out each row's questions behind the prefix, and with ``embed`` the summary prompt as a last block.

    Rows are right-padded; every block starts again at the position where the prefix ends; in padding, ``blocks`` holds
    the number of the last one.
    """
    index = vocabulary_index()
    assistant, end, pad = index["ASSISTANT:"], index["</s>"], index["<pad>"]
    laid_out = [[(encode(q.text) + (assistant,), encode(q.answer) + (end,)) for q in row] for row in rows]
    if embed:
        for row in laid_out:
            row.append((encode(SUMMARY_PROMPT) + (assistant,), ()))
    start = len(prefix)
    length = start + max(sum(len(q) + len(a) for q, a in row) for row in laid_out)
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    labels = np.full_like(ids, IGNORE)
    blocks = np.zeros_like(ids)
    positions = np.zeros_like(ids)
    real = np.zeros_like(ids)
    ids[:, :start], positions[:, :start] = prefix, np.arange(start)
    for b, row in enumerate(laid_out):
        at = start
        for n, (question, answer) in enumerate(row, 1):
            end_of_question, stop = at + len(question), at + len(question) + len(answer)
            ids[b, at:stop] = question + answer
            labels[b, end_of_question:stop] = answer
            blocks[b, at:stop] = n
            positions[b, at:stop] = np.arange(start, start + stop - at)
            at = stop
        real[b, :at] = 1
        blocks[b, at:] = len(row)
    mask = torch.from_numpy(real)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": mask, "position_ids": torch.from_numpy(positions)}
    return Batch(
        inputs=inputs if pixels is None else inputs | {"pixel_values": pixels},
        labels=torch.from_numpy(labels),
        blocks=torch.from_numpy(blocks),
        embed_at=mask.sum(1) - 1 if embed else None,
        kinds=[[q.kind for q in row] for row in rows],
    )


def caption_batch(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions → token ids ``[B, L]`` and mask ``[B, L]``, left-padded."""
    pad = vocabulary_index()["<pad>"]
    rows = [list(encode(caption)) for caption in captions]
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    return ids, (ids != pad).long()


def image_prefix(images: int = 1) -> list[int]:
    before, image = PREFIX
    return [*encode(before), *encode(image) * (GRID * GRID * images)]


def draw_questions(
    rng: np.random.Generator, scene: Scene, count: int, weights: dict[str, float], caption: bool
) -> list[Question]:
    """``count`` questions of the weighted kinds (those a scene has no answer to are drawn again), and a caption."""
    kinds = list(weights)
    share = np.cumsum([weights[k] for k in kinds])
    questions: list[Question] = []
    for attempt in itertools.count():
        if len(questions) == count:
            break
        if attempt > ATTEMPTS * count:  # a scene without digits, say, where reading alone has a weight
            questions.append(existence(rng, scene))
            continue
        kind = kinds[int(np.searchsorted(share, rng.random() * share[-1]))]
        question = KINDS[kind](rng, scene)
        if question is not None:
            questions.append(question)
    if caption:
        questions.append(captions(rng, scene))
    return questions


def draw_scenes(rng: np.random.Generator, count: int, split: Split, twins: bool = False) -> list[Scene]:
    """``count`` scenes; with ``twins``, every other one is its neighbour with the colours dealt out anew."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(rng, split, things=int(rng.integers(2, 7)) if twins else None)
        other = recolor(scene, rng) if twins else None
        if not twins:
            scenes.append(scene)
        elif other is not None:
            scenes += [scene, other]
    return scenes[:count]


def render(scenes: Sequence[Scene]) -> Tensor:
    return normalise(np.stack([scene.render() for scene in scenes]))
