"""The second edition's test sets: nothing in a text tells which of two captions, or of yes and no, is right."""

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vtc import results
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.evaluation import evaluate
from vtc.job import written
from vtc.pocket import dense, second, tasks, video
from vtc.pocket.scenes import COLORS, NAMES


def samples(name, count, split="train", seed=9):
    return list(itertools.islice(second.drawn(name, split, seed), count))


def things(caption):
    return [part.strip(" .").removeprefix("a ") for part in caption.split(",")]


def spoken(caption):
    return re.findall(r"\w+", caption)


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_captions_are_one_edit_apart_and_of_one_split(split):
    for sample in samples("hard_captions", 30, split):
        (shown,), wrong = sample.scenes, sample.more["options"][0]
        assert shown.split == split and sample.answer == shown.caption != wrong
        right, other = things(sample.answer), things(wrong)
        assert set(spoken(sample.answer)) == set(spoken(wrong)), "a bag of attributes must not tell"
        if sample.kind == "add":
            assert abs(len(right) - len(other)) == 1
            shorter, longer = sorted((right, other), key=len)
            assert all(longer.count(thing) >= shorter.count(thing) for thing in shorter)
        else:
            differing = [i for i, (a, b) in enumerate(zip(right, other, strict=True)) if a != b]
            assert len(differing) == (2 if sample.kind == "swap" else 1)
            colors = [sorted(w for w in spoken(c) if w in COLORS) for c in (sample.answer, wrong)]
            names = [sorted(w for w in spoken(c) if w in NAMES) for c in (sample.answer, wrong)]
            assert (colors[0] == colors[1] and names[0] == names[1]) == (sample.kind == "swap")


def test_what_is_wrong_may_as_well_be_right():
    """Length, repetitions and every word say nothing of which caption is right: each statistic's mean difference is
    within four standard errors of 0. In the first edition the shorter one was right in two thirds of the pairs."""
    by_kind = {edit: [] for edit in second.EDITS}
    for sample in samples("hard_captions", 900):
        by_kind[sample.kind].append((sample.answer, sample.more["options"][0]))
    statistics = {
        "length": len,
        "repeated things": lambda c: len(things(c)) - len(set(things(c))),
        "repeated words": lambda c: len(spoken(c)) - len(set(spoken(c))),
        "small": lambda c: spoken(c).count("small"),
        "digits": lambda c: sum(word.isdigit() for word in spoken(c)),
    }
    for edit, pairs in by_kind.items():
        for what, of in statistics.items():
            differences = np.array([of(right) - of(wrong) for right, wrong in pairs], dtype=float)
            error = differences.std() / np.sqrt(len(differences))
            assert abs(differences.mean()) <= 4 * error, (edit, what, differences.mean(), error)


def test_existence_has_the_phrase_in_one_of_two_neighbours():
    answers = []
    for sample in samples("existence", 300):
        phrase = re.fullmatch(r"is there a (\w+ \w+)\?", sample.question)[1]
        color, name = phrase.split()
        (scene,) = sample.scenes
        assert (phrase in {t.phrase for t in scene.things}) == (sample.answer == "yes")
        assert color in {t.color for t in scene.things} and name in {t.name for t in scene.things}
        answers.append(sample.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_kinds_take_turns_and_videos_have_eight_frames():
    for name, kinds in (("dense", dense.KINDS), ("video", video.KINDS), ("hard_captions", second.EDITS)):
        drawn = samples(name, 2 * len(kinds))
        assert [sample.kind for sample in drawn] == [*kinds] * 2
        assert all(len(sample.scenes) == (video.FRAMES if name == "video" else 1) for sample in drawn)


def test_a_row_of_a_video_is_its_frames_one_below_the_other():
    sample = samples("video", 1)[0]
    picture = Image.open(io.BytesIO(sample.row()["image"]["bytes"]))
    frames = [np.asarray(picture.crop(box)) for box in video.cut(picture.height)]
    assert len(frames) == video.FRAMES
    assert all((frame == scene.render()).all() for frame, scene in zip(frames, sample.scenes, strict=True))


def test_look_alikes_are_named_as_a_group_and_seeds_draw_others():
    drawn = samples("retrieval", 12)
    assert [sample.more["group"] for sample in drawn] == [0] * 4 + [1] * 4 + [2] * 4
    for group in range(3):
        captions = [s.answer for s in drawn if s.more["group"] == group]
        assert len(set(captions)) == 4 and len({tuple(sorted(spoken(c))) for c in captions}) == 1
    assert samples("retrieval", 12) == drawn
    assert [s.answer for s in samples("retrieval", 12, seed=1)] != [s.answer for s in drawn]


def test_look_alikes_count_as_one_in_a_result(tmp_path):
    """Errors and p-values of a run are those of its groups of four, against the sums of these."""
    job = parse(["benchmark.tasks=[pocket2_retrieval]", "benchmark.limit=40", "method=random",
                 "tokens=4", "costs=none", written("output_dir", tmp_path)])  # fmt: skip
    file = evaluate(job)
    (row,), frame = results.load(file)["scores"], results.samples(file)
    assert frame["cluster"].tolist() == [str(i // 4) for i in range(40)]
    sums = frame["score"].to_numpy().reshape(10, 4).mean(1)
    assert row["stderr"] == pytest.approx(stats.sem(sums)) and 0 < row["value"] < 1
    plain = results.samples(next((tmp_path / "baselines").glob("*/result.json")))
    differences = sums - plain.set_index("id")["score"][frame["id"]].to_numpy().reshape(10, 4).mean(1)
    expected = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert row["p_value"] == pytest.approx(expected.pvalue)


def test_an_edition_is_found_by_its_tasks():
    assert tasks.edition_of("pocket2_video") is second and tasks.edition_of("pocket_choice").VERSION == 1
    with pytest.raises(UserError, match="pocket2_videos: unknown.*pocket2_video"):
        tasks.edition_of("pocket2_videos")
    with pytest.raises(KeyError, match="pocket2_dense"):
        second.rows("pocket2_nothing")
