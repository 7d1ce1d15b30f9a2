"""The budgets of methods that stand one behind the other, on the way to what is left at the end.

`tokens` is what the last part leaves. A part without a budget of its own stands on a geometric line between what it
finds and the next budget that is set (of 144 → 16, the first of two leaves 48), at the nearest count that it offers.
Where no budget is set at all, each part takes its own default of what it finds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

from vtc.budget import listed
from vtc.declarations import Declared
from vtc.errors import UserError
from vtc.interface import Compressor
from vtc.methods.chain_ends import budgets_of
from vtc.registry import PART_BUDGETS, methods


class NotOffered(UserError):
    """The end that was asked for can't be reached."""


class Step(NamedTuple):
    """A part of a composition, under the key of its options; its `shape` is what the parts before it leave."""

    key: str
    part: Compressor

    @property
    def tokens(self) -> int:
        """What it leaves of an image."""
        return self.part.tokens or 0


class Budgeted(Compressor):
    """Parts with their budgets: what `vtc.methods.chain.Chain` is without what it does.

    Attributes:
        parts: the method of each part, by the key of its options.
    """

    parts: ClassVar[dict[str, str]] = {}

    @classmethod
    def declared_options(cls) -> dict[str, Declared]:
        return {key: Declared({}, f"options of {name}") for key, name in cls.parts.items()}

    def prepare(self) -> None:
        self.steps = list(self._steps(self.requested_tokens))
        self.tokens = self.steps[-1].tokens

    def offers(self) -> Sequence[int]:
        return [tokens for tokens in range(1, (self.shape.visual_tokens or 0) + 1) if self._reaches(tokens)]

    def _reaches(self, tokens: int) -> bool:
        try:
            return bool(list(self._steps(tokens)))
        except NotOffered:
            return False

    def _steps(self, tokens: int | None) -> Iterator[Step]:
        """The parts, made with their budgets, on the way to `tokens`.

        Raises:
            UserError: a part that can't leave what is asked of it (NotOffered where that hangs on `tokens`), that has
                no budget and no default, or that needs training.
        """
        for key in self.parts:
            if not isinstance(options := self.options.get(key, {}), Mapping):
                raise UserError(
                    f"method.{key}={options}: {key} is a part of {self.name}; its options are method.{key}.<option>=…"
                )
        budgets, ends = budgets_of(self.parts, self.options, self.shape, tokens)
        left = self.shape
        for n, (key, name) in enumerate(self.parts.items()):
            is_last, options = n == len(budgets) - 1, self.options.get(key, {})
            own = {k: v for k, v in options.items() if is_last or k not in PART_BUDGETS}
            exact = ends[n] or options.get("tokens") is not None
            choice = functools.partial(self._tokens_of, key, tokens, budgets[n:], exact, ends[n])
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
            if (smaller := part.leaves()) is not left:
                left = dataclasses.replace(smaller, name=f"{self.shape.name} after {key}")

    def _tokens_of(
        self, key: str, end: int | None, budgets: Sequence[float | None], exact: bool, ends: bool, part: Compressor
    ) -> int:
        """What a part leaves of an image.

        Args:
            end: what is to be left by the last part; None: each takes its default.
            budgets: of this part and those behind it, as far as they are set.
            exact: whether its own budget must be met, not only approached; ends: whether that is the end's.
        """
        shape, count = part.shape, budgets[0]
        if shape.visual_tokens is None:
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
            where = f"{shape.grid[0]}x{shape.grid[1]}" if shape.grid else "no grid any more"
            raise UserError(
                f"method={self.name}: {key} can do nothing with {shape.visual_tokens} visual tokens in {where}"
            )
        if count is None:
            ahead, goal = next((n, budget) for n, budget in enumerate(budgets, 1) if budget is not None)
            count = shape.visual_tokens * (goal / shape.visual_tokens) ** (1 / ahead)
        if not exact:
            return min(offers, key=lambda offer: (abs(offer - count), offer))
        if count not in offers:
            error = NotOffered if ends else UserError
            raise error(
                f"tokens={count}: {key} finds {shape.visual_tokens} visual tokens of {shape.name} and offers "
                f"{listed(offers)}"
            )
        return int(count)
