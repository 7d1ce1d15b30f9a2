"""Questions of the user's own about pictures of their own: a JSONL file, or a data set in Hugging Face's layout.

A line of the file, or a row of the data set, is as `vtc.evaluation.sources.user_questions` says; paths of images are
relative to the file. Everything is checked before a model is loaded, but for what is in the images: a broken one is one
bad sample, reported and not scored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc import results
from vtc.errors import UserError, unknown
from vtc.evaluation.sources.base import source_of
from vtc.evaluation.sources.rows import RowsSource, doc_of
from vtc.evaluation.sources.user_questions import METRICS, UserQuestion, questions_of
from vtc.job import Job
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
        file = Path(os.path.expanduser(str(self.benchmark.data)))
        pictures = [image for question in self.questions(task) for image in question.images]
        hashes = results.hash_files(pictures)
        return {"file": results.hash_file(file), "pictures": [hashes[picture] for picture in pictures]}


class HubTasks(UserData):
    """A data set in Hugging Face's layout: a folder, or an id of the hub."""

    example = "data=<folder or id of a data set>"

    def content(self, task: str) -> Mapping[str, Any]:
        """What is in the folder's files; an id of the hub counts by its name, its configuration by the settings."""
        folder = Path(os.path.expanduser(str(self.benchmark.data)))
        if not os.path.isdir(folder):
            return {"id": self.benchmark.data}
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = results.hash_files(files)
        return {"files": [(path.relative_to(folder).as_posix(), hashes[str(path)]) for path in files]}

    def check_settings(self) -> None:
        super().check_settings()
        columns = self.benchmark.columns
        if not isinstance(columns, Mapping):
            raise UserError(f"benchmark.columns={columns}: allowed: {{image: …, question: …, answer: …}}")
        for key in ("image", "question", "answer"):
            if not columns.get(key):
                raise UserError(f"benchmark.columns.{key}=null: the name of a column is needed")

    def check(self, job: Job, tasks: Sequence[str], network: bool = True) -> None:
        """Reads every row but its pictures; a data set that isn't here is fetched for it, unless `network` is False."""
        if network or os.path.isdir(os.path.expanduser(str(self.benchmark.data))):
            for task in tasks:
                self.table(task)

    def table(self, task: str) -> Any:
        import datasets

        rows = self._columns()
        try:
            image = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # of Arrow
            raise UserError(f"benchmark.columns.image: that column holds no pictures ({error})") from None
        docs = list(self._rows_without_images(rows.remove_columns("image"), task))
        return datasets.concatenate_datasets(
            [datasets.Dataset.from_list(docs), image.rename_column("image", "picture")], axis=1
        )

    def _rows_without_images(self, rows: Iterable[dict[str, Any]], task: str) -> Iterator[dict[str, Any]]:
        def named(row: dict[str, Any]) -> dict[str, Any]:
            """A column of answers may hold one or several."""
            several = isinstance(row["answer"], list)
            return {"answers" if several and key == "answer" else key: value for key, value in row.items()}

        prompt, where = self.prompt(task), f"benchmark.data={self.benchmark.data}, row"
        for question in questions_of(enumerate(map(named, rows)), where, self.metric(task)):
            doc = doc_of(question, prompt)
            del doc["images"]  # they are a column of their own
            yield doc

    def _columns(self) -> Any:
        """The data set with its columns under our names.

        Raises:
            UserError: it can't be loaded, or has no such split or column.
        """
        import datasets

        data, subset, split = str(self.benchmark.data), self.benchmark.subset, self.benchmark.split
        try:
            rows = datasets.load_dataset(data, subset, split=split)
        except Exception as error:  # each kind of source fails in its own way
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"benchmark.data={data}: can't be loaded ({lines[0]})") from error
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
    path, where = Path(os.path.expanduser(file)), f"benchmark.data={file}"
    if not os.path.isfile(path):
        raise UserError(f"{where}: no such file; a JSONL file with image, question and answer is needed")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{where}: can't be read ({error.strerror})") from None
    rows = ((n, _row(line, f"{where}, line {n}")) for n, line in enumerate(lines, 1) if line.strip())
    questions = list(questions_of(rows, f"{where}, line", metric, paths=True))
    if not questions:
        raise UserError(f"{where}: no questions in it")
    for question in questions:
        question.images[:] = [str(path.parent / image) for image in question.images]
    images = [image for question in questions for image in question.images]
    if images and not any(map(os.path.isfile, images)):
        raise UserError(f"{where}: none of its {len(images)} images is there, such as {images[0][:200]}")
    return questions


def _row(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start + 1} is not UTF-8, in which the file must be") from None
    except RecursionError:
        raise UserError(f"{where}: no JSON for us (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{where}: no JSON ({str(error).partition(';')[0]})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands in it twice")
    return row
