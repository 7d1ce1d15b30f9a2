"""Each metric of ours beside the same one of lmms-eval: equal, or different on purpose, with the reason."""

from __future__ import annotations

import pytest
from lmms_eval.api.metrics import anls, exact_match_hf_evaluate
from lmms_eval.tasks._task_utils.mmmu_mcq_utils import parse_mmmu_multi_choice_response
from lmms_eval.tasks.mme.utils import parse_pred_ans
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score
from lmms_eval.tasks.scienceqa.utils import sqa_process_results
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results

from vtc.evaluation import answers, scoring
from vtc.evaluation.sources import user_questions

# ---------------------------------------------------------------------- exact match: GQA's
SAME = [
    ("yes", "Yes."), ("New York", "new york"), ("left", "left."), ("1,000", "1000"), ("two", "2"), ("a dog", "dog"),
    ("", "x"), ("Yes, it is", "yes"), ("5 dollars", "5"), ("50.0", "50"), ("Москва", "москва"), ("狗", "猫"),
    ("red", "Red!"), ("12:30", "12:30"), ("3 5", "35"), ("5 °C", "5 C"),
]  # fmt: skip
# prediction, answer, ours
SIGNS = [
    ("-5", "5"),
    ("3.5", "35"),
    ("1/2", "12"),
    ("10%", "10"),
    ("$5", "5"),
    ("C++", "C"),
    ("C#", "C"),
    ("A+", "A"),
    ("+", "-"),
]
NOTHING = [("", "?"), ("", "..."), ("!", "?"), ("<", ">")]
JOINED = [("it's", "its"), ("t-shirt", "tshirt")]
SPACES = [
    ("two  dogs", "two dogs"),
    ("two-tone", "two tone"),
    ("5%", "5 %"),
    ("the U.S.", "The U S"),
    ("re-\nturn", "re turn"),
]
SCRIPTS = [
    ("狗。", "狗"),
    ("Ｂ", "b"),
    ("cafe\u0301", "café"),
    ("straße", "STRASSE"),
    ("𝟝", "5"),
    ("−5", "-5"),
    ("don’t", "don't"),
]
EXACT = {
    "equal": ([(p, a, exact) for p, a in SAME for exact in (None,)], None),
    "upstream drops what tells numbers and names apart": ([(p, a, 0.0) for p, a in SIGNS], 1.0),
    "upstream makes nothing of an answer of signs, and an empty answer right": ([(p, a, 0.0) for p, a in NOTHING], 1.0),
    "upstream joins the words that a sign divides": ([(p, a, 0.0) for p, a in JOINED], 1.0),
    "upstream compares spaces and hyphens": ([(p, a, 1.0) for p, a in SPACES], 0.0),
    "upstream knows ASCII's punctuation and one form of a letter": ([(p, a, 1.0) for p, a in SCRIPTS], 0.0),
}


@pytest.mark.parametrize("reason", EXACT)
def test_exact_match(reason: str) -> None:
    pairs, upstream = EXACT[reason]
    for prediction, answer, own in pairs:
        theirs = exact_match_hf_evaluate([prediction], [answer], ignore_case=True, ignore_punctuation=True)[
            "exact_match"
        ]
        assert answers.exact_match(prediction, answer) == (theirs if own is None else own), (prediction, answer)
        assert upstream in (None, theirs), (prediction, answer)


