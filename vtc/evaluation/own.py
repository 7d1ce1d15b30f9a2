"""Questions of one's own about images of one's own: a JSONL file, or a data set in Hugging Face's layout.

    {"image": "sofa.png", "question": "What is on the sofa?", "answer": "a cat"}
    {"images": ["a.png", "b.png"], "question": "Which one is older?", "answers": ["the first", "first"]}
    {"image": "sofa.png", "question": "Where is the cat?", "options": ["on the sofa", "under it"], "answer": "A"}

One object a line; `id` is optional; paths of images are relative to the file. Everything is checked before a model is
loaded, but for what is in the images: a broken one is one bad sample, reported and not scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vtc.errors import UserError, nearest, unknown

METRICS = ("exact_match", "vqa_accuracy", "anls", "choice")
KEYS = ("id", "image", "images", "question", "answer", "answers", "options")
LEAST = 4  # answers a question for VQA accuracy: an answer is wholly right when three people beside one gave it
PREFIX = "own_"  # of the tasks' names, the metric follows


@dataclass(frozen=True)
class Question:
    """One question. `images` are paths (or what a data set holds); `answers` are all right, letters for `choice`."""

    id: str
    text: str
    images: list[Any]
    answers: list[str]
    options: list[str]

    def doc(self, prompt: str) -> dict[str, Any]:
        """The row that lmms-eval gets; its `text` is the prompt filled in."""
        lines = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, self.options, strict=False))
        text = prompt.format(question=self.text, options=lines)
        return {"id": self.id, "text": text, "images": self.images, "answers": self.answers, "target": self.answers[0]}


def checked(row: Any, where: str, metric: str, number: int) -> Question:
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
    given = [str(a) for a in answers]
    options = list(map(str, row.get("options") or []))
    if metric == "choice":
        given = [_letter(answer, options, where) for answer in given]
    elif options:
        raise UserError(f"{where}: options are for benchmark.metric=choice, not {metric}")
    if metric == "vqa_accuracy" and len(given) < LEAST:
        raise UserError(
            f"{where}: {len(given)} answers; benchmark.metric=vqa_accuracy compares an answer with those of many "
            f"people ({LEAST} or more, VQAv2 has ten); exact_match takes any number"
        )
    return Question(str(row.get("id", number)), question, images, given, options)


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


def read(file: str | Path, metric: str) -> list[Question]:
    """The questions of a JSONL file, images as whole paths.

    Raises:
        UserError: no such file, a line that is no question, or not one image that is there.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"benchmark.data={file}: no such file; a JSONL file with image, question and answer is needed")
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"benchmark.data={file}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: no JSON ({error})") from None
            question = checked(row, where, metric, number)
            if not all(isinstance(image, str) for image in question.images):
                raise UserError(f"{where}: image: a path is needed")
            found.append(question)
    if not found:
        raise UserError(f"benchmark.data={file}: no questions in it")
    for question in found:
        question.images[:] = [str(path.parent / image) for image in question.images]
    images = [image for question in found for image in question.images]
    if images and not any(Path(image).is_file() for image in images):
        raise UserError(f"benchmark.data={file}: none of its {len(images)} images is there, such as {images[0]}")
    return found


def of_hub(data: str, metric: str, split: str, columns: Mapping[str, str | None], name: str | None = None) -> Any:
    """The same from a data set: `docs` without images, and the column of images beside them, undecoded.

    Args:
        data: a folder or an id that `datasets.load_dataset` takes.
        columns: which of its columns are image, question, answer, options and id; null: it has none.

    Raises:
        UserError: it can't be loaded, has no such split or column, or a row that is no question.
    """
    import datasets

    try:
        rows = datasets.load_dataset(data, name, split=split)
    except Exception as error:  # each kind of source fails in its own way
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"benchmark.data={data}: can't be loaded ({first[0]})") from error
    wanted = {key: column for key, column in columns.items() if column}
    for key, column in wanted.items():
        if column not in rows.column_names:
            raise unknown(f"benchmark.columns.{key}", column, rows.column_names)
    rows = rows.select_columns(list(wanted.values()))
    for key, column in wanted.items():
        rows = rows.rename_column(column, f"own_{key}")
    return rows.rename_columns({f"own_{key}": key for key in wanted})


