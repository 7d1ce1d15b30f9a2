"""Questions: the answers are right (checked against the scene by rules written a second time), the floors are what a
guesser gets."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from vtc.pocket.questions import BAG_COUNT, BLIND_COUNT, KINDS, LETTERS, TASK_OF_KIND, hard_negative
from vtc.pocket.scenes import COLORS, DIGITS, draw_scene


def drawn(kind, count=400, **scene):
    rng = np.random.default_rng(5)
    found = []
    while len(found) < count:
        s = draw_scene(rng, "train", things=int(rng.integers(3, 7)), **scene)
        q = KINDS[kind](rng, s)
        if q is not None:
            found.append((s, q))
    return found


def solve(scene, text):
    """An independent answer to a question, from the scene's symbols."""
    things = scene.things
    if m := re.fullmatch(r"is there a (\w+) (\w+)\?", text):
        return "yes" if any((t.color, t.name) == m.groups() for t in things) else "no"
    if text == "how many objects are there?":
        return str(len(things))
    if m := re.fullmatch(r"how many (\w+) objects are there\?", text):
        return str(sum(t.color == m[1] for t in things))
    if m := re.fullmatch(r"what color is the (\w+)\?", text):
        (t,) = [t for t in things if t.name == m[1]]
        return t.color
    if m := re.fullmatch(r"what is the (\w+) object\?", text):
        (t,) = [t for t in things if t.color == m[1]]
        return t.name
    if m := re.fullmatch(r"what size is the (\w+) (\w+)\?", text):
        (t,) = [t for t in things if (t.color, t.name) == m.groups()]
        return "small" if t.pixels == 14 else "large"
    if m := re.fullmatch(r"where is the (\w+) (\w+)\?", text):
        (t,) = [t for t in things if (t.color, t.name) == m.groups()]
        return f"{'top' if t.cell // 4 < 2 else 'bottom'} {'left' if t.cell % 4 < 2 else 'right'}"
    if m := re.fullmatch(r"is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", text):
        (a,) = [t for t in things if (t.color, t.name) == (m[1], m[2])]
        (b,) = [t for t in things if (t.color, t.name) == (m[4], m[5])]
        rules = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
        return "yes" if rules[m[3]] else "no"
    if m := re.fullmatch(r"what digit is (\w+)\?", text):
        (t,) = [t for t in things if t.color == m[1] and t.name in DIGITS]
        return t.name
    if m := re.fullmatch(r"(.+\?) A (\w+) B (\w+) C (\w+) D (\w+)", text):
        answer = solve(scene, m[1])
        return LETTERS[[m[i] for i in range(2, 6)].index(answer)]
    raise AssertionError(f"no rule for {text!r}")


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "captions"])
def test_answers_are_right(kind):
    for scene, question in drawn(kind):
        assert question.answer == solve(scene, question.text), (question, scene)
        assert TASK_OF_KIND[question.kind] == kind


def test_yes_and_no_are_balanced():
    for kind in ("existence", "relations"):
        answers = Counter(q.answer for _, q in drawn(kind, 2000) if q.answer in ("yes", "no"))
        assert abs(answers["yes"] / sum(answers.values()) - 0.5) < 0.05


def bag_of(scene):
    """All that the bag knows: which colours, names and sizes there are."""
    return {t.color for t in scene.things}, {t.name for t in scene.things}, {t.size for t in scene.things}


@pytest.mark.parametrize("kind", ["existence", "attributes", "relations", "reading", "choice", "counting"])
def test_a_guesser_does_as_the_floors_say(kind):
    """A blind guesser and one who knows the bag play the game; their scores must meet the stated floors."""
    rng = np.random.default_rng(11)
    scores = defaultdict(list)
    questions = drawn(kind, 4000)
    common = Counter(q.answer for _, q in questions if q.kind == "count-color" or q.kind == "count-absent")
    for scene, q in questions:
        colors, names, sizes = bag_of(scene)
        text = q.text
        if kind == "existence":
            asked = re.fullmatch(r"is there a (\w+) (\w+)\?", text).groups()
            blind, bag = "yes", "yes" if asked[0] in colors and asked[1] in names else "no"
        elif kind == "relations":
            options = ["top left", "top right", "bottom left", "bottom right"] if q.kind == "where" else ["yes", "no"]
            blind = bag = options[rng.integers(len(options))]
        elif kind == "reading":
            blind, bag = str(rng.integers(10)), rng.choice(sorted(n for n in names if n in DIGITS))
        elif kind == "choice":
            pool = colors if q.kind == "choice-color" else names
            blind = LETTERS[rng.integers(4)]
            bag = LETTERS[rng.choice([i for i, o in enumerate(q.options) if o in pool])]
        elif kind == "counting":
            if q.kind == "count-all":
                k = max(len(colors), len(names))
                blind, bag = "3", {1: "3", 2: "3", 3: "3", 4: "4", 5: "6", 6: "6"}[k]
            else:
                blind = common.most_common(1)[0][0]
                asked = re.search(r"how many (\w+) objects", text)[1]
                bag = {1: "3", 2: "2", 3: "1", 4: "1", 5: "1", 6: "1"}[len(colors)] if asked in colors else "0"
        else:
            pools = {"color": sorted(colors), "name": sorted(names), "size": sorted({"small", "large"})}
            if q.kind == "size":
                pools["size"] = sorted({t.size for t in scene.things if not t.is_digit})
            bag = rng.choice(pools[q.kind])
            blind = {"color": list(COLORS)[rng.integers(8)], "name": "circle", "size": "large"}[q.kind]
        scores["blind"].append(blind == q.answer)
        scores["bag"].append(bag == q.answer)
    for floor in ("blind", "bag"):
        measured = np.mean(scores[floor])
        stated = np.mean([getattr(q, floor) for _, q in questions])
        assert abs(measured - stated) < 0.03, (kind, floor, measured, stated)
    assert BLIND_COUNT["all"] == pytest.approx(0.25, abs=0.02) and BAG_COUNT["all"][-1] == 1.0


@pytest.mark.parametrize("edit", ["replace", "swap", "add"])
def test_hard_negatives_are_wrong_in_one_thing_and_use_words_of_the_picture(edit):
    rng = np.random.default_rng(2)
    made = 0
    for _ in range(300):
        scene = draw_scene(rng, "train", things=int(rng.integers(3, 6)))
        wrong = hard_negative(rng, scene, edit)
        if wrong is None:
            continue
        made += 1
        right_parts, wrong_parts = scene.caption[:-1].split(", "), wrong[:-1].split(", ")
        assert wrong != scene.caption
        allowed = {*(t.color for t in scene.things), *(t.name for t in scene.things), "small", "large", "a"}
        assert {w for part in wrong_parts for w in part.split()} <= allowed
        differing = [i for i, (a, b) in enumerate(zip(right_parts, wrong_parts, strict=False)) if a != b]
        if edit == "add":
            assert len(wrong_parts) == len(right_parts) + 1
            extra = list((Counter(wrong_parts) - Counter(right_parts)).elements())
            assert len(extra) == 1
            words = extra[0].split()
            assert f"{words[-2]} {words[-1]}" not in {t.phrase for t in scene.things}
        else:
            assert len(differing) == (1 if edit == "replace" else 2)
    assert made > 150
