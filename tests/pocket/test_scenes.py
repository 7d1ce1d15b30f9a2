"""Scenes: splits that share nothing, drawings that are what the symbols say."""

import numpy as np
import pytest

from vtc.pocket.data import draw_scenes, patch_labels
from vtc.pocket.scenes import CELL, COLORS, MAX_OBJECTS, Scene, _glyphs_of, draw_scene, recolor, scene_rng

SPLITS = ("train", "validation", "test")


def layouts(split, count=400):
    rng = np.random.default_rng(3)
    return [draw_scene(rng, split) for _ in range(count)]


def test_splits_share_no_scene_and_no_handwriting():
    drawn = {split: layouts(split) for split in SPLITS}
    seen = {
        split: {(tuple((t.cell, t.name) for t in s.things), tuple(sorted(t.color for t in s.things))) for s in scenes}
        for split, scenes in drawn.items()
    }
    glyphs = {split: {t.glyph for s in scenes for t in s.things if t.is_digit} for split, scenes in drawn.items()}
    for a in SPLITS:
        assert all(scene.split == a for scene in drawn[a])
        assert glyphs[a] <= set(_glyphs_of(a).tolist())
        for b in SPLITS:
            if a != b:
                assert not seen[a] & seen[b]
                assert not set(_glyphs_of(a).tolist()) & set(_glyphs_of(b).tolist())


def test_split_is_a_property_of_the_scene_not_of_how_it_was_drawn():
    for split in SPLITS:
        for scene in layouts(split, 50):
            assert Scene(scene.things, background=0).split == split


def test_recolouring_keeps_attributes_and_split_and_changes_the_caption():
    rng = np.random.default_rng(0)
    tried = 0
    for scene in layouts("test", 100):
        other = recolor(scene, rng)
        if other is None:
            assert len({t.color for t in scene.things}) == 1 or len(scene.things) == 1
            continue
        tried += 1
        assert other.split == "test"
        assert other.caption != scene.caption
        assert sorted(t.color for t in other.things) == sorted(t.color for t in scene.things)
        assert [(t.cell, t.name) for t in other.things] == [(t.cell, t.name) for t in scene.things]
    assert tried > 50


@pytest.mark.parametrize("split", SPLITS)
def test_things_stand_in_their_cells_and_show_their_colour(split):
    for scene in layouts(split, 60):
        assert 1 <= len(scene.things) <= MAX_OBJECTS
        assert len({t.cell for t in scene.things}) == len(scene.things)
        image = scene.render().astype(float)
        for t in scene.things:
            assert t.left // CELL == (t.left + t.pixels - 1) // CELL == t.cell % 4
            assert t.top // CELL == (t.top + t.pixels - 1) // CELL == t.cell // 4
            window = image[t.top : t.top + t.pixels, t.left : t.left + t.pixels].reshape(-1, 3)
            nearest = np.abs(window - np.array(COLORS[t.color])).max(1)
            assert (nearest < 25).sum() >= 5, f"no pixel of {t.phrase} shows its colour"


def test_patch_labels_mark_the_things_and_nothing_else():
    scenes = draw_scenes(scene_rng(0, "labels", 0), 40, "train")
    labels = patch_labels(scenes).view(3, len(scenes), 12, 12)
    for b, scene in enumerate(scenes):
        marked = {(int(r), int(c)) for r, c in (labels[0, b] > 0).nonzero().tolist()}
        centres = {(int(t.y) // 8, int(t.x) // 8) for t in scene.things}
        assert centres <= marked
        for t in scene.things:
            row, column = int(t.y) // 8, int(t.x) // 8
            assert list(COLORS)[labels[0, b, row, column] - 1] == t.color
            assert bool(labels[2, b, row, column] == 0) == t.is_digit
        for row, column in marked:
            assert any(
                t.top - 8 < row * 8 < t.top + t.pixels and t.left - 8 < column * 8 < t.left + t.pixels
                for t in scene.things
            )


def test_twins_differ_in_their_binding_alone():
    scenes = draw_scenes(scene_rng(0, "twins", 0), 32, "train", twins=True)
    for a, b in zip(scenes[::2], scenes[1::2], strict=True):
        assert a.caption != b.caption
        assert sorted(t.color for t in a.things) == sorted(t.color for t in b.things)
        assert [t.name for t in a.things] == [t.name for t in b.things]
