"""Methods one after the other, each with a budget of its own: `method=[visionzip,fastv] tokens=[36,16]`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vtc.interface import AttachableBackbone, Captions, Compressor, Context, OwnPass, TowerUse
from vtc.interface.tokens import REGISTER, VISUAL, TokenSequence
from vtc.methods.chain_budgets import Budgeted, Step
from vtc.methods.chain_order import check_order, together
from vtc.registry import methods, parts


class Chain(Budgeted):
    """Each part compresses what the one before it has left, in the order given.

    Whatever a part leaves of an image, merged or new tokens among them, are the visual tokens of the next. A part acts
    before no earlier layer than its predecessor; one that reads attention must read it where the predecessor is done.
    The vision tower is shared: what the parts ask of it is put together, and a part that reads or changes it patch by
    patch finds the patches as they are only where nothing has chosen among them before.

    Methods that need training are refused: their weights are for whole images, and alone with the LLM.

    Args:
        options: for each part by its key, the options of its method, and but for the last `tokens` or `ratio` (of the
            backbone's visual tokens).
    """

    def prepare(self) -> None:
        super().prepare()
        check_order(self.name, self.steps, self.shape)
        self.reads_prompt = any(part.reads_prompt for part in self)
        self.across_images = any(part.across_images for part in self)
        self.repairs = any(part.repairs for part in self)
        self.tower()

    def make_parameters(self) -> None:
        self.members = nn.ModuleList(part.build() for part in self)

    def lacking(self) -> str | None:
        return next((said for part in self if (said := part.lacking())), None)

    def __iter__(self) -> Iterator[Compressor]:
        return (step.part for step in self.steps)

    # -- what the engine asks
    def layers(self) -> set[int]:
        return set().union(*(part.layers() for part in self))

    def probes(self) -> set[int]:
        return set().union(*(part.probes() for part in self))

    def tower(self) -> TowerUse | None:
        uses = {key: use for key, part in self.steps if (use := part.tower())}
        return together(self.name, uses) if uses else None

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        for step in self.steps:
            if layer not in step.part.layers():
                continue
            if layer == min(step.part.layers()) and step is not self.steps[0]:
                tokens = all_visual(tokens)
            tokens = step.part.reduce(tokens, layer, self.seen_by(step, context))
        return tokens

    def seen_by(self, step: Step, context: Context) -> Context:
        """What a part sees: the sizes that it finds, and notes of its own."""
        own = {"shape": step.part.shape, "memo": context.memo.setdefault(step.key, {})}
        if step.part.shape is not self.shape:
            own |= {"grids": [step.part.shape.grid] * len(context.grids), "features": ()}
        return dataclasses.replace(context, **own)

    def described(self) -> list[dict[str, Any]]:
        """Each part with its budget and where it acts, for the result file."""
        return [
            {"name": self.parts[key], "key": key, "tokens": part.tokens, "layers": sorted(part.layers())}
            for key, part in self.steps
        ]

    # -- training
    def set_stage(self, step: int, total: int) -> None:
        for part in self:
            part.set_stage(step, total)

    def losses(self, context: Context, captions: Captions | None = None) -> dict[str, Tensor]:
        return {
            f"{step.key}.{name}": loss
            for step in self.steps
            for name, loss in step.part.losses(self.seen_by(step, context), captions).items()
        }

    def attach(self, backbone: AttachableBackbone) -> None:
        for part in self:
            part.attach(backbone)

    def own_passes(self, visual: float, text: int) -> list[OwnPass]:
        return [one for part in self for one in part.own_passes(part.shape.visual_tokens or visual, text)]

    def own_flops(self, text: int) -> float:
        return sum(part.own_flops(text) for part in self)

    def layer_tokens(self) -> list[int]:
        counts = [self.shape.visual_tokens or 0] * self.shape.depth
        for part in self:
            start = min(part.layers(), default=self.shape.depth)
            counts[start:] = part.layer_tokens()[start:]
        return counts


@functools.cache
def chain(name: str) -> type[Chain]:
    """The class of methods put together, `chain("visionzip+fastv")`.

    Raises:
        UserError: an unknown part.
    """
    members = parts(name)
    for part in members.values():
        methods.get(part)
    return type(Chain.__name__, (Chain,), {"name": name, "parts": members, "__module__": __name__})


def all_visual(tokens: TokenSequence) -> TokenSequence:
    """Tokens that a method made of an image count as its visual tokens."""
    if not (tokens.role == REGISTER).any():
        return tokens
    return dataclasses.replace(tokens, role=tokens.role.masked_fill(tokens.role == REGISTER, VISUAL))
