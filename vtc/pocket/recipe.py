"""How the pocket base model comes about, from nothing: tower, language, alignment, instruction.

A real LLaVA starts from a tower that already sees and a language model that already reads; pocket has to make both.

1. ``tower``: CLIP's stand-in. Each patch learns to tell the colour, name and size of what stands on it, the class token
   which attributes the picture holds. ``locate`` goes on with one more thing to tell: the patch's own row and column,
   which nothing before it needs and the tower forgets.
2. ``language``: Vicuna's stand-in. The decoder learns to answer about scenes that are *described* instead of shown: a
   few tokens a thing, each the sum of the embeddings of its words and of its place.
3. ``align``: LLaVA's first stage. The projector learns to put each patch where the words of what stands on it are.
4. ``instruct``: LLaVA's second stage. Projector and decoder learn to answer about pictures; the tower stays frozen:
   :class:`vtc.training.method_stage.MethodStage` without a method.

Without 3, a decoder of this size learns what is present but not what belongs together, however long it is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from vtc.data.training.batch import WHOLE, Batch, Part, on_device
from vtc.pocket.data import attention, draw_scenes, pack, patch_labels, patches_of, render
from vtc.pocket.model import GRID, WIDTH, encode, vocabulary_index
from vtc.pocket.scenes import COLORS, NAMES, SIZES, Scene, Split, scene_rng
from vtc.pocket.source import validated
from vtc.pocket.worlds import SCENES, WORLDS, World, turn
from vtc.settings import DataSettings
from vtc.training.method_stage import answer_loss
from vtc.training.stage import Stage

Described = tuple[Batch, Tensor, Tensor]  # questions, the words of each concept [3, B, N], its patch [B, N]
BACKGROUND_WEIGHT = 0.15  # background patches are nine in ten and easy


def pictures(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Pixels ``[B, 3, 96, 96]`` and the labels of their patches ``[3, B, 144]``."""
    return render(scenes), patch_labels(scenes)


