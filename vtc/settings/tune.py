"""Settings of `action=tune`: the cheapest setting of a method that keeps the score."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.allowed import SHARE, Allowed, one_of, whole
from vtc.identity import NOTHING, setting
from vtc.settings.run import NAMES, fill, several_of

PRICES = {
    "flops": "prefill FLOPs",
    "tokens": "visual tokens left",
    "layer_tokens": "visual tokens, mean over the layers",
}  # what a setting may cost, and what it is called


@dataclass(frozen=True)
class TuneSettings:
    """What is looked for, and among what.

    Attributes:
        space: what `key=a,b,c` says: words with the values that each key may take.
        retained: share of the uncompressed score that is to be kept, at least.
        price: what is to be as low as possible.
        trials: settings that are scored, at most; where there are no more than these all are.
    """

    space: tuple[str, ...] | None = setting(None, NOTHING, Allowed(NAMES.words, NAMES.accepts, optional=True))
    retained: float = setting(0.95, NOTHING, SHARE)
    price: str = setting("flops", NOTHING, one_of(*PRICES))
    trials: int = setting(20, NOTHING, whole(1, 10_000))

    def __post_init__(self) -> None:
        fill(self, space=several_of(self.space))
