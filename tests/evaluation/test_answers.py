"""What answers say, against tables of sayings."""

from __future__ import annotations

import pytest

from vtc.evaluation.answers import exact_match, letter, normalise, words, yes_no

SAME = [
    ("Red.", "red"), ("  two   dogs ", "Two dogs!"), ("the U.S.", "The U S"), ("1,000", "1000"), ("−5", "-5"),
    ("Ｂ", "b"), ("cafe\u0301", "café"), ("5%", "5 %"), ("two-tone", "two tone"), ("\"yes\"", "yes"), ("3.50", "3.50"),
    ("straße", "STRASSE"), ("½", "1⁄2"), ("狗。", "狗"), ("$5", "$ 5"), ("don’t", "don't"), ("C++.", "c++"),
    ("12:30", "12:30"), ("...", "..."), ("東京", "東京"), ("𝟝", "5"), ("re-\nturn", "re turn"),
]  # fmt: skip
UNLIKE = [
    ("狗", "猫"), ("", "猫"), ("", "?"), ("Москва", "Париж"), ("½", "¼"), ("-5", "5"), ("5 %", "$5"), ("C++", "C"),
    ("C#", "C"), ("café", "caf"), ("3.5", "35"), ("3.5", "3 5"), ("1,000", "1,001"), ("<", ">"), ("+", "-"),
    ("!", "?"), ("5 °C", "5 C"), ("α", "β"), ("नमस्ते", "नमस"), ("한국", "중국"), ("A+", "A"), ("x²", "x³"), ("", "..."),
    ("👍", "👎"), ("10", "1 0"), ("€5", "£5"), ("#1", "1"), ("1/2", "12"),
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "answer"), SAME)
def test_the_same(prediction: str, answer: str) -> None:
    assert exact_match(prediction, answer) == 1.0


@pytest.mark.parametrize(("prediction", "answer"), UNLIKE)
def test_unlike(prediction: str, answer: str) -> None:
    assert exact_match(prediction, answer) == exact_match(answer, prediction) == 0.0


@pytest.mark.parametrize("text", ["?", "...", "—", "()", "'", "猫", "-"])
def test_a_reference_never_becomes_nothing(text: str) -> None:
    assert normalise(text)


def test_ascii_words_are_what_they_were() -> None:
    text = "A small red circle, left of the 2 Squares (blue_ones)!"
    assert words(text) == ["a", "small", "red", "circle", "left", "of", "the", "2", "squares", "blue", "ones"]


AB, ABCD, MANY = "AB", "ABCD", "ABCDEFGHI"
SAID = [
    (AB, "I think the answer is B.", "B"), (AB, "A cat is on the sofa, so the answer is B.", "B"),
    (ABCD, "I considered (A), but the final answer is B.", "B"), (ABCD, "The answer is B because A is wrong.", "B"),
    (ABCD, "The correct answer is b.", "B"), (ABCD, "option b", "B"), (ABCD, "Ｂ", "B"), (ABCD, "b", "B"),
    (ABCD, "(C)", "C"), (ABCD, "B. red", "B"), (ABCD, "B) red", "B"), (ABCD, "B: red", "B"), (ABCD, "**C**", "C"),
    (ABCD, "Answer: D", "D"), (ABCD, "answer is (d)", "D"), (ABCD, "Option A is right", "A"),
    (ABCD, "The answer is A because it is red", "A"), (ABCD, "It can't be A. The answer: C", "C"), (ABCD, "A", "A"),
    (ABCD, "a", "A"), (ABCD, " c. ", "C"), (ABCD, "", ""), (ABCD, "red", ""), (ABCD, "A cat", ""),
    (ABCD, "The answer is a cat", ""), (AB, "I", ""), (AB, "C", ""), (AB, "I am sure it is B", "B"), (MANY, "I", "I"),
    (MANY, "I think it is I.", "I"), (MANY, "I think so", ""), (ABCD, "B\nbecause it is red", "B"),
    (ABCD, "D, not B", "D"), (ABCD, "B is the color of it", "B"), (ABCD, "The letter is C", "C"),
    (ABCD, "Let's see. A is red, B is blue. Final answer: A", "A"), (ABCD, "I'd choose D", "D"),
    (ABCD, "I'd pick option c", "C"), (ABCD, "[B]", "B"), (ABCD, "\"B\"", "B"), (ABCD, "Z", ""),
    (ABCD, "Both are wrong", ""), (ABCD, "x-ray B-side", ""), (ABCD, "The correct option is (A) a dog", "A"),
    (ABCD, "answer: a", "A"), (ABCD, "C and only C", "C"), (ABCD, "选B", "B"),
    (ABCD, "答案是C。", "C"), (ABCD, "B、", "B"),
]  # fmt: skip


@pytest.mark.parametrize(("letters", "said", "right"), SAID)
def test_letters(letters: str, said: str, right: str) -> None:
    assert letter(said, letters) == right


def test_the_text_of_an_option_behind_its_letter() -> None:
    texts = ["red circle", "blue circle"]
    assert letter("A red circle", "AB", texts) == "A"
    assert letter("A blue circle", "AB", texts) == ""


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Yes.", "yes"),
        ("no, it isn't", "no"),
        ("yesterday", ""),
        ("", ""),
        ("NO", "no"),
        ("Ｙｅｓ", "yes"),
        ("not", ""),
    ],
)
def test_yes_no(said: str, right: str) -> None:
    assert yes_no(said) == right
