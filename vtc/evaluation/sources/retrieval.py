"""`benchmark=retrieval`: NoCaps as image-text retrieval and SugarCrepe (arXiv 2306.14610), as published.

    data/
      nocaps_val_4500_captions.json   COCO's layout: images of {id, file_name}, annotations of {image_id, caption}
      val/                            its pictures
      sugarcrepe/add_att.json …       seven files of {"0": {filename, caption, negative_caption}, …}
      val2017/                        its pictures, of COCO

Of either only what a task reads need be there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtc import results
from vtc.errors import UserError, unknown
from vtc.evaluation.sources.rows import RowsSource
from vtc.evaluation.spec import TaskSpec

NOCAPS = "nocaps_val_4500_captions.json"
CATEGORIES = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
Row = dict[str, Any]


class RetrievalTasks(RowsSource):
    """NoCaps and SugarCrepe from public data on the disk: a model answers with embeddings of a picture and of texts."""

    tasks = ("nocaps_retrieval", "sugarcrepe")

    def spec(self, task: str, seed: int) -> TaskSpec:
        if task not in self.tasks:
            raise unknown("benchmark.tasks", task, self.tasks)
        kwargs = {**self.kwargs, "task": task}
        return self.shipped_spec(task, task, seed, self.content(task), dataset_kwargs=kwargs)

    def content(self, task: str) -> Mapping[str, Any]:
        rows = self._rows(task)
        hashes = results.hash_files(row["images"][0] for row in rows)
        return {"rows": [{**row, "images": hashes[row["images"][0]]} for row in rows]}

    def samples(self, task: str) -> int | None:
        count = len(self._rows(task))
        return min(count, self.benchmark.limit) if self.benchmark.limit else count

    def table(self, task: str) -> Any:
        import datasets

        return datasets.Dataset.from_list(self._rows(task))

    def _rows(self, task: str) -> list[Row]:
        if not self.benchmark.data:
            raise UserError(
                "benchmark.data=null: benchmark=retrieval needs the folder of its data; see docs/evaluate.md"
            )
        folder = Path(self.benchmark.data).expanduser()
        rows = list(nocaps(folder) if task == self.tasks[0] else sugarcrepe(folder))
        if not any(Path(row["images"][0]).is_file() for row in rows):
            raise UserError(f"benchmark.data={folder}: no picture of {task} is there, such as {rows[0]['images'][0]}")
        return rows


def nocaps(folder: Path) -> Iterator[Row]:
    """A row an image, with all of its captions, a line each.

    Raises:
        UserError: no such file, or one in another layout.
    """
    file = folder / NOCAPS
    content = _read(file, lambda c: isinstance(c["images"], list) and isinstance(c["annotations"], list))
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(_line(annotation["caption"]))
    for image in content["images"]:
        own = captions.get(image["id"])
        if own:
            yield _row(str(image["id"]), folder / "val" / image["file_name"], own, own, [], "nocaps")


def sugarcrepe(folder: Path) -> Iterator[Row]:
    """A row a pair of captions, the right one first. Categories take turns, so that the first n rows have all of them.

    Raises:
        UserError: as `nocaps`.
    """
    pairs = []
    for number, kind in enumerate(CATEGORIES):
        content = _read(folder / "sugarcrepe" / f"{kind}.json", lambda c: isinstance(c, dict) and len(c) > 0)
        pairs += [(place, number, kind, name, pair) for place, (name, pair) in enumerate(content.items())]
    for _, _, kind, name, pair in sorted(pairs, key=lambda item: item[:2]):
        right, wrong = _line(pair["caption"]), _line(pair["negative_caption"])
        yield _row(f"{kind}-{name}", folder / "val2017" / pair["filename"], [right, wrong], [right], [wrong], kind)


def _row(name: str, image: Path, lines: list[str], answers: list[str], options: list[str], kind: str) -> Row:
    return {
        "id": name,
        "text": "\n".join(lines),
        "images": [str(image)],
        "answer": answers[0],
        "answers": answers,
        "options": options,
        "target": answers[0],
        "kind": kind,
    }


def _line(caption: str) -> str:
    return " ".join(str(caption).split())


def _read(file: Path, fits: Callable[[Any], bool]) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if fits(content):
            return content
    except OSError as error:
        raise UserError(f"benchmark.data: {file} can't be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"benchmark.data: {file}: not in its authors' layout; see docs/evaluate.md")
