"""The verbs of `TokenSequence` where positions are places in a grid (M-RoPE), and where the decoder adds something more
to a token behind its first layers (deepstack).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vtc.interface import REGISTER, TEXT, VISUAL, TokenSequence


def in_grids(rows: list[list[Any]], width: int = 4, seed: int = 0, deep: int = 0) -> tuple[TokenSequence, list[int]]:
    """Left-padded rows of parts, with the positions of M-RoPE: a number is so many words, (t, h, w) an image of h × w
    tokens or a video of t frames of them, which all begin at one place. And the position of each row's next token.
    """
    made, nexts = [], []
    for parts in rows:
        place, role, image, at, images = [], [], [], 0, 0
        for part in parts:
            if isinstance(part, int):
                place += [(at + i,) * 3 for i in range(part)]
                role, image, at = role + [TEXT] * part, image + [-1] * part, at + part
                continue
            t, h, w = part
            place += [(at + 5 * f, at + y, at + x) for f in range(t) for y in range(h) for x in range(w)]
            role, image = role + [VISUAL] * t * h * w, image + [images + f for f in range(t) for _ in range(h * w)]
            at, images = at + max(h, w), images + t
        made.append((place, role, image))
        nexts.append(at)
    length = max(len(role) for _, role, _ in made)

    def padded(values: list[Any], fill: Any) -> list[Any]:
        return [fill] * (length - len(values)) + values

    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([padded([True] * len(role), False) for _, role, _ in made])
    return TokenSequence(
        hidden=torch.randn(len(rows), length, width, generator=generator),
        mask=mask,
        position=torch.tensor([padded(place, (0, 0, 0)) for place, _, _ in made]).permute(2, 0, 1),
        role=torch.tensor([padded(role, TEXT) for _, role, _ in made]),
        origin=torch.arange(length).expand(len(rows), -1),
        block=torch.zeros(len(rows), length, dtype=torch.long),
        image=torch.tensor([padded(image, -1) for _, _, image in made]),
        deep=torch.randn(len(rows), length, deep, width, generator=generator) if deep else None,
    ), nexts


GRIDS = [
    [[3, (1, 2, 3), 2, (1, 4, 1), 2], [2, (1, 3, 3), 4]],
    [[2, (3, 2, 2), 1], [(1, 2, 2), 5, (2, 3, 2), (1, 1, 1), 3], [7]],
]


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("rows", GRIDS, ids=str)
def test_in_a_grid_replaced_images_leave_a_plain_line_of_text(rows: list, m: int) -> None:
    """With every image replaced, positions count the tokens, along all axes alike, and so does what comes next."""
    given, nexts = in_grids(rows)
    new = torch.randn(len(given.images[0]), m, 4)
    left = given.replace(new)
    assert left.shift is not None
    for r, parts in enumerate(rows):
        images = sum(part[0] for part in parts if not isinstance(part, int))
        count = sum(part for part in parts if isinstance(part, int)) + m * images
        real = left.mask[r]
        assert int(real.sum()) == count
        assert (left.position[:, r, real] == torch.arange(count)).all()
        assert nexts[r] + int(left.shift[r]) == count
    assert torch.equal(left.visual_hidden(), new)


@pytest.mark.parametrize("rows", GRIDS, ids=str)
def test_in_a_grid_what_is_kept_stays_in_its_place(rows: list) -> None:
    given, _ = in_grids(rows, deep=2)
    kept = (torch.rand(given.mask.shape, generator=torch.Generator().manual_seed(1)) < 0.6) | (given.role != VISUAL)
    left = given.keep(kept)
    assert left.shift is None and left.deep is not None and given.deep is not None
    for r in range(len(rows)):
        real, at = left.mask[r], given.origin[r][kept[r] & given.mask[r]]
        assert torch.equal(left.position[:, r, real], given.position[:, r, at])
        assert torch.equal(left.deep[r, real], given.deep[r, at])


@pytest.mark.parametrize("rows", GRIDS, ids=str)
def test_in_a_grid_registers_stand_behind_their_image_and_before_the_text(rows: list) -> None:
    given, nexts = in_grids(rows, deep=1)
    m, new = 3, torch.randn(len(given.images[0]), 3, 4)
    left = given.insert(new)
    assert left.shift is not None and left.deep is not None
    for r, parts in enumerate(rows):
        images = sum(part[0] for part in parts if not isinstance(part, int))
        assert nexts[r] + m * images == nexts[r] + int(left.shift[r])
        position, role = left.position[1:, r, left.mask[r]], left.role[r, left.mask[r]]
        made = role == REGISTER
        assert int(made.sum()) == m * images and (left.deep[r, left.mask[r]][made] == 0).all()
        for column in (made.int().diff() == -1).nonzero()[:, 0].tolist():  # the last register of a run
            own = slice(column - m + 1, column + 1)
            assert (position[:, own].diff(dim=1) == 1).all()
            if role[column + 1] == TEXT:
                assert (position[:, column + 1] == position[:, column] + 1).all()


def test_in_a_grid_merged_tokens_stand_in_their_middle_and_share_what_is_added() -> None:
    given, _ = in_grids([[2, (1, 2, 2), 3]], deep=2)
    assert given.deep is not None
    groups = torch.full(given.mask.shape, -1)
    groups[0, 2:6] = torch.tensor([0, 1, 1, 0])
    left = given.merge(groups)
    assert left.deep is not None and left.shift is None
    for token, members in ((2, [2, 5]), (3, [3, 4])):
        assert torch.allclose(left.hidden[0, token], given.hidden[0, members].mean(0))
        assert torch.allclose(left.deep[0, token], given.deep[0, members].mean(0))
        assert torch.equal(left.position[:, 0, token], given.position[:, 0, members].double().mean(1).floor().long())
    assert torch.equal(left.position[:, 0, 4:], given.position[:, 0, 6:])
