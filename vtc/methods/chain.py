"""Methods one after the other, each with a budget of its own: `method=[visionzip,fastv] tokens=[36,16]`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vtc.budget import listed
from vtc.declarations import Declared
from vtc.errors import UserError
from vtc.interface import REGISTER, VISUAL, Compressor, Context, TokenSequence, TowerUse
from vtc.registry import PART_BUDGETS, methods, parts

if TYPE_CHECKING:
    from vtc.interface import BackboneShape
    from vtc.interface.backbone import AttachableBackbone
    from vtc.interface.self_compressor import Captions


class Step(NamedTuple):
    """A part of a composition, under the key of its options; its `shape` is what the parts before it leave."""

    key: str
    part: Compressor

    @property
    def tokens(self) -> int:
        """What it leaves of an image."""
        return self.part.tokens or 0


class Chain(Compressor):
    """Each part compresses what the one before it has left, in the order given.

    Whatever a part leaves of an image, merged or new tokens among them, are the visual tokens of the next. A part acts
    before no earlier layer than its predecessor; one that reads attention must read it where the predecessor is done.
    The vision tower is shared: what the parts ask of it is put together, and a part that reads or changes it patch by
    patch finds the patches as they are only where nothing has chosen among them before.

    Budgets: `tokens` is what is left at the end, by the last part. A part without a budget of its own stands on a
    geometric line between what it finds and the next budget that is set (of 144 → 16, the first of two leaves 48),
    at the nearest count that it offers. Where no budget is set at all, each part takes its own default of what it
    finds.

    Methods that need training are refused: their weights are for whole images, and alone with the LLM.

    Args:
        options: for each part by its key, the options of its method, and but for the last `tokens` or `ratio` (of the
            backbone's visual tokens).
    """

    parts: ClassVar[dict[str, str]] = {}  # key → method

    @classmethod
    def declared_options(cls) -> dict[str, Declared]:
        return {key: Declared({}, f"options of {name}") for key, name in cls.parts.items()}

    def prepare(self) -> None:
        self.steps = list(self._steps(self.requested_tokens))
        self.tokens = self.steps[-1].tokens
        _check_order(self.name, self.steps, self.shape)
        self.reads_prompt = any(part.reads_prompt for part in self)
        self.across_images = any(part.across_images for part in self)
        self.tower()

    def make_parameters(self) -> None:
        self.members = nn.ModuleList(part.build() for part in self)

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

    # -- budgets
    def offers(self) -> Sequence[int]:
        return [tokens for tokens in range(1, (self.shape.visual_tokens or 0) + 1) if self._reaches(tokens)]

    def _reaches(self, tokens: int) -> bool:
        try:
            return bool(list(self._steps(tokens)))
        except NotOffered:
            return False

    def layer_tokens(self) -> list[int]:
        counts = [self.shape.visual_tokens or 0] * self.shape.depth
        for part in self:
            start = min(part.layers(), default=self.shape.depth)
            counts[start:] = part.layer_tokens()[start:]
        return counts

    def _steps(self, tokens: int | None) -> Iterator[Step]:
        """The parts, made with their budgets, on the way to `tokens`.

        Raises:
            UserError: a part that can't leave what is asked of it (NotOffered where that hangs on `tokens`), that has
                no budget and no default, or that needs training.
        """
        budgets = [_budget(self.options.get(key, {}), self.shape) for key in self.parts][:-1] + [tokens]
        left = self.shape
        for n, (key, name) in enumerate(self.parts.items()):
            is_last, options = n == len(budgets) - 1, self.options.get(key, {})
            if not isinstance(options, Mapping):
                raise UserError(
                    f"method.{key}={options}: {key} is a part of {self.name}; its options are method.{key}.<option>=…"
                )
            own = {k: v for k, v in options.items() if is_last or k not in PART_BUDGETS}
            exact = is_last or options.get("tokens") is not None
            choice = functools.partial(self._tokens_of, key, tokens, budgets[n:], exact)
            try:
                part = methods.get(name)(choice, left, **own)
            except NotOffered:
                raise
            except UserError as error:
                text = str(error).replace("method.", f"method.{key}.", 1)
                early = n and text.startswith("method=") and not text.startswith(f"method={self.name}:")
                raise UserError(f"{text}; put {key} first" if early else text) from None
            part.name = name
            if part.needs_training or part.learns_from_captions:
                raise UserError(
                    f"method={self.name}: {name} needs training, and its weights are for whole images; "
                    "allowed in a composition: methods without"
                )
            yield Step(key, part)
            found, left = left, part.leaves()
            if left is not found:
                left = dataclasses.replace(left, name=f"{self.shape.name} after {key}")

    def _tokens_of(
        self, key: str, end: int | None, budgets: Sequence[float | None], exact: bool, part: Compressor
    ) -> int:
        """What a part leaves of an image.

        Args:
            end: what is to be left by the last part; None: each takes its default.
            budgets: of this part and those behind it, as far as they are set.
            exact: whether its own budget must be met, not only approached.
        """
        found, count = part.shape, budgets[0]
        if found.visual_tokens is None:
            if count is None or not exact:
                raise UserError(
                    f"method={self.name}: {self.shape.name} has no fixed number of visual tokens; give each part a "
                    "budget, tokens=[…]"
                )
            part.offers()  # a part that can't do without one says so
            return int(count)
        if count is None and end is None:
            count = part.default_tokens()
            if not count:
                raise UserError(f"method={self.name}: {key} has no budget of its own; give tokens= or ratio=")
            return int(count)
        offers = part.offers()
        if not offers:
            where = f"{found.grid[0]}x{found.grid[1]}" if found.grid else "no grid any more"
            raise UserError(
                f"method={self.name}: {key} can do nothing with {found.visual_tokens} visual tokens in {where}"
            )
        if count is None:
            ahead, goal = next((n, budget) for n, budget in enumerate(budgets, 1) if budget is not None)
            count = found.visual_tokens * (goal / found.visual_tokens) ** (1 / ahead)
        if not exact:
            return min(offers, key=lambda offer: (abs(offer - count), offer))
        if count not in offers:
            error = NotOffered if len(budgets) == 1 else UserError
            raise error(
                f"tokens={count}: {key} finds {found.visual_tokens} visual tokens of {found.name} and offers "
                f" {listed(offers)}"
            )
        return int(count)


class NotOffered(UserError):
    """The end that was asked for can't be reached."""


def _check_order(name: str, steps: Sequence[Step], shape: BackboneShape) -> None:
    """Refuses parts that can't work at their place.

    Raises:
        UserError: a part that acts before its predecessor, reads what the predecessor changes, or shares a row's budget
            out and isn't the last.
    """
    until, acted, uneven = 0, "", ""
    for key, part in steps:
        first = min(part.layers(), default=until)
        if first < until:
            raise UserError(
                f"method={name}: {key} acts before layer {first} (of {shape.depth}), {acted} before it in the order "
                f"only at layer {until}; put {key} first, or set method.{key}.layer"
            )
        if acted and any(layer < until for layer in part.probes()):
            raise UserError(
                f"method={name}: {key} reads attention of layer {min(part.probes())} (of {shape.depth}), "
                f"and {acted} changes the tokens behind it, at layer {until}; set method.{key}.layer later"
            )
        if part.tower() is not None and _patches(part.shape) != _patches(shape):
            raise UserError(
                f"method={name}: {key} reads the vision tower patch by patch, and {acted} has already "
                f"chosen among the patches; put {key} first"
            )
        if uneven:
            raise UserError(
                f"method={name}: {uneven} leaves images of one row with different numbers of tokens, and "
                f"{key} has a budget for each image; put {uneven} last"
            )
        uneven = key if part.across_images else ""
        if part.layers():
            until, acted = max(part.layers()), key


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


def together(name: str, uses: Mapping[str, TowerUse]) -> TowerUse:
    """What the parts of `name` ask of the tower, as one: sets are united, of everything else one part may ask.

    Raises:
        UserError: two parts that ask for different things.
    """
    union: dict[str, Any] = {}
    for field in dataclasses.fields(TowerUse):
        nothing = getattr(TowerUse(), field.name)
        values = {key: getattr(use, field.name) for key, use in uses.items()}
        values = {key: v for key, v in values.items() if v is not nothing and (nothing is None or v != nothing)}
        if isinstance(nothing, frozenset):
            union[field.name] = nothing.union(*values.values())
        elif any(v is not [*values.values()][0] for v in values.values()):
            raise UserError(f"method={name}: {' and '.join(values)} both set the vision tower's {field.name}")
        elif values:
            union[field.name] = [*values.values()][0]
    return TowerUse(**union)


def _budget(options: Mapping[str, Any], shape: BackboneShape) -> float | None:
    """The budget of an earlier part; a ratio as the number of tokens that it comes to."""
    if not isinstance(options, Mapping):
        return None
    if options.get("ratio") is not None and shape.visual_tokens is not None:
        return options["ratio"] * shape.visual_tokens
    return options.get("tokens")


def _patches(shape: BackboneShape) -> float | None:
    """Visual tokens for each patch of the tower; None where their number isn't known."""
    return None if shape.visual_tokens is None else shape.visual_tokens / shape.vision.grid_side**2