# ---------------------------------------------------------------------- letters: MMMU's and ScienceQA's
LETTERS = {
    "equal": [
        ("A", "A"), ("(C)", "C"), ("B.", "B"), ("Answer: D", "D"), ("The answer is (B).", "B"),
        ("Option A is right", "A"), ("I am sure it is B", "B"),
        ("The correct option is (A) a dog", "A"), ("It can't be A. The answer: C", "C"),
    ],
    "upstream takes the last or bracketed letter, whatever is said of it": [
        ("I considered (A), but the final answer is B.", "B"), ("The answer is B because A is wrong.", "B"),
        ("D, not B", "D"),
    ],
    "upstream reads an article as an option": [("A cat", "")],
    "upstream draws an option where it finds none: it is right by chance": [
        ("option b", "B"), ("The correct answer is b.", "B"), ("b", "B"), ("B) red", "B"), ("**C**", "C"), ("[B]", "B"),
        ("答案是C。", "C"), ("", ""), ("red", ""), ("Z", ""), ("Both are wrong", ""),
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", LETTERS)
def test_letters(reason: str, monkeypatch) -> None:
    monkeypatch.setattr("random.choice", lambda choices: "drawn")
    index = {letter: f"text {letter}" for letter in "ABCD"}
    for said, right in LETTERS[reason]:
        theirs = parse_mmmu_multi_choice_response(said, list("ABCD"), index)
        assert answers.letter(said, "ABCD") == right
        assert (theirs == right) == (reason == "equal"), said
        assert (theirs == "drawn") == ("draws" in reason), said


def test_letters_as_scienceqa_takes_them() -> None:
    """Equal where an answer is a letter or begins with one and a point; upstream knows no other form."""
    doc = {"choices": ["red", "blue", "green"], "answer": 1}
    for said in ("B", "b", "B. blue", "A", "C. green", "blue", "A. red"):
        assert sqa_process_results(doc, [said])["exact_match"] == float(answers.letter(said, "ABC") == "B")
    for said in ("(B)", "B) blue", "The answer is B"):
        assert sqa_process_results(doc, [said])["exact_match"] == 0.0 and answers.letter(said, "ABC") == "B"


# ---------------------------------------------------------------------- yes and no: MME's and POPE's
def test_yes_and_no() -> None:
    """Equal on what begins with the word; upstream reads the first four letters, so that "know" is no."""
    for said in (
        "Yes",
        "yes.",
        "no",
        "No, it isn't",
        "Yes, there is",
        "maybe",
        "",
        "yes!",
        "\nYes",
        "yes/no",
        "is yes",
        "yeah",
    ):
        theirs = parse_pred_ans(said)
        assert answers.yes_no(said) == ("" if theirs == "other" else theirs), said
    for said, theirs in (
        ("yesterday", "yes"),
        ("not", "no"),
        ("nobody", "no"),
        ("know", "no"),
        ("none", "no"),
        ("y", "yes"),
    ):
        assert answers.yes_no(said) == "" and parse_pred_ans(said) == theirs
    for said in ("**Yes**", "Ｙｅｓ"):
        assert answers.yes_no(said) == "yes" and parse_pred_ans(said) == "other"


def test_f1_is_popes() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 3 + [("no", "no")] * 5
    for some in (pairs, pairs[:8], pairs[6:], pairs[11:]):
        results = [{"prediction": p, "ground_truth": a} for p, a in some]
        assert scoring.f1(some) == pytest.approx(pope_aggregate_f1_score(results))
    # An answer that is neither counts as a missed yes; POPE's recall passes over it.
    unclear = [("yes", "yes"), ("", "yes")]
    assert scoring.f1(unclear) == pytest.approx(2 / 3)
    assert pope_aggregate_f1_score([{"prediction": p, "ground_truth": a} for p, a in unclear]) == 1.0


# ---------------------------------------------------------------------- VQA accuracy: TextVQA's; ANLS
PEOPLE = [
    (["2"] * 3 + ["two"] * 3 + ["3"] * 4, ["2", "two", "Two.", "3!"]),
    (["a dog"] * 5 + ["dog"] * 5, ["dog", "the dog", "dogs"]),
    (["10:30"] * 4 + ["10.30"] * 6, ["10:30", "1030", "10.30"]),
    (["don't know"] * 4 + ["dont"] * 6, ["dont know", "don't"]),
    (["red, white"] * 10, ["red white", "red and white"]),
    (["yes"] * 7 + ["no"] * 3, ["yes", "Yes\n", "no ", ""]),
]


def test_vqa_accuracy() -> None:
    """TextVQA's to the last digit; VQAv2's task drops a comma without putting a space in its place."""
    for people, sayings in PEOPLE:
        for said in sayings:
            doc = {"question_id": 1, "question": "", "image_id": 1}
            text = textvqa_process_results(doc | {"answers": list(people)}, [said])["exact_match"]
            listed = [{"answer": person, "answer_id": i} for i, person in enumerate(people)]
            assert user_questions.vqa_accuracy(said, people) == pytest.approx(text)
            assert vqav2_process_results(doc | {"answers": listed}, [said])["exact_match"] == pytest.approx(text)
    listed = [{"answer": "red, white", "answer_id": i} for i in range(10)]
    theirs = vqav2_process_results({"question_id": 1, "question": "", "image_id": 1, "answers": listed}, ["red,white"])
    assert theirs["exact_match"] == 1.0 and user_questions.vqa_accuracy("red,white", ["red, white"] * 10) == 0.0


def test_anls_is_upstreams() -> None:
    for said, right in (
        ("1988", ["1987"]),
        ("IN 1987", ["1987", "in 1987"]),
        ("", ["a"]),
        ("a  b", ["a b"]),
        ("ä", ["a"]),
    ):
        assert user_questions.anls(said, right) == anls(right, [said])["anls"]


# ---------------------------------------------------------------------- captions: pycocoevalcap's, words split by us
def test_captions_of_plain_words_are_upstreams() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = ["a red dog on the grass", "two people ride a bike", "a plate of food"]
    right = [
        ["a red dog lies on grass", "the dog is red"],
        ["two people on a bike"],
        ["food on a plate", "a white plate"],
    ]
    records = [{"prediction": p.upper(), "references": r} for p, r in zip(said, right, strict=True)]
    references, predictions = dict(enumerate(right)), {i: [p] for i, p in enumerate(said)}
    assert 10 * scoring.cider(records) == pytest.approx(Cider().compute_score(references, predictions)[0])
    assert scoring.bleu4(records) == pytest.approx(Bleu(4).compute_score(references, predictions, verbose=0)[0][3])
    assert scoring.rouge_l(records) == pytest.approx(Rouge().compute_score(references, predictions)[0])