def table(benchmark: Mapping[str, Any]) -> Any:
    """The data set that lmms-eval scores: id, text, images, answers, target; images stay undecoded.

    Args:
        benchmark: data, metric, prompt; of `hf` also split, columns and subset.
    """
    import datasets

    metric, prompt = str(benchmark["metric"]), _prompt(benchmark)
    if benchmark["name"] == "jsonl":
        return datasets.Dataset.from_list([q.doc(prompt) for q in read(str(benchmark["data"]), metric)])
    rows = of_hub(
        str(benchmark["data"]), metric, str(benchmark["split"]), benchmark["columns"], benchmark.get("subset")
    )
    image = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    docs = list(_docs(rows.remove_columns("image"), benchmark, metric, prompt))
    return datasets.concatenate_datasets(
        [datasets.Dataset.from_list(docs), image.rename_column("image", "picture")], axis=1
    )


def _docs(rows: Any, benchmark: Mapping[str, Any], metric: str, prompt: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        answers = row.pop("answer")
        row |= {"answers" if isinstance(answers, list) else "answer": answers}
        where = f"benchmark.data={benchmark['data']}, row {number}"
        doc = checked(row, where, metric, number).doc(prompt)
        del doc["images"]  # they are a column of their own
        yield doc


def _prompt(benchmark: Mapping[str, Any]) -> str:
    prompt = benchmark.get("prompt") or PROMPTS.get(str(benchmark["metric"]), SHORT)
    try:
        prompt.format(question="", options="")
    except (KeyError, IndexError, ValueError):
        raise UserError(f"benchmark.prompt={prompt!r}: allowed in braces: {{question}}, {{options}}") from None
    if "{question}" not in prompt:
        raise UserError(f"benchmark.prompt={prompt!r}: {{question}} is needed in it")
    return prompt


# LLaVA-1.5's (arXiv 2310.03744, appendix): for a short answer, and for a letter.
SHORT = "{question}\nAnswer the question using a single word or phrase."
PROMPTS = {"choice": "{question}\n{options}\nAnswer with the option's letter from the given choices directly."}


def check(benchmark: Mapping[str, Any]) -> None:
    """What can be said of a benchmark of one's own before a model is loaded.

    Raises:
        UserError: no data, an unknown metric, a prompt without a question; of a JSONL file whatever is wrong in it.
    """
    if benchmark.get("metric") not in METRICS:
        raise unknown("benchmark.metric", benchmark.get("metric"), METRICS)
    if not benchmark.get("data"):
        example = "data=my.jsonl" if benchmark["name"] == "jsonl" else "data=<folder or id of a data set>"
        raise UserError(f"benchmark={benchmark['name']}: needs data; give {example}")
    _prompt(benchmark)
    if benchmark["name"] == "jsonl":
        read(str(benchmark["data"]), str(benchmark["metric"]))


# Scores of one answer ------------------------------------------------------------------------------------------------


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer has the words of one of the right ones."""
    from vtc.evaluation import scoring

    return max(scoring.exact_match(answer, r) for r in right)


def vqa_accuracy(answer: str, right: Sequence[str]) -> float:
    """VQA accuracy (Antol et al., 2015): min(1, others who said the same / 3), mean over leaving each person out."""
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    processed = EvalAIAnswerProcessor()
    said, people = processed(answer), [processed(r) for r in right]
    shares = [min(1.0, sum(said == p for p in people[:i] + people[i + 1 :]) / 3) for i in range(len(people))]
    return sum(shares) / len(shares)


def anls(answer: str, right: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest right answer, 0 below one half (Biten et al., 2019)."""
    from lmms_eval.api.metrics import anls as of_harness

    return float(of_harness(list(right), [answer])["anls"])


def choice(answer: str, right: Sequence[str]) -> float:
    """1 where the answer names the letter of the right option."""
    from vtc.evaluation import scoring

    return float(scoring.letter(answer) in right)


SCORES = {"exact_match": exact_match, "vqa_accuracy": vqa_accuracy, "anls": anls, "choice": choice}
