"""What a question about pictures may hold, and how an answer to it is scored.

    {"image": "sofa.png", "question": "What is on the sofa?", "answer": "a cat"}
    {"images": ["a.png", "b.png"], "question": "Which one is older?", "answers": ["the first", "first"]}
    {"image": "sofa.png", "question": "Where is the cat?", "options": ["on the sofa", "under it"], "answer": "A"}

`id` is optional; without it the number of the line names the question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from vtc.allowed import is_number
from vtc.errors import UserError, nearest
from vtc.evaluation import answers

METRICS = ("exact_match", "vqa_accuracy", "anls", "choice")
KEYS = ("id", "image", "images", "question", "answer", "answers", "options")
LEAST = 4  # answers a question for VQA accuracy: an answer is wholly right when three people beside one gave it


@dataclass(frozen=True)
class UserQuestion:
    """One question. `images` are paths (or what a data set holds); `answers` are all right, letters for `choice`."""

    id: str
    text: str
    images: list[Any]
    answers: list[str]
    options: list[str]


def questions_of(
    rows: Iterable[tuple[int, Any]], where: str, metric: str, paths: bool = False
) -> Iterator[UserQuestion]:
    """Rows as questions.

    Args:
        rows: each with its number, which names it where it has no id.
        where: what errors put before the number: `benchmark.data=my.jsonl, line`.
        paths: whether images must be paths.

    Raises:
        UserError: a row that is no question, or one with the id of another row.
    """
    numbers: dict[str, int] = {}
    for number, row in rows:
        question = question_of(row, f"{where} {number}", metric, number)
        if paths:
            question.images[:] = [text_of(i, f"{where} {number}: image", "a path") for i in question.images]
        if question.id in numbers:
            other = f"is that of {numbers[question.id]} too"
            raise UserError(f"{where} {number}: id={question.id}: {other}; samples are compared by their id")
        numbers[question.id] = number
        yield question


def question_of(row: Any, where: str, metric: str, number: int) -> UserQuestion:
    """A row as a question.

    Raises:
        UserError: what it lacks, has too much, or has of a wrong kind, by name.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: an object with image, question and answer is needed")
    for key in row:
        if key not in KEYS:
            raise UserError(f"{where}: {key!r} is not known; allowed: {', '.join(KEYS)}{nearest(str(key), KEYS)}")
    images, answers = (_several(row, one, many, where) for one, many in (("image", "images"), ("answer", "answers")))
    question = text_of(row.get("question"), f"{where}: question")
    if not answers:
        raise UserError(f"{where}: answer: a text, or answers: a list of them, is needed")
    texts = [text_of(answer, f"{where}: answer", numbers=True) for answer in answers]
    options = _options(row, where)
    if metric == "choice":
        texts = [_letter(answer, options, where) for answer in texts]
    elif options:
        raise UserError(f"{where}: options are for benchmark.metric=choice, not {metric}")
    if metric == "vqa_accuracy" and len(texts) < LEAST:
        raise UserError(
            f"{where}: {len(texts)} answers; benchmark.metric=vqa_accuracy compares an answer with those of many "
            f"people ({LEAST} or more, VQAv2 has ten); exact_match takes any number"
        )
    name = row.get("id", number)
    if isinstance(name, float):
        raise UserError(f"{where}: id={name}: a text or a whole number is needed")
    return UserQuestion(text_of(name, f"{where}: id", numbers=True), question, images, texts, options)


def text_of(value: Any, where: str, needed: str = "a text", numbers: bool = False) -> str:
    """A value of a row as the text that it is.

    Args:
        needed: in words; numbers: whether a number stands for its digits.

    Raises:
        UserError: another kind of value, an empty text, or one that no file can hold.
    """
    if numbers and is_number(value):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        shown = json.dumps(value, default=str)
        cut = shown if len(shown) <= 40 else f"{shown[:40]}…"
        raise UserError(f"{where}: {needed}{' or a number' if numbers else ''} is needed, not {cut}")
    if re.search("[\ud800-\udfff]", value):
        raise UserError(f"{where}: half a character in {ascii(value)[:40]} (a lone surrogate)")
    return value


def _several(row: Mapping[str, Any], one: str, many: str, where: str) -> list[Any]:
    if row.get(one) is not None and row.get(many) is not None:
        raise UserError(f"{where}: give {one} or {many}, not both")
    if row.get(many) is not None:
        if not isinstance(row[many], (list, tuple)):
            raise UserError(f"{where}: {many}: a list is needed")
        return list(row[many])
    return [] if row.get(one) is None else [row[one]]


def _options(row: Mapping[str, Any], where: str) -> list[str]:
    values = [] if row.get("options") is None else row["options"]
    if not isinstance(values, (list, tuple)):
        raise UserError(f'{where}: options: a list is needed, such as ["red", "blue"]')
    options = [text_of(value, f"{where}: options", numbers=True) for value in values]
    if twice := [option for option in options if options.count(option) > 1]:
        raise UserError(f"{where}: options: {twice[0]!r} stands there twice")
    return options


def _letter(answer: str, options: Sequence[str], where: str) -> str:
    """The letter of the right option, which may be given by its letter or by its words."""
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise UserError(
            f"{where}: options: a list of 2 to {len(ascii_uppercase)} is needed for benchmark.metric=choice"
        )
    letters = ascii_uppercase[: len(options)]
    ways = {letters[options.index(answer)]} if answer in options else set()
    letter = answer.strip().upper()
    if len(letter) == 1 and letter in letters:
        ways.add(letter)
    if len(ways) > 1:
        raise UserError(f"{where}: answer={answer}: is one option's letter and another one's text")
    if not ways:
        raise UserError(f"{where}: answer={answer}: allowed: one of the options, or its letter")
    return ways.pop()


# Scores of one answer ------------------------------------------------------------------------------------------------


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer has the words of one of the right ones."""
    return max(answers.exact_match(answer, r) for r in right)


def vqa_accuracy(answer: str, right: Sequence[str]) -> float:
    """VQA accuracy (Antol et al., 2015): min(1, others who said the same / 3), mean over leaving each person out."""
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    processed = EvalAIAnswerProcessor()
    words, people = processed(answer), [processed(r) for r in right]
    shares = [min(1.0, sum(words == p for p in people[:i] + people[i + 1 :]) / 3) for i in range(len(people))]
    return sum(shares) / len(shares)


def anls(answer: str, right: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest right answer, 0 below one half (Biten et al., 2019)."""
    from lmms_eval.api.metrics import anls as of_harness

    return float(of_harness(list(right), [answer])["anls"])


def choice(answer: str, right: Sequence[str], options: Sequence[str]) -> float:
    """1 where the answer names the right one of a question's own options, by its letter."""
    return float(answers.letter(answer, ascii_uppercase[: len(options)], options) in right)


OPEN = {"exact_match": exact_match, "vqa_accuracy": vqa_accuracy, "anls": anls}  # scores of answers in words
