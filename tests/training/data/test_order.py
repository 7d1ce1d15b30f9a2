"""The order of samples and of kinds: permutations without state, and shares that hold from any step on."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from vtc.data.training.order import Mix, shuffled
from vtc.errors import UserError


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_of_any_size(count: int) -> None:
    everywhere = shuffled(np.arange(count), count, (3, 1))
    assert sorted(everywhere) == list(range(count))
    some = np.arange(count)[::2]
    assert (shuffled(some, count, (3, 1)) == everywhere[some]).all(), "a position depends on itself alone"


def test_keys_give_unlike_orders_and_no_place_is_favoured() -> None:
    count, keys = 10, 4000
    places = np.array([shuffled(np.arange(count), count, (key, 0)) for key in range(keys)])
    for position in range(count):
        seen = np.bincount(places[:, position], minlength=count)
        chi2 = ((seen - keys / count) ** 2 / (keys / count)).sum()
        assert chi2 < 40, (position, seen)  # 9 degrees of freedom: p < 1e-5
    long = shuffled(np.arange(50_000), 50_000, (0, 0))
    assert abs(np.corrcoef(long, np.arange(50_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(long[1:], long[:-1])[0, 1]) < 0.02
    assert not (long == shuffled(np.arange(50_000), 50_000, (0, 1))).mean() > 0.001


def counts(conversation: int = 0, caption: int = 0, both: int = 0) -> dict[str, int]:
    return {"conversation": conversation, "caption": caption, "both": both}


@pytest.mark.parametrize(
    ("there", "weights", "shares"),
    [
        (counts(10, 90), None, (1 / 2, 1 / 2, 0)),  # 1:1 whatever their numbers
        (counts(10, 90), {"conversation": 3, "caption": 1}, (3 / 4, 1 / 4, 0)),
        (counts(10, 90), {"conversation": 1, "caption": 0.5}, (2 / 3, 1 / 3, 0)),
        (counts(30, 50, 10), None, (3 / 7, 3 / 7, 1 / 7)),  # 4/7 autoregressive, 4/7 contrastive
        (counts(0, 50, 10), None, (0, 0, 1)),  # one step is both sides
        (counts(30, 0, 10), None, (3 / 4, 0, 1 / 4)),  # nothing else is contrastive
        (counts(30, 50, 10), {"conversation": 1, "caption": 1, "both": 2}, (1 / 4, 1 / 4, 1 / 2)),
        (counts(30, 50, 10), {"caption": 1}, (0, 1, 0)),
        (counts(30), None, (1, 0, 0)),
        (counts(0, 50), None, (0, 1, 0)),
    ],
)
def test_shares_of_the_kinds(there: dict[str, int], weights: dict | None, shares: tuple[float, float, float]) -> None:
    mix = Mix.of(there, weights)
    steps = 420
    seen: Counter = Counter()
    for step in range(steps):
        kind, before = mix.at(step)
        assert before == seen[kind], "how many of its kind came before"
        seen[kind] += 1
        for name, share in zip(("conversation", "caption", "both"), shares, strict=True):
            assert abs(seen[name] - share * (step + 1)) < 2, "spread evenly"
    assert [seen[k] for k in ("conversation", "caption", "both")] == pytest.approx([s * steps for s in shares], abs=1)


def test_shares_are_exact_far_away() -> None:
    mix = Mix.of(counts(1, 1), {"conversation": 0.1, "caption": 0.2})
    assert mix.caption == Fraction(2, 3)
    assert mix.at(3 * 10**15 - 1) == ("caption", 2 * 10**15 - 1)


@pytest.mark.parametrize(
    ("there", "weights", "says"),
    [
        (counts(3), {"captions": 1}, "did you mean 'caption'"),
        (counts(3), {"conversation": 1, "caption": 1}, "mix.caption=1: the data has no samples"),
        (counts(3, 3), {"conversation": -1}, "a number of 0 or more"),
        (counts(3, 3), {"conversation": "many"}, "a number of 0 or more"),
        (counts(3, 3), {"conversation": 0}, "leaves no step"),
    ],
)
def test_a_mix_that_cannot_be(there: dict[str, int], weights: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Mix.of(there, weights)