class SceneStage(Stage):
    """A stage whose batches begin with what there is one of for each scene; pictures and labels of their patches."""

    seed: int
    batch_size: int
    worlds: Mapping[str, int]

    def batch(self, step: int, part: Part = WHOLE) -> tuple[Any, ...]:
        scenes = self.drawn(turn(self.worlds, step), scene_rng(self.seed, self.name, step), "train")
        return pictures(scenes[part.of(len(scenes))])

    def drawn(self, world: World, rng: np.random.Generator, split: Split) -> list[Scene]:
        """As many scenes of a world as the batch has pictures; the frames of a video among them."""
        shown = world.draw(rng, max(1, self.batch_size // world.images), split, False)
        return [scene for item in shown for scene in world.frames(item)]

    def images(self, batch: tuple[Any, ...]) -> int:
        return len(batch[0])


class TowerStage(SceneStage):
    """Dense labels for the tower: 9 colours, 17 names and 3 sizes a patch (background among them).

    After :meth:`locate`, its row and its column too.
    """

    def __init__(self, model: LlavaForConditionalGeneration, seed: int, batch_size: int, worlds: Mapping[str, int]):
        self.name = "tower"
        self.tower = model.model.vision_tower
        self.seed, self.batch_size, self.worlds = seed, batch_size, worlds
        torch.manual_seed(seed)
        outputs = (1 + len(COLORS), 1 + len(NAMES), 1 + len(SIZES))
        self.heads = nn.ModuleList([nn.Linear(WIDTH, n) for n in outputs])
        self.presence = nn.Linear(WIDTH, len(COLORS) + len(NAMES))
        self.places = nn.ModuleList([nn.Linear(WIDTH, GRID) for _ in range(2)])

    def locate(self) -> TowerStage:
        """The same stage under the name ``locate``, with rows and columns to tell."""
        self.name = "locate"
        return self

    def to(self, device: torch.device) -> None:
        super().to(device)
        for module in (self.heads, self.presence, self.places):
            module.to(device)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.tower.named_parameters(prefix="tower")
        yield from self.heads.named_parameters(prefix="head")
        yield from self.presence.named_parameters(prefix="presence_head")
        if self.name == "locate":
            yield from self.places.named_parameters(prefix="place_head")

    def modules(self) -> dict[str, nn.Module]:
        own = {"heads": self.heads, "presence": self.presence}
        return {"tower": self.tower} | own | ({"places": self.places} if self.name == "locate" else {})

    def weights(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        return dict.fromkeys(("color", "name", "size", "presence", "row", "column"), len(batch[0]))

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        pixels, labels = batch
        out = self.tower(pixel_values=pixels)
        patches = out.last_hidden_state[:, 1:]
        weight = _patch_weights(labels)
        terms = {}
        for name, head, label in zip(("color", "name", "size"), self.heads, labels, strict=True):
            loss = F.cross_entropy(head(patches).float().flatten(0, 1), label.flatten(), reduction="none")
            terms[name] = (loss * weight.flatten()).mean()
        present = torch.zeros(len(pixels), len(COLORS) + len(NAMES) + 2, device=pixels.device)
        present.scatter_(1, labels[0], 1.0)  # column 0 takes the background
        present.scatter_(1, labels[1] + len(COLORS) + 1, 1.0)
        present = torch.cat([present[:, 1 : len(COLORS) + 1], present[:, len(COLORS) + 2 :]], 1)
        logits = self.presence(out.pooler_output).float()
        terms["presence"] = 0.2 * F.binary_cross_entropy_with_logits(logits, present)
        if self.name == "locate":
            patch = torch.arange(GRID * GRID, device=pixels.device).repeat(len(pixels))
            for name, head, place in zip(("row", "column"), self.places, (patch // GRID, patch % GRID), strict=True):
                terms[name] = 0.5 * F.cross_entropy(head(patches).float().flatten(0, 1), place)
        return terms

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of object patches whose colour, name, size are right, on validation scenes of each world."""
        scores: dict[str, float] = {}
        for world in (WORLDS[name] for name, steps in self.worlds.items() if steps):
            right = dict.fromkeys(("color", "name", "size"), 0.0)
            total = 0.0
            for step in range(8):
                scenes = self.drawn(world, scene_rng(0, "tower-validation", step), "validation")
                pixels, labels = on_device(pictures(scenes), self.device)
                patches = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
                thing = labels[0] > 0
                total += float(thing.sum())
                for name, head, label in zip(right, self.heads, labels, strict=True):
                    right[name] += float((head(patches).argmax(-1) == label)[thing].sum())
            mark = "" if world is SCENES else f"{world.name} "
            scores |= {mark + name: value / total for name, value in right.items()}
        return scores


def _patch_weights(labels: Tensor) -> Tensor:
    """What each patch counts, ``[B, 144]``."""
    return torch.where(labels[0] > 0, 1.0, BACKGROUND_WEIGHT)


class Places(nn.Module):
    """Where a token of a described scene stands: a vector for each row and one for each column of the patch grid."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(0.1 * torch.randn(GRID, WIDTH, generator=generator))
        self.columns = nn.Parameter(0.1 * torch.randn(GRID, WIDTH, generator=generator))

    @torch.no_grad()
    def read_off(self, model: LlavaForConditionalGeneration) -> None:
        """What an aligned model's projector says of the places: its mean over the background of 64 scenes, patch by
        patch, as the sum of a row's and a column's."""
        pixels, labels = pictures(draw_scenes(scene_rng(0, "places", 0), 64, "train"))
        features = model.model.vision_tower(pixel_values=pixels.to(model.device)).last_hidden_state[:, 1:]
        plain = (labels[0] == 0).to(model.device)[..., None]
        mean = (model.model.multi_modal_projector(features) * plain).sum(0) / plain.sum(0)
        mean = mean.unflatten(0, (GRID, GRID))
        self.rows.copy_(mean.mean(1))
        self.columns.copy_(mean.mean(0) - mean.mean((0, 1)))

    def forward(self, patch: Tensor) -> Tensor:
        """``[...]`` patch indices → ``[..., D]``."""
        return self.rows[patch // GRID] + self.columns[patch % GRID]


def word_ids(labels: Tensor) -> Tensor:
    """Patch labels ``[3, ...]`` → vocabulary ids of their words, 0 (``<unk>``) where there is none."""
    index = vocabulary_index()
    tables = [[0, *(index[w] for w in words)] for words in (COLORS, NAMES, SIZES)]
    pairs = zip(tables, labels, strict=True)
    return torch.stack([torch.tensor(table, device=label.device)[label] for table, label in pairs])


def concepts(embedding: Tensor, words: Tensor, places: Tensor) -> Tensor:
    """Concept vectors: the sum of the embeddings of a patch's words, and of its place.

    Args:
        embedding: ``[V, D]``.
        words: ``[3, B, N]`` vocabulary ids, 0 for none.
        places: ``[B, N, D]``.
    """
    return (F.embedding(words, embedding) * (words > 0)[..., None]).sum(0) + places


class LanguageStage(SceneStage):
    """Questions about scenes described in a few tokens: one to four patches of every thing, and four of background.

    Args:
        data: its batch_size, questions and weights; for the first `first_share` of the steps questions are of
            `first_kinds` alone.
    """

    name = "language"

    def __init__(self, model: LlavaForConditionalGeneration, data: DataSettings, seed: int):
        self.model, self.seed = model, seed
        self.batch_size, self.questions, self.mix = data.batch_size, data.questions, dict(data.weights)
        self.first_kinds, self.first_share, self.worlds = data.first_kinds, data.first_share, data.worlds
        self.total = 1
        self.places = Places(seed)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.places.to(device)

    def modules(self) -> dict[str, nn.Module]:
        return {"language_model": self.model.model.language_model, "lm_head": self.model.lm_head, "places": self.places}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.model.language_model.named_parameters(prefix="language_model")
        yield from self.places.named_parameters(prefix="places_embed")

    def start_step(self, step: int, total: int) -> None:
        self.total = total

    def mixture(self, step: int) -> dict[str, float]:
        """The weights of the kinds: ``first_kinds`` alone at first, all of them later."""
        if step < self.first_share * self.total:
            return {k: w for k, w in self.mix.items() if k in self.first_kinds}
        return self.mix

    def pack(self, rng, shown, weights, count, world=SCENES) -> Described:
        """Questions about what a world shows, and the patches that describe it: of a frame of a video a few less."""
        most, background = (5, 4) if world.images == 1 else (3, 1)
        frames = [world.frames(item) for item in shown]
        rows = []
        for row in frames:
            patches: list[int] = []
            for number, scene in enumerate(row):
                for thing in scene.things:
                    rows_of, columns = patches_of(thing)
                    area = [r * GRID + c for r in range(*rows_of.indices(GRID)) for c in range(*columns.indices(GRID))]
                    chosen = [area[i] for i in rng.permutation(len(area))[: rng.integers(1, most)]]
                    patches += [number * GRID * GRID + p for p in chosen]
                patches += [number * GRID * GRID + int(p) for p in rng.integers(0, GRID * GRID, background)]
            rows.append(sorted(set(patches)))
        longest = max(map(len, rows))
        patch = np.full((len(rows), longest), -1, dtype=np.int64)
        for b, row in enumerate(rows):
            patch[b, : len(row)] = row
        index = torch.from_numpy(patch)
        labels = patch_labels([scene for row in frames for scene in row]).view(3, len(rows), -1)
        words = word_ids(labels).gather(2, index.clamp(min=0).expand(3, -1, -1))
        start = encode("<s> USER:")
        prefix = [*start, *encode("<image>") * longest]
        packed = pack(prefix, [world.ask(rng, item, count, dict(weights)) for item in shown], None)
        # Concepts stand at the positions of their patches, and questions where they stand behind the whole images.
        packed.inputs["position_ids"][:, len(start) : len(prefix)] = index.clamp(min=0) + len(start)
        packed.inputs["position_ids"][:, len(prefix) :] += GRID * GRID * world.images - longest
        packed.attention_mask[:, len(start) : len(prefix)] = (index >= 0).long()
        return packed, words, index.clamp(min=0) % (GRID * GRID)

    def batch(self, step: int, part: Part = WHOLE) -> Described:
        rng = scene_rng(self.seed, self.name, step)
        world = turn(self.worlds, step)
        shown = world.draw(rng, world.rows(self.batch_size), "train", False)
        packed, words, patch = self.pack(rng, shown, self.mixture(step), self.questions, world)
        rows = part.of(len(packed))
        return packed.rows(rows), words[:, rows], patch[rows]

    def weights(self, batch: Described) -> dict[str, float]:
        return {"answer": batch[0].answers}

    def tokens(self, batch: Described) -> int:
        return int(batch[0].attention_mask.sum())

    def hidden(self, batch: Described) -> Tensor:
        """Last hidden states ``[B, L, D]``, the concepts in the place of the prefix's image tokens."""
        packed, words, patch = batch
        decoder = self.model.model.language_model
        scene = concepts(decoder.embed_tokens.weight, words, self.places(patch))
        embedded = decoder.embed_tokens(packed.input_ids)
        start = len(encode("<s> USER:"))
        after = embedded[:, start + scene.shape[1] :]
        return decoder(
            inputs_embeds=torch.cat([embedded[:, :start], scene.to(embedded.dtype), after], 1),
            attention_mask=attention(packed),
            position_ids=packed.inputs["position_ids"],
            use_cache=False,
        ).last_hidden_state

    def losses(self, batch: Described) -> dict[str, Tensor]:
        return {"answer": answer_loss(self.model.lm_head, self.hidden(batch), batch[0].labels)}

    def validate(self) -> dict[str, float]:
        answers = lambda batch: (self.model.lm_head(self.hidden(batch)), None)  # noqa: E731
        return validated(self.pack, answers, self.device, self.worlds)


class AlignStage(SceneStage):
    """The projector alone: each patch towards the concept vector of what stands on it."""

    name = "align"

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        places: Places,
        seed: int,
        batch_size: int,
        worlds: Mapping[str, int],
    ):
        self.model, self.places, self.seed, self.batch_size, self.worlds = model, places, seed, batch_size, worlds

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.model.multi_modal_projector.named_parameters(prefix="projector")

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "places": self.places}

    def weights(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        return {"distance": _patch_weights(batch[1]).sum().item()}

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        pixels, labels = batch
        with torch.no_grad():
            patches = torch.arange(GRID * GRID, device=pixels.device).expand(len(pixels), -1)
            embedding = self.model.model.language_model.embed_tokens.weight
            target = concepts(embedding, word_ids(labels), self.places(patches))
            features = self.model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        error = (self.model.model.multi_modal_projector(features).float() - target).square().mean(-1)
        weight = _patch_weights(labels)
        return {"distance": (error * weight).sum() / weight.sum() / target.square().mean()}
