"""Questions of the user's own about pictures of their own: a JSONL file, or a data set in Hugging Face's layout.

A line of the file, or a row of the data set, is as `vtc.evaluation.sources.user_questions` says; paths of images are
relative to the file. Everything is checked before a model is loaded, but for what is in the images: a broken one is one
bad sample, reported and not scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtc import hub, results
from vtc.errors import UserError, unknown
from vtc.evaluation.sources.base import source_of
from vtc.evaluation.sources.rows import RowsSource, doc_of
from vtc.evaluation.sources.user_questions import METRICS, UserQuestion, question_of
from vtc.settings import BenchmarkSettings


class UserData(RowsSource):
    """What a file and a data set of the user's have in common: one task, over `benchmark.data`."""

    example = ""

    def check_settings(self) -> None:
        """Refuses what can be told before a model is loaded.

        Raises:
            UserError: no data, an unknown metric, a prompt without a question; of a file whatever is wrong in it.
        """
        if self.benchmark.metric not in METRICS:
            raise unknown("benchmark.metric", self.benchmark.metric, METRICS)
        if not self.benchmark.data:
            raise UserError(f"benchmark={self.benchmark.name}: needs data; give {self.example}")
        self.prompt("")


class JsonlTasks(UserData):
    """A JSONL file."""

    example = "data=my.jsonl"

    def check_settings(self) -> None:
        super().check_settings()
        self.questions("")

    def questions(self, task: str) -> list[UserQuestion]:
        return read(str(self.benchmark.data), self.metric(task))

    def content(self, task: str) -> Mapping[str, Any]:
        """The questions, and what is in the pictures."""
        file = Path(str(self.benchmark.data)).expanduser()
        pictures = [image for question in self.questions(task) for image in question.images]
        hashes = results.hash_files(pictures)
        return {"file": results.hash_file(file), "pictures": [hashes[picture] for picture in pictures]}


class HubTasks(UserData):
    """A data set in Hugging Face's layout: a folder, or an id of the hub."""

    example = "data=<folder or id of a data set>"

    def content(self, task: str) -> Mapping[str, Any]:
        """What is in the folder's files; an id of the hub counts by its name, its configuration by the settings."""
        folder = Path(str(self.benchmark.data)).expanduser()
        if not folder.is_dir():
            return {"id": self.benchmark.data}
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = results.hash_files(files)
        return {"files": [(path.relative_to(folder).as_posix(), hashes[str(path)]) for path in files]}

    def table(self, task: str) -> Any:
        import datasets

        rows = self._columns()
        image = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
        docs = list(self._rows_without_images(rows.remove_columns("image"), task))
        return datasets.concatenate_datasets(
            [datasets.Dataset.from_list(docs), image.rename_column("image", "picture")], axis=1
        )

    def _rows_without_images(self, rows: Iterable[dict[str, Any]], task: str) -> Iterator[dict[str, Any]]:
        metric, prompt = self.metric(task), self.prompt(task)
        for number, row in enumerate(rows):
            answers = row.pop("answer")
            row |= {"answers" if isinstance(answers, list) else "answer": answers}
            where = f"benchmark.data={self.benchmark.data}, row {number}"
            doc = doc_of(question_of(row, where, metric, number), prompt)
            del doc["images"]  # they are a column of their own
            yield doc

    def _columns(self) -> Any:
        """The data set with its columns under our names.

        Raises:
            UserError: it can't be loaded, or has no such split or column.
        """
        import datasets

        data, subset, split = str(self.benchmark.data), self.benchmark.subset, self.benchmark.split
        remote = not Path(data).expanduser().exists()
        if remote:
            hub.answers()
        try:
            rows = datasets.load_dataset(data, subset, split=split)
        except Exception as error:  # each kind of source fails in its own way
            lines = str(error).strip().splitlines() or [type(error).__name__]
            why = hub.missing(data, "dataset") if remote else ""
            raise UserError(f"benchmark.data={data}: can't be loaded ({why or f'{lines[0]})'}") from error
        columns = {key: column for key, column in (self.benchmark.columns or {}).items() if column}
        for key, column in columns.items():
            if column not in rows.column_names:
                raise unknown(f"benchmark.columns.{key}", column, rows.column_names)
        return rows.select_columns(list(columns.values())).rename_columns({c: key for key, c in columns.items()})


def check(benchmark: BenchmarkSettings) -> None:
    """What can be said of a benchmark of the user's own before a model is loaded; of any other nothing.

    Raises:
        UserError: see `UserData.check_settings`.
    """
    source = source_of(benchmark)
    if isinstance(source, UserData):
        source.check_settings()


def read(file: str | Path, metric: str) -> list[UserQuestion]:
    """The questions of a JSONL file, images as whole paths.

    Raises:
        UserError: no such file, a line that is no question, or not one image that is there.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"benchmark.data={file}: no such file; a JSONL file with image, question and answer is needed")
    questions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"benchmark.data={file}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: no JSON ({error})") from None
            question = question_of(row, where, metric, number)
            if not all(isinstance(image, str) for image in question.images):
                raise UserError(f"{where}: image: a path is needed")
            questions.append(question)
    if not questions:
        raise UserError(f"benchmark.data={file}: no questions in it")
    for question in questions:
        question.images[:] = [str(path.parent / image) for image in question.images]
    images = [image for question in questions for image in question.images]
    if images and not any(Path(image).is_file() for image in images):
        raise UserError(f"benchmark.data={file}: none of its {len(images)} images is there, such as {images[0]}")
    return questions
