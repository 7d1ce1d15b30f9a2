"""Methods one after the other, each with a budget of its own: `method=[visionzip,fastv] tokens=[36,16]`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vtc.budget import listed
from vtc.errors import UserError
from vtc.interface import REGISTER, VISUAL, Compressor, Context, SelfCompressor, TokenSequence, TowerUse
from vtc.registry import methods, parts

if TYPE_CHECKING:
    from vtc.interface import BackboneShape
    from vtc.interface.backbone import AttachableBackbone


class Step(NamedTuple):
    """A part, the sizes that it finds, and the tokens per image that it leaves.

    Attributes:
        key: of its options.
    """

    key: str
    method: Any  # its class
    tokens: int
    shape: BackboneShape
    options: dict[str, Any]


class Chain(Compressor):
    """Each part compresses what the one before it has left, in the order given.

    Whatever a part leaves of an image, merged or made tokens among them, are the visual tokens of the next. A part acts
    before no earlier layer than its predecessor; one that reads attention must read it where the predecessor is done.
    The vision tower is shared: what the parts ask of it is put together, and a part that reads or changes it patch by
    patch finds the patches as they are only where nothing has chosen among them before.

    Budgets: `tokens` is what is left at the end, by the last part. A part without a budget of its own stands on a
    geometric line between what it finds and the next budget that is given (of 144 → 16, the first of two leaves 48),
    at the nearest count that it offers. Where no budget is given at all, each part takes its own default of what it
    finds.

    Methods that need training are refused: their weights are for whole images, and alone with the LLM.

    Args:
        options: for each part by its key, the options of its method, and but for the last `tokens` or `ratio` (of the
            backbone's visual tokens).
    """

    parts: ClassVar[dict[str, str]] = {}  # key → method

    def __init__(self, tokens: int | None, shape: BackboneShape, **options: Mapping[str, Any]) -> None:
        super().__init__(tokens, shape)
        made = list(self.made(tokens, shape, options))
        self.steps, self.members = [step for step, _ in made], nn.ModuleList(part for _, part in made)
        self.tokens = self.steps[-1].tokens
        self.reads_prompt = any(part.reads_prompt for part in self)
        self.across_images = any(part.across_images for part in self)
        self.tower()

    def __iter__(self) -> Iterator[Compressor]:
        for part in self.members:
            assert isinstance(part, Compressor)
            yield part

    # -- what the engine asks
    def layers(self) -> set[int]:
        return set().union(*(part.layers() for part in self))

    def probes(self) -> set[int]:
        return set().union(*(part.probes() for part in self))

    def tower(self) -> TowerUse | None:
        asked = {step.key: use for step, part in zip(self.steps, self, strict=True) if (use := part.tower())}
        return together(self.name, asked) if asked else None

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        for step, part in zip(self.steps, self, strict=True):
            if layer not in part.layers():
                continue
            if layer == min(part.layers()) and step is not self.steps[0]:
                tokens = all_visual(tokens)
            tokens = part.reduce(tokens, layer, self.seen_by(step, context))
        return tokens

    def seen_by(self, step: Step, context: Context) -> Context:
        """What a part sees: the sizes that it finds, and notes of its own."""
        own = {"shape": step.shape, "memo": context.memo.setdefault(step.key, {})}
        if step.shape is not self.shape:
            own |= {"grids": [step.shape.grid] * len(context.grids), "features": ()}
        return dataclasses.replace(context, **own)

    def described(self) -> list[dict[str, Any]]:
        """Each part with its budget and where it acts, for the result file."""
        return [
            {"name": self.parts[step.key], "key": step.key, "tokens": step.tokens, "layers": sorted(part.layers())}
            for step, part in zip(self.steps, self, strict=True)
        ]

    # -- training
    def set_stage(self, step: int, total: int) -> None:
        for part in self:
            part.set_stage(step, total)

    def losses(self, context: Context) -> dict[str, Tensor]:
        return {
            f"{step.key}.{name}": loss
            for step, part in zip(self.steps, self, strict=True)
            for name, loss in part.losses(self.seen_by(step, context)).items()
        }

    def attach(self, backbone: AttachableBackbone) -> None:
        for part in self:
            part.attach(backbone)

    # -- budgets, without weights
    @classmethod
    def offers(cls, shape: BackboneShape, **options: Any) -> Sequence[int]:
        counts = []
        for tokens in range(1, (shape.visual_tokens or 0) + 1):
            try:
                list(cls.path(tokens, shape, options))
            except NotOffered:
                continue
            counts.append(tokens)
        return counts

    @classmethod
    def layer_tokens(cls, tokens: int | None, shape: BackboneShape, **options: Any) -> list[int]:
        counts = [shape.visual_tokens or 0] * shape.depth
        for step, part in cls.made(tokens, shape, options):
            start = min(part.layers(), default=shape.depth)
            counts[start:] = step.method.layer_tokens(step.tokens, step.shape, **step.options)[start:]
        return counts

    @classmethod
    def path(cls, tokens: int | None, shape: BackboneShape, options: Mapping[str, Mapping[str, Any]]) -> Iterator[Step]:
        """The parts with their budgets, on the way to `tokens`.

        Raises:
            UserError: a part that can't leave what was asked of it (NotOffered where that hangs on `tokens`), or that
                has no budget and no default.
        """
        wanted = [_asked(options.get(key, {}), shape) for key in cls.parts][:-1] + [tokens]
        left = shape
        for n, (key, name) in enumerate(cls.parts.items()):
            method = methods.get(name)
            own = {
                k: v for k, v in options.get(key, {}).items() if n == len(wanted) - 1 or k not in ("tokens", "ratio")
            }
            exact = n == len(wanted) - 1 or options.get(key, {}).get("tokens") is not None
            count = wanted[n]
            if left.visual_tokens is None:
                if count is None or not exact:
                    raise UserError(
                        f"method={cls.name}: {shape.name} has no fixed number of visual tokens; give each part a "
                        "budget, tokens=[…]"
                    )
            elif count is None and tokens is None:
                count = method.default_tokens(left, **own)
                if not count:
                    raise UserError(f"method={cls.name}: {key} has no budget of its own; give tokens= or ratio=")
            else:
                offers = method.offers(left, **own)
                if not offers:
                    where = f"{left.grid[0]}x{left.grid[1]}" if left.grid else "no grid any more"
                    raise UserError(
                        f"method={cls.name}: {key} can do nothing with {left.visual_tokens} visual tokens in {where}"
                    )
                if count is None:
                    ahead = next(i for i, w in enumerate(wanted[n:], 1) if w is not None)
                    goal = wanted[n + ahead - 1]
                    assert goal is not None
                    count = left.visual_tokens * (goal / left.visual_tokens) ** (1 / ahead)
                if not exact:
                    count = min(offers, key=lambda offer: (abs(offer - count), offer))
                elif count not in offers:
                    error = UserError if n < len(wanted) - 1 else NotOffered
                    raise error(
                        f"tokens={count}: {key} finds {left.visual_tokens} visual tokens of {left.name} and offers "
                        f" {listed(offers)}"
                    )
            yield Step(key, method, int(count), left, own)
            was, left = left, method.leaves(int(count), left, **own)
            if left is not was:
                left = dataclasses.replace(left, name=f"{shape.name} after {key}")

    @classmethod
    def made(
        cls, tokens: int | None, shape: BackboneShape, options: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[Step, Compressor]]:
        """The parts, built.

        Raises:
            UserError: as `path`; a part that needs training, or whose place in the order it can't work in.
        """
        until, acted, uneven = 0, "", ""
        for step in cls.path(tokens, shape, options):
            try:
                part: Any = step.method(tokens=step.tokens, shape=step.shape, **step.options)
            except UserError as error:
                text = str(error).replace("method.", f"method.{step.key}.", 1)
                early = acted and text.startswith("method=")
                raise UserError(f"{text}; put {step.key} first" if early else text) from None
            part.name = cls.parts[step.key]
            first = min(part.layers(), default=until)
            if part.needs_training or isinstance(part, SelfCompressor):
                raise UserError(
                    f"method={cls.name}: {part.name} needs training, and its weights are for whole images; "
                    "allowed in a composition: methods without"
                )
            if first < until:
                raise UserError(
                    f"method={cls.name}: {step.key} acts before layer {first} (of {shape.depth}), {acted} before it in "
                    f"the order only at layer {until}; put {step.key} first, or set method.{step.key}.layer"
                )
            if acted and any(layer < until for layer in part.probes()):
                raise UserError(
                    f"method={cls.name}: {step.key} reads attention of layer {min(part.probes())} (of {shape.depth}), "
                    f"and {acted} changes the tokens behind it, at layer {until}; set method.{step.key}.layer later"
                )
            if part.tower() is not None and _patches(step.shape) != _patches(shape):
                raise UserError(
                    f"method={cls.name}: {step.key} reads the vision tower patch by patch, and {acted} has already "
                    f"chosen among the patches; put {step.key} first"
                )
            if uneven:
                raise UserError(
                    f"method={cls.name}: {uneven} leaves images of one row with different numbers of tokens, and "
                    f"{step.key} has a budget for each image; put {uneven} last"
                )
            uneven = step.key if part.across_images else ""
            if part.layers():
                until, acted = max(part.layers()), step.key
            yield step, part


class NotOffered(UserError):
    """The end that was asked for can't be reached."""


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


def together(name: str, asked: Mapping[str, TowerUse]) -> TowerUse:
    """What the parts of `name` ask of the tower, as one: sets are united, of everything else one part may ask.

    Raises:
        UserError: two parts that ask for different things.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(TowerUse):
        nothing = getattr(TowerUse(), field.name)
        values = {key: getattr(use, field.name) for key, use in asked.items()}
        values = {key: v for key, v in values.items() if v is not nothing and (nothing is None or v != nothing)}
        if isinstance(nothing, frozenset):
            found[field.name] = nothing.union(*values.values())
        elif any(v is not [*values.values()][0] for v in values.values()):
            raise UserError(f"method={name}: {' and '.join(values)} both set the vision tower's {field.name}")
        elif values:
            found[field.name] = [*values.values()][0]
    return TowerUse(**found)


def _asked(options: Mapping[str, Any], shape: BackboneShape) -> float | None:
    """The budget of an earlier part; a ratio as the number of tokens that it comes to."""
    if options.get("ratio") is not None and shape.visual_tokens is not None:
        return options["ratio"] * shape.visual_tokens
    return options.get("tokens")


def _patches(shape: BackboneShape) -> float | None:
    """Visual tokens for each patch of the tower; None where one of the two isn't known."""
    if shape.visual_tokens is None:
        return None
    return shape.visual_tokens / shape.vision.grid_side**2
