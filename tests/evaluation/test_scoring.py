"""The metrics against what they are defined to be."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.evaluation import answers, scoring


@pytest.mark.parametrize(
    "said, meant",
    [("B", "B"), ("b.", "B"), ("(C) red", "C"), ("A. a star", "A"), ("the answer is D", "D"), ("a star", ""), ("", ""),
     ("Answer: B", "B"), ("I'm sure it is C", "C")],
)  # fmt: skip
def test_letter(said, meant):
    assert answers.letter(said) == meant


@pytest.mark.parametrize(
    "said, meant", [("Yes, there is", "yes"), ("no.", "no"), ("maybe", ""), ("", ""), ("nobody", "")]
)
def test_yes_no(said, meant):
    assert answers.yes_no(said) == meant


def test_exact_match_is_of_words():
    assert answers.exact_match(" Top  left. ", "top left") == 1.0
    assert answers.exact_match("top", "top left") == 0.0


def test_f1_is_that_of_the_confusion_matrix():
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 1 + [("no", "no")] * 5 + [("", "yes")]
    precision, recall = 6 / 8, 6 / 8
    assert scoring.f1(pairs) == pytest.approx(2 * precision * recall / (precision + recall))
    assert scoring.f1([("no", "yes")]) == 0.0


def records(*pairs):
    return [{"prediction": p, "references": [r]} for p, r in pairs]


def test_captions_equal_to_their_reference_score_one():
    same = [
        "a small red circle, a large blue star.",
        "a large green ring, a yellow 3.",
        "a purple 7, a small cyan cross.",
    ]
    given = records(*[(c, c) for c in same])
    assert scoring.cider(given) == pytest.approx(1.0)
    assert scoring.bleu4(given) == pytest.approx(1.0, abs=1e-6)
    assert scoring.rouge_l(given) == pytest.approx(1.0)


def test_captions_agree_with_pycocoevalcap():
    from pycocoevalcap.cider.cider import Cider

    given = records(
        ("a small red circle, a star", "a small red circle, a large blue star."),
        ("a large green ring", "a large green ring, a yellow 3."),
        ("a dog", "a purple 7, a small cyan cross."),
    )
    references = {
        0: ["a small red circle a large blue star"],
        1: ["a large green ring a yellow 3"],
        2: ["a purple 7 a small cyan cross"],
    }
    said = {0: ["a small red circle a star"], 1: ["a large green ring"], 2: ["a dog"]}
    mean, each = Cider().compute_score(references, said)
    assert scoring.cider(given) == pytest.approx(mean / 10) and scoring.cider_samples(given) == pytest.approx(each / 10)
    assert 0 < scoring.cider(given) < 1


def pairs(images, texts, captions=None):
    captions = captions or [f"caption {i}" for i in range(len(texts))]
    return [{"image": i, "text": t, "caption": c} for i, t, c in zip(images, texts, captions, strict=True)]


def test_recall_is_a_brute_force_count():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 6))
    texts = images + 0.8 * rng.normal(size=(30, 6))
    given = pairs(images.tolist(), texts.tolist())
    cosine = [[np.dot(i, t) / np.linalg.norm(i) / np.linalg.norm(t) for t in texts] for i in images]
    for k in (1, 10):
        found = sum(i in sorted(range(30), key=lambda j: -cosine[i][j])[:k] for i in range(30)) / 30
        assert scoring.recall(given, k, "image_to_text") == pytest.approx(found)
        found = sum(j in sorted(range(30), key=lambda i: -cosine[i][j])[:k] for j in range(30)) / 30
        assert scoring.recall(given, k, "text_to_image") == pytest.approx(found)
    assert scoring.retrieval(given) == pytest.approx(
        (scoring.recall(given, 1, "image_to_text") + scoring.recall(given, 1, "text_to_image")) / 2
    )


def test_recall_counts_equal_captions_as_the_match_and_ties_as_misses():
    one, two = [1.0, 0.0], [0.0, 1.0]
    assert scoring.recall(pairs([one, two], [two, one], ["same", "same"]), 1, "image_to_text") == 1.0
    assert scoring.recall(pairs([one, two], [one, one]), 1, "image_to_text") == 0.0
    assert scoring.recall(pairs([one, one], [one, one]), 1, "text_to_image") == 0.0


def test_preferring_the_right_caption_needs_more_than_a_tie():
    assert scoring.prefers([1, 0], [2, 0.1], [0, 5]) == 1.0
    assert scoring.prefers([1, 0], [0, 5], [2, 0.1]) == 0.0
    assert scoring.prefers([1, 0], [3, 3], [1, 1]) == 0.0
    assert scoring.prefers([0, 0], [1, 1], [1, 0]) == 0.0
