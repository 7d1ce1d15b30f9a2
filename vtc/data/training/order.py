"""Which samples a step reads: functions of (seed, step) alone, without state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np

from vtc.data.training.formats import KINDS
from vtc.errors import UserError, unknown

ROUNDS = 8


def shuffled(positions: np.ndarray, count: int, key: Sequence[int]) -> np.ndarray:
    """Where a permutation of range(count), fixed by `key`, takes these positions.

    A Feistel network with cycle walking (Black and Rogaway, 2002) rather than numpy's permutation: any position by
    itself, so that neither memory nor the time to start or resume grows with the data, and worker processes agree
    without having anything to share.

    Args:
        positions: [n] integers in 0 … count-1.
        key: whole numbers, e.g. (seed, epoch).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
    at = positions.astype(np.uint64)
    outside = np.ones(len(at), dtype=bool)
    while outside.any():
        left, right = at[outside] >> half, at[outside] & mask
        for k in keys:
            left, right = right, left ^ (_mixed(right + k) & mask)
        at[outside] = (left << half) | right
        outside = at >= count
    return at.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Mix:
    """The kind of every step, in fixed shares, spread as evenly as can be.

    Fwd2Bot, section 3.4: samples to which the same losses apply are grouped, "and the sampler aims for a 1:1 ratio
    between discriminative and autoregressive". A step of `both` is one of either side.

    Attributes:
        caption: share of the steps that are caption pairs.
        both: share of the other steps that are both.
    """

    caption: Fraction
    both: Fraction

    @classmethod
    def of(cls, counts: Mapping[str, int], weights: Mapping[str, Any] | None) -> Mix:
        """The mix that `data.mix` asks for, over what the data has.

        Args:
            counts: samples of each kind.
            weights: `{conversation: a, caption: d}` asks for a:d autoregressive to contrastive steps; 1:1 where None.
                Autoregressive steps are conversations and `both` in proportion to their numbers, so that every answer
                is read equally often; steps of `both` count for the contrastive side too, and caption pairs fill what
                is left of it. With a third weight, `both: b`, the three are the shares of the steps as they are.

        Raises:
            UserError: a kind that doesn't exist or that the data lacks, or a weight below 0.
        """
        shares = {kind: _fraction(kind, weight) for kind, weight in (weights or {}).items()}
        talk = counts["conversation"] + counts["both"]
        samples = {"conversation": talk, "caption": counts["caption"] + counts["both"], "both": counts["both"]}
        if "both" in shares:
            samples = dict(counts)
        for kind, weight in shares.items():
            if weight and not samples[kind]:
                raise UserError(f"training.data.mix.{kind}={weight}: the data has no samples of this kind")
        answers, pairs = shares.get("conversation", Fraction(not shares)), shares.get("caption", Fraction(not shares))
        answers, pairs = (answers if talk else Fraction(0)), (pairs if samples["caption"] else Fraction(0))
        if "both" in shares:
            both, talking = shares["both"], answers + shares["both"]
        else:
            both, talking = answers * Fraction(counts["both"], max(talk, 1)), answers
            pairs = max(pairs - both, Fraction(0)) if counts["caption"] else Fraction(0)
        if not talking + pairs:
            raise UserError(f"training.data.mix={dict(weights or {})}: leaves no step to train on")
        return cls(pairs / (talking + pairs), both / talking if talking else Fraction(0))

    def at(self, step: int) -> tuple[str, int]:
        """The kind of a step, and how many of that kind came before."""
        pairs = floor(step * self.caption)
        if floor((step + 1) * self.caption) > pairs:
            return "caption", pairs
        others = step - pairs
        both = floor(others * self.both)
        if floor((others + 1) * self.both) > both:
            return "both", both
        return "conversation", others - both


def _fraction(kind: str, weight: Any) -> Fraction:
    if kind not in KINDS:
        raise unknown("training.data.mix", kind, KINDS)
    try:
        fraction = Fraction(str(weight))
    except ValueError:
        fraction = Fraction(-1)
    if fraction < 0:
        raise UserError(f"training.data.mix.{kind}={weight}: a number of 0 or more")
    return fraction
