"""What the task files name with `!function rule_tasks.…`: tasks of lmms-eval whose own files ask a judge, draw lots
where an answer names no option, or need packages and downloads that the task doesn't, scored by rules alone.

An option is the letter that upstream's `extract_mcq_answer` finds; an answer in which there is none is wrong. Nothing
here may raise on a model's answer: lmms-eval would try again four times, two seconds apart, and end the run.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from vtc.data.pictures import open_picture

Doc = dict[str, Any]
LETTERS = "ABCDE"
DIRECTLY = "Answer with the option's letter from the given choices directly."


def option(response: str, choices: int) -> str:
    """The letter of an option that an answer names; empty where it names none."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    return str(extract_mcq_answer(response, choices=list(LETTERS[:choices])))


def _video(*parts: str) -> list[str]:
    """A video as upstream lays it out: below HF_HOME, which is the mirror where there is one."""
    return [str(Path(os.environ["HF_HOME"]).expanduser().joinpath(*parts))]


# LongVideoBench: upstream's file imports decord, which only its task over frames uses --------------------------------


def longvideobench_video(doc: Doc) -> list[str]:
    return _video("datasets/longvideobench/videos", doc["video_path"])


def longvideobench_options(doc: Doc) -> list[str]:
    return [doc[f"option{i}"] for i in range(len(LETTERS)) if doc.get(f"option{i}") not in (None, "N/A")]


def longvideobench_question(doc: Doc) -> str:
    options = zip(LETTERS, longvideobench_options(doc), strict=False)
    return "\n".join([doc["question"], *(f"{letter}. {text}" for letter, text in options), f"{DIRECTLY}\n"])


def longvideobench(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    said = option(results[0], len(longvideobench_options(doc)))
    return {"accuracy": float(said == LETTERS[int(doc["correct_choice"])])}


# NExT-QA, multiple choice: upstream's file downloads three packages of NLTK whenever it is read ---------------------


def nextqa_video(doc: Doc) -> list[str]:
    return _video("nextqa/NExTVideo", f"{doc['video']}.mp4")


def nextqa_question(doc: Doc) -> str:
    options = [f"{letter}. {doc[f'a{i}'].strip()}" for i, letter in enumerate(LETTERS)]
    return "\n".join([doc["question"].strip(), *options, DIRECTLY])


def nextqa(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(option(results[0], len(LETTERS)) == LETTERS[int(doc["answer"])])}


# HR-Bench by upstream's rules, without the judge that it asks where they find no option -----------------------------


def hrbench(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    from lmms_eval.tasks.hrbench.hrbench_evals import HRBenchEval
    from lmms_eval.tasks.hrbench.utils import hrbench_doc_to_options

    said = HRBenchEval(api_key="").can_infer(results[0].strip(), hrbench_doc_to_options(doc))
    score = float(bool(said) and str(said).lower() == doc["answer"].lower())
    return {str(doc["category"]): score, "average": score}


# MathVista: its own prompts, which name the form of the answer; upstream has a judge take the answer out -------------


def mathvista_image(doc: Doc) -> list[Image.Image]:
    return [open_picture(doc["decoded_image"])]


def mathvista(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(_mathvista(doc, results[0].strip()) == _expected(doc))}


def _mathvista(doc: Doc, said: str) -> Any:
    """The answer in what was said: the text of a choice or its letter, the last number, the last list."""
    if doc["question_type"] == "multi_choice":
        choices = list(doc["choices"])
        exact = [choice for choice in choices if said.rstrip(".").lower() == choice.lower()]
        from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

        letters = [chr(ord("A") + i) for i in range(len(choices))]
        named = extract_mcq_answer(said, choices=letters)
        return exact[0] if exact else choices[letters.index(named)] if named else None
    if doc["answer_type"] == "list":
        lists = re.findall(r"\[[^\[\]]*\]", said)
        return _numbers(lists[-1]) if lists else None
    numbers = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", said))
    if not numbers or doc["answer_type"] not in ("integer", "float"):
        return said if doc["answer_type"] == "text" else None
    return _rounded(numbers[-1], doc)


def _expected(doc: Doc) -> Any:
    if doc["question_type"] == "multi_choice" or doc["answer_type"] == "text":
        return doc["answer"]
    return _numbers(doc["answer"]) if doc["answer_type"] == "list" else _rounded(doc["answer"], doc)


def _rounded(number: str, doc: Doc) -> float:
    """As upstream: whole, or with as many digits as the question asks for."""
    value = float(number)
    return float(int(value)) if doc["answer_type"] == "integer" else round(value, int(doc["precision"] or 0))


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(x) for x in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        return None


# MathVerse: its questions with options, where the picture has to be seen; the others need a judge -------------------

SEEN = ("Vision Intensive", "Vision Dominant", "Vision Only")


def mathverse_rows(rows: datasets.Dataset) -> datasets.Dataset:
    columns = ["problem_version", "question_type"]
    return rows.filter(lambda version, kind: version in SEEN and kind == "multi-choice", input_columns=columns)


def mathverse(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    score = float(option(results[0], 4) == doc["answer"].strip())
    version = doc["problem_version"].lower().replace(" ", "_")
    return {"accuracy": score, version: score}


def share(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores) if scores else float("nan")
