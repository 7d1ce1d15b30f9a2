"""What a question about pictures may hold, and how an answer to it is scored.

    {"image": "sofa.png", "question": "What is on the sofa?", "answer": "a cat"}
    {"images": ["a.png", "b.png"], "question": "Which one is older?", "answers": ["the first", "first"]}
    {"image": "sofa.png", "question": "Where is the cat?", "options": ["on the sofa", "under it"], "answer": "A"}

`id` is optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

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


def question_of(row: Any, where: str, metric: str, number: int) -> UserQuestion:
    """A row as a question.

    Raises:
        UserError: what it lacks, or has too much, by name.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: an object with image, question and answer is needed")
    for key in row:
        if key not in KEYS:
            raise UserError(f"{where}: {key!r} is not known; allowed: {', '.join(KEYS)}{nearest(str(key), KEYS)}")
    images, answers = (_several(row, one, many, where) for one, many in (("image", "images"), ("answer", "answers")))
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: question: a text is needed")
    if not answers or not all(isinstance(a, (str, int, float)) for a in answers):
        raise UserError(f"{where}: answer: a text, or answers: a list of them, is needed")
    texts = [str(a) for a in answers]
    options = list(map(str, row.get("options") or []))
    if metric == "choice":
        texts = [_letter(answer, options, where) for answer in texts]
    elif options:
        raise UserError(f"{where}: options are for benchmark.metric=choice, not {metric}")
    if metric == "vqa_accuracy" and len(texts) < LEAST:
        raise UserError(
            f"{where}: {len(texts)} answers; benchmark.metric=vqa_accuracy compares an answer with those of many "
            f"people ({LEAST} or more, VQAv2 has ten); exact_match takes any number"
        )
    return UserQuestion(str(row.get("id", number)), question, images, texts, options)


def _several(row: Mapping[str, Any], one: str, many: str, where: str) -> list[Any]:
    if row.get(one) is not None and row.get(many) is not None:
        raise UserError(f"{where}: give {one} or {many}, not both")
    if row.get(many) is not None:
        if not isinstance(row[many], Sequence) or isinstance(row[many], str):
            raise UserError(f"{where}: {many}: a list is needed")
        return list(row[many])
    return [] if row.get(one) is None else [row[one]]


def _letter(answer: str, options: Sequence[str], where: str) -> str:
    """The letter of the right option, which may be given by its letter or by its words."""
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise UserError(
            f"{where}: options: a list of 2 to {len(ascii_uppercase)} is needed for benchmark.metric=choice"
        )
    if answer in options:
        return ascii_uppercase[options.index(answer)]
    letter = answer.strip().upper()
    if len(letter) != 1 or letter not in ascii_uppercase[: len(options)]:
        raise UserError(f"{where}: answer={answer}: allowed: one of the options, or its letter")
    return letter


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
