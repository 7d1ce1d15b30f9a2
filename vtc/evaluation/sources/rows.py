"""Sources whose questions come as rows: a file, a data set, or a set that somebody draws."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from string import Formatter, ascii_uppercase
from typing import Any

from PIL import Image

from vtc.errors import UserError
from vtc.evaluation.sources.base import Document, TaskSource
from vtc.evaluation.sources.user_questions import UserQuestion, questions_of, text_of
from vtc.evaluation.spec import TaskSpec
from vtc.identity import hash_bytes

# LLaVA-1.5's (arXiv 2310.03744, appendix): for a short answer, and for a letter.
SHORT = "{question}\nAnswer the question using a single word or phrase."
PROMPTS = {"choice": "{question}\n{options}\nAnswer with the option's letter from the given choices directly."}


class RowsSource(TaskSource):
    """Questions with pictures and answers, scored by one of `vtc.evaluation.sources.user_questions.METRICS`.

    A class states `rows`; its tasks are named in `benchmark.tasks`. For example, a set that is drawn:

        class Dots(RowsSource):
            def rows(self, task):
                for n in range(1, 10):
                    yield {"image": picture_of(n), "question": "how many dots?", "answer": n}
    """

    def rows(self, task: str) -> Iterable[Mapping[str, Any]]:
        """The questions of a task: image or images (PIL images or paths), question, answer or answers; id, options.

        The same on every call: what they hold names the run.
        """
        raise NotImplementedError

    def metric(self, task: str) -> str:
        """By which metric a task is scored."""
        return self.benchmark.metric or "exact_match"

    def content(self, task: str) -> Mapping[str, Any]:
        """What of a task's data decides a score."""
        table = self.table(task)
        return {"rows": hash_bytes([repr(row) for row in table])}

    def spec(self, task: str, seed: int) -> TaskSpec:
        kwargs = {**self.kwargs, "task": task}
        return self.shipped_spec(task, f"own_{self.metric(task)}", seed, self.content(task), dataset_kwargs=kwargs)

    def location(self, task: str, look_up: Callable[[str], str]) -> str:
        return str(self.benchmark.data or "drawn here")

    def table(self, task: str) -> Any:
        """The data set that lmms-eval scores: id, text, images or pictures, answers, target; pictures undecoded."""
        import datasets

        return datasets.Dataset.from_list(list(self._docs(task)))

    def documents(self, task: str) -> Mapping[str, Document]:
        out = {}
        for row in self.table(task):
            pictures = row.get("pictures") or row.get("images") or [row.get("picture")]
            out[str(row["id"])] = Document(row["text"], [picture for picture in pictures if picture is not None])
        return out

    def questions(self, task: str) -> Iterable[UserQuestion]:
        """The rows of a task, each checked.

        Raises:
            UserError: one that is no question.
        """
        return questions_of(enumerate(self.rows(task)), f"{task}, row", self.metric(task))

    def _docs(self, task: str) -> Iterator[dict[str, Any]]:
        prompt = self.prompt(task)
        for question in self.questions(task):
            doc = doc_of(question, prompt)
            if not all(isinstance(image, (str, Path)) for image in question.images):
                doc["pictures"] = [_stored(image, f"{task}: question {question.id}") for image in question.images]
                del doc["images"]
            yield doc

    def prompt(self, task: str) -> str:
        """What the model is asked, with {question} and {options} in it.

        Raises:
            UserError: a prompt without a question, or with other words in braces.
        """
        prompt = self.benchmark.prompt
        prompt = PROMPTS.get(self.metric(task), SHORT) if prompt is None else text_of(prompt, "benchmark.prompt")
        try:
            fields = {(name, form, how) for _, name, form, how in Formatter().parse(prompt) if name is not None}
        except ValueError:  # a brace without its other one
            fields = {("", "", None)}
        if not fields <= {("question", "", None), ("options", "", None)}:
            raise UserError(f"benchmark.prompt={prompt!r}: allowed in braces: {{question}}, {{options}}")
        if ("question", "", None) not in fields:
            raise UserError(f"benchmark.prompt={prompt!r}: {{question}} is needed in it")
        return prompt


def doc_of(question: UserQuestion, prompt: str) -> dict[str, Any]:
    """The row that lmms-eval gets; its `text` is the prompt filled in."""
    lettered = zip(ascii_uppercase, question.options, strict=False)
    options = "\n".join(f"{letter}. {option}" for letter, option in lettered)
    return {
        "id": question.id,
        "text": prompt.format(question=question.text, options=options),
        "images": question.images,
        "answers": question.answers,
        "options": question.options,
        "target": question.answers[0],
    }


def _stored(image: Any, where: str) -> dict[str, Any]:
    """A picture as `datasets` stores it."""
    if isinstance(image, (str, Path)):
        return {"bytes": None, "path": str(image)}
    if not isinstance(image, Image.Image):
        raise UserError(f"{where}: image: a path or a PIL image is needed, not a {type(image).__name__}")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}
