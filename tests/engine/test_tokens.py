"""The verbs of `TokenSequence` against lists of tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.interface import REGISTER, TEXT, VISUAL, TokenSequence

WIDTH = 3


def sequence(rows: list[list[int]], compact: bool = False) -> TokenSequence:
    """Rows of -1 (text) and 0, 1… (a visual token of that image), left-padded; hidden counts up from 0."""
    length = max(len(r) for r in rows)
    kind = torch.tensor([[-2] * (length - len(r)) + r for r in rows])
    mask = kind > -2
    count = torch.arange(kind.numel(), dtype=torch.float).view(*kind.shape, 1).expand(-1, -1, WIDTH)
    return TokenSequence(
        hidden=count.clone(),
        mask=mask,
        position=(mask.cumsum(1) - 1).clamp(min=0)[None],
        role=(kind >= 0) * VISUAL,
        origin=torch.arange(length).expand(len(rows), -1),
        block=torch.zeros_like(kind),
        image=kind.clamp(min=-1),
        compact=compact,
    )


def listed(tokens: TokenSequence, row: int) -> list[tuple[Any, ...]]:
    """(hidden, position, role, origin, image) of the real tokens of a row."""
    m = tokens.mask[row]
    parts = (tokens.hidden[row, :, 0], tokens.position[0, row], tokens.role[row], tokens.origin[row], tokens.image[row])
    return list(zip(*(p[m].tolist() for p in parts), strict=True))


LAYOUTS = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=0, max_size=3), min_size=1, max_size=3
).map(lambda rows: [[x for i, (text, n) in enumerate(r) for x in [-1] * text + [i] * n] + [-1] for r in rows])


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.booleans(), st.randoms(use_true_random=False))
def test_keep(rows, compact, random) -> None:
    tokens = sequence(rows, compact)
    kept = tokens.mask & torch.tensor([[random.random() < 0.6 for _ in r] for r in tokens.mask])
    out = tokens.keep(kept)
    for row in range(len(rows)):
        want = [t for t, k in zip(listed(tokens, row), kept[row][tokens.mask[row]].tolist(), strict=True) if k]
        got = listed(out, row)
        assert [(h, r, o, i) for h, _, r, o, i in got] == [(h, r, o, i) for h, _, r, o, i in want]
        places = [p for _, p, *_ in got]
        assert places == (list(range(len(got))) if compact else [p for _, p, *_ in want])
        if compact and out is not tokens:
            assert int(out.shift[row]) == len(got) - len(rows[row])
    assert tokens.keep(tokens.mask) is tokens


def test_keep_takes_indices_in_any_order() -> None:
    tokens = sequence([[-1, 0, 0, 0, -1]])
    assert listed(tokens.keep(torch.tensor([[4, 2, 0, 2]])), 0) == [t for t in listed(tokens, 0) if t[0] in (0, 2, 4)]


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.integers(1, 3))
def test_insert_goes_behind_each_image_and_moves_the_rest(rows, m) -> None:
    tokens = sequence(rows)
    index, _ = tokens.images
    added = 1000 + torch.arange(len(index) * m, dtype=torch.float).view(len(index), m, 1).expand(-1, -1, WIDTH)
    out, image = tokens.insert(added), 0
    for row, kinds in enumerate(rows):
        want, old = [], listed(tokens, row)
        for at, kind in enumerate(kinds):
            want.append(old[at])
            if kind >= 0 and (at + 1 == len(kinds) or kinds[at + 1] != kind):
                want += [(float(added[image, j, 0]), None, REGISTER, -1, kind) for j in range(m)]
                image += 1
        got = listed(out, row)
        assert [(h, r, o, i) for h, _, r, o, i in got] == [(h, r, o, i) for h, _, r, o, i in want]
        assert [p for _, p, *_ in got] == list(range(len(got)))
        if image:
            assert int(out.shift[row]) == len(got) - len(kinds)
    shared = tokens.insert(added[0] if len(added) else torch.zeros(m, WIDTH))
    assert torch.equal(shared.mask, out.mask) and torch.equal(shared.position, out.position)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.integers(1, 3))
def test_replace_leaves_a_sequence_that_never_had_more(rows, m) -> None:
    tokens = sequence(rows)
    index, _ = tokens.images
    new = 1000 + torch.arange(len(index) * m, dtype=torch.float).view(len(index), m, 1).expand(-1, -1, WIDTH)
    out = tokens.replace(new)
    if not len(index):
        return
    for row, kinds in enumerate(rows):
        got, images = listed(out, row), len({k for k in kinds if k >= 0})
        assert [p for _, p, *_ in got] == list(range(len(got)))
        assert sum(r == VISUAL for _, _, r, _, _ in got) == m * images
        assert [h for h, _, r, _, _ in got if r == TEXT] == [h for h, _, r, _, _ in listed(tokens, row) if r == TEXT]
        assert int(out.shift[row]) == len(got) - len(kinds)
    assert sorted(out.hidden[..., 0][out.visual].tolist()) == new[..., 0].flatten().tolist()


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_merge_is_the_weighted_mean_at_the_place_of_the_first(rows, compact, weighted, random) -> None:
    tokens = sequence(rows, compact)
    groups = torch.tensor([[random.randint(-1, 2) for _ in r] for r in tokens.mask])
    groups = torch.where(tokens.visual, groups, -1)
    weights = torch.tensor([[random.random() + 0.1 for _ in r] for r in tokens.mask]) if weighted else None
    out = tokens.merge(groups, weights)
    for row in range(len(rows)):
        want, seen = [], set()
        for at in tokens.mask[row].nonzero()[:, 0].tolist():
            g = int(groups[row, at])
            if g in seen:
                continue
            members = (groups[row] == g).nonzero()[:, 0].tolist() if g >= 0 else [at]
            seen |= {g} if g >= 0 else set()
            w = [float(weights[row, j]) if weighted and g >= 0 else 1.0 for j in members]
            mean = sum(x * float(tokens.hidden[row, j, 0]) for x, j in zip(w, members, strict=True)) / sum(w)
            want.append((mean, sum(int(tokens.position[0, row, j]) for j in members) // len(members)))
        got = listed(out, row)
        assert [h for h, *_ in got] == pytest.approx([h for h, _ in want], rel=1e-5)
        assert [p for _, p, *_ in got] == (list(range(len(want))) if compact else [p for _, p in want])


def test_images_next_to_each_other_stay_apart() -> None:
    tokens = sequence([[-1, 0, 0, 1, 1, 1, -1], [0, 0, -1]])
    index, real = tokens.images
    assert real.sum(1).tolist() == [2, 3, 2]
    assert [
        [i for i, r in zip(a, b, strict=True) if r] for a, b in zip(index.tolist(), real.tolist(), strict=True)
    ] == [
        [1, 2],
        [3, 4, 5],
        [11, 12],
    ]


def test_gradients_go_through_the_verbs() -> None:
    tokens = sequence([[-1, 0, 0, 0, 0, -1], [0, 0, 0, 0, -1]])
    tokens.hidden = tokens.hidden.double().requires_grad_()
    new = torch.randn(2, 2, WIDTH, dtype=torch.double, requires_grad=True)

    def run(hidden, new):
        t = dataclasses.replace(tokens, hidden=hidden).insert(new)
        return t.keep(t.role != VISUAL).hidden, t.replace(new * 2).hidden

    assert torch.autograd.gradcheck(run, (tokens.hidden, new))
