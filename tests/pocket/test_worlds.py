"""Dense scenes and videos: answers by rules written a second time, pictures that show them, batches of them."""

import re

import numpy as np
import pytest
import torch

from vtc.data.training.batch import Part
from vtc.errors import UserError
from vtc.pocket.data import patch_labels
from vtc.pocket.dense import CELLS, SIDE, ask_dense, draw_dense, lines
from vtc.pocket.model import GRID, encode
from vtc.pocket.scenes import COLORS, DIGITS
from vtc.pocket.source import PocketSource
from vtc.pocket.video import FRAMES, ask_video, cut, draw_video, strip
from vtc.pocket.worlds import SCENES, turn
from vtc.settings import DataSettings


def line_of(scene, which):
    """The digits of a line by what stands where: rows of cells with four digits or more."""
    rows = [[t for t in scene.things if t.top // (96 // CELLS) == row and t.name in DIGITS] for row in range(CELLS)]
    rows = [sorted(row, key=lambda t: t.left) for row in rows if len(row) >= 4]
    return " ".join(t.name for t in rows[0 if which == "top" else -1])


def answer_of(scene, text):
    things = scene.things
    if m := re.fullmatch(r"read the (top|bottom) line\.", text):
        return line_of(scene, m[1])
    if m := re.fullmatch(r"is there a (\w+) (\w+)\?", text):
        return "yes" if any((t.color, t.name) == m.groups() for t in things) else "no"
    if m := re.fullmatch(r"what color is the (\w+)\?", text):
        (thing,) = [t for t in things if t.name == m[1]]
        return thing.color
    if m := re.fullmatch(r"what is the (\w+) object\?", text):
        (thing,) = [t for t in things if t.color == m[1]]
        return thing.name
    return None  # relations are those of plain scenes, and checked there


def test_dense_answers_are_right_and_nothing_touches():
    rng, kinds = np.random.default_rng(1), set()
    for _ in range(250):
        scene = draw_dense(rng, "validation")
        assert scene.split == "validation" and len(scene.things) >= 10
        question = ask_dense(rng, scene)
        kinds.add(question.kind)
        assert (expected := answer_of(scene, question.text)) is None or question.answer == expected
        assert bool(lines(scene)) == (question.kind == "dense-line")
        covered = np.zeros((96, 96), int)
        for t in scene.things:
            assert t.pixels == SIDE
            covered[t.top : t.top + SIDE, t.left : t.left + SIDE] += 1
        assert covered.max() == 1 and covered.sum() == SIDE**2 * len(scene.things)
        shown = (patch_labels([scene])[0] > 0).sum()
        assert len(scene.things) <= shown <= 4 * len(scene.things)
    assert len(kinds) == 4


def happened(frames, text):
    """The answer to a question about a video, from its eight scenes alone."""
    phrases = [{t.phrase for t in scene.things} for scene in frames]
    if m := re.fullmatch(r"which way does the (.+) move\?", text):
        places = [next((t.left, t.top) for t in scene.things if t.phrase == m[1]) for scene in frames]
        right, down = np.subtract(places[-1], places[0])
        return ("right" if right > 0 else "left") if right else "down" if down > 0 else "up"
    since = lambda phrase: next(i for i, p in enumerate(phrases) if phrase in p)  # noqa: E731
    if m := re.fullmatch(r"does the (.+) appear before the (.+)\?", text):
        return "yes" if since(m[1]) < since(m[2]) else "no"
    if m := re.fullmatch(r"what color is the (\w+) (first|last)\?", text):
        (thing,) = [t for t in frames[0 if m[2] == "first" else -1].things if t.name == m[1]]
        return thing.color
    names = {t.name for t in frames[0].things}
    new = [p for p in phrases[-1] - phrases[0] if not any(p.endswith(f" {n}") and n in names for n in names)]
    new = new if len(new) == 2 else [p for p in phrases[-1] - phrases[0] if since(p) and appears(frames, p)]
    return sorted(new, key=since)[0 if text == "what appears first?" else -1]


def appears(frames, phrase):
    """Whether a phrase is that of a thing that wasn't there before, and not of one that changed its colour."""
    at = next(i for i, scene in enumerate(frames) if phrase in {t.phrase for t in scene.things})
    return len(frames[at].things) > len(frames[at - 1].things)


def test_what_happens_in_a_video_is_what_its_frames_show():
    rng, kinds = np.random.default_rng(2), set()
    for _ in range(250):
        video = draw_video(rng, "validation")
        question = ask_video(rng, video)
        if question.kind != "video-appear" or video.change not in video.appearances:
            assert question.answer == happened(video.frames, question.text), (question, video)
        kinds.add(question.kind)
        for scene in video.frames:
            for t in scene.things:
                assert 0 <= t.left <= 96 - t.pixels and 0 <= t.top <= 96 - t.pixels
    assert len(kinds) == 4


def test_no_frame_alone_tells_and_blind_answers_are_balanced():
    rng = np.random.default_rng(3)
    videos = [draw_video(rng, "train") for _ in range(400)]
    ways = [v.way for v in videos]
    assert all(abs(ways.count(way) / 400 - 0.25) < 0.09 for way in ("left", "right", "up", "down"))
    assert all(len(v.frames[0].things) + 2 == len(v.frames[-1].things) for v in videos)
    orders = [q.answer for q in (ask_video(rng, v) for v in videos) if q.kind == "video-order"]
    assert abs(orders.count("yes") / len(orders) - 0.5) < 0.2


def test_a_strip_is_cut_into_its_frames():
    video = draw_video(np.random.default_rng(0), "test")
    picture = strip(video)
    boxes = cut(len(picture))
    assert len(boxes) == FRAMES
    for (left, top, right, bottom), scene in zip(boxes, video.frames, strict=True):
        assert (picture[top:bottom, left:right] == scene.render()).all()


def test_worlds_take_turns_and_a_video_is_eight_images_of_a_row():
    worlds = {"scenes": 2, "dense": 1, "video": 1}
    assert [turn(worlds, step).name for step in range(5)] == ["scenes", "scenes", "dense", "video", "scenes"]
    data = DataSettings(batch_size=8, questions=3, weights={"existence": 1.0}, worlds=worlds)
    source = PocketSource("turns", data, seed=0, embed=True)
    plain, dense, video = (source.batch(step) for step in (0, 2, 3))
    assert plain.captions is not None and dense.captions is None and dense.embed_at is None
    assert len(video) == 2 and video.inputs["pixel_values"].shape == (16, 3, 96, 96)
    image = encode("<image>")[0]
    assert (video.input_ids == image).sum(1).tolist() == [FRAMES * GRID**2] * 2
    second = source.batch(3, Part(1, 2))
    assert torch.equal(second.inputs["pixel_values"], video.inputs["pixel_values"][8:])
    assert torch.equal(second.input_ids, video.input_ids[1:])
    assert SCENES.rows(24) == 24 and set(COLORS) >= {
        t.color for t in draw_dense(np.random.default_rng(0), "train").things
    }


@pytest.mark.parametrize(
    ("worlds", "says"), [({"films": 1}, "training.data.worlds=films"), ({"video": 0}, "leaves none")]
)
def test_worlds_that_there_are_none_of(worlds, says):
    with pytest.raises(UserError, match=says):
        PocketSource.check(DataSettings(weights={"existence": 1.0}, worlds=worlds))
