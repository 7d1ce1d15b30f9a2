"""A row's images as the frames of a video."""

from __future__ import annotations

import pytest
import torch
from sequences import layout, sequence

from vtc.interface.selection import keep_best_of_rows


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_a_row_whichever_image(seed: int) -> None:
    given = sequence([layout(4, 7), layout(), layout(3), layout(2, 2, 5)], seed=seed)
    score = torch.randint(0, 5, given.mask.shape, generator=torch.Generator().manual_seed(seed))  # with ties
    count = torch.tensor([5, 3, 9, 1])
    left = keep_best_of_rows(given, score, count)
    for row in range(4):
        visual = given.visual[row].nonzero()[:, 0].tolist()
        best = sorted(visual, key=lambda at: (-score[row, at], at))[: count[row]]
        text = (given.mask[row] & ~given.visual[row]).nonzero()[:, 0].tolist()
        assert left.origin[row, left.mask[row]].tolist() == sorted(best + text)


def test_frames_are_the_images_of_a_row_in_order() -> None:
    row, frame = sequence([layout(4, 7), layout(), layout(3), layout(2, 2, 5)]).frames
    assert row.tolist() == [0, 0, 2, 3, 3, 3] and frame.tolist() == [0, 1, 0, 0, 1, 2]
    assert all(not part.numel() for part in sequence([layout()]).frames)
