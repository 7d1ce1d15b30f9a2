"""The sample view: pictures, questions, what each run answered, and the visual tokens that it kept.

A bounded number of questions is shown: those that tell runs apart, those that all get wrong, and those that only the
uncompressed backbone gets right.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vtc import results
from vtc.drawing import groups, token_boxes
from vtc.errors import UserError
from vtc.evaluation.sources import source_of
from vtc.evaluation.sources.base import Document, TaskSource
from vtc.report.collection import Setting, commonest_budget
from vtc.report.runs import Run
from vtc.report.split import RIGHT
from vtc.settings import BenchmarkSettings

SIDE = 240  # pixels of a thumbnail's longer side
RUNS = 60  # of a table whose answers are shown
SHARES = (0.7, 0.15, 0.15)  # of the samples: runs differ, all are wrong, only the uncompressed is right

COLUMNS = ("task", "id", "prediction", "target", "score", "error", "question", "pictures", "images")

Key = tuple[str, str]  # task and id


def view(setting: Setting, count: int, first: Iterable[Key] = ()) -> dict[str, Any] | None:
    """What the page shows of a table's samples; None where no run has its answers beside it.

    Args:
        count: of questions.
        first: questions that are shown before others.
    """
    runs = [run for run in _shown(setting) if _keeps_answers(run)]
    if not runs or not count:
        return None
    chosen = choose(setting, runs, count, first)
    opened = Pictures(runs[0])
    layouts = Layouts()
    answers: dict[Key, dict[int, dict[str, Any]]] = {key: {} for key in chosen}
    stated: dict[Key, list[dict[str, Any]]] = {key: [] for key in chosen}
    for run in runs:
        at = setting.runs.index(run)
        for row in _rows(run, chosen):
            key = (row["task"], row["id"])
            answers[key][at] = _answer(row) | layouts.tokens(row.get("images"))
            stated[key].append(row)
    rows = []
    for key in chosen:
        document = opened.of(key, _stated(stated[key], "pictures"))
        rows.append(
            {
                "task": key[0],
                "id": key[1],
                "question": _stated(stated[key], "question") or document.question,
                "target": str(_stated(stated[key], "target") or ""),
                "pictures": document.pictures,
                "answers": answers[key],
            }
        )
    shown = [setting.runs.index(run) for run in runs]
    return {"setting": setting.name, "runs": shown, "rows": rows, "boxes": layouts.boxes}


def _shown(setting: Setting) -> list[Run]:
    """The runs whose answers are shown: the uncompressed first, then the best at the commonest budget, then others."""
    usual = commonest_budget(setting)
    ranked = sorted(setting.runs, key=lambda run: (not run.is_baseline, run.tokens != usual, -run.score().value))
    return [run for run in ranked if run.samples is not None][:RUNS]


def _keeps_answers(run: Run) -> bool:
    import pyarrow.parquet as pq

    try:
        return "prediction" in pq.read_schema(run.path.with_name(results.SAMPLES)).names
    except (OSError, ValueError):
        return False


def _rows(run: Run, keys: Sequence[Key]) -> list[dict[str, Any]]:
    """What a run's samples hold of some questions."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(run.path.with_name(results.SAMPLES)) as file:
        table = file.read(columns=[name for name in COLUMNS if name in file.schema_arrow.names], use_threads=False)
    places: dict[Key, int] = {}
    wanted = set(keys)
    for at, key in enumerate(zip(table["task"].to_pylist(), map(str, table["id"].to_pylist()), strict=True)):
        if key in wanted:
            places.setdefault(key, at)
    return [{**row, "id": str(row["id"])} for row in table.take(list(places.values())).to_pylist()]


def choose(setting: Setting, runs: Sequence[Run], count: int, first: Iterable[Key] = ()) -> list[Key]:
    """The most telling questions, of every task alike: those on which the runs differ most, those that all get wrong,
    those that only the uncompressed backbone gets right."""
    import numpy as np

    from vtc.statistics import side_by_side

    table = side_by_side([run.samples for run in runs])
    keys = list(zip(table.index.get_level_values("task"), table.index.get_level_values("id"), strict=True))
    scales = np.array([runs[0].scales.get(task, 1.0) for task, _ in keys])
    right = (table.to_numpy(float) / scales[:, None] >= RIGHT).astype(float)
    share = right.mean(axis=1)
    base = np.array([run.is_baseline for run in runs])
    only = (right[:, base].max(axis=1, initial=0) > 0) & (right[:, ~base].max(axis=1, initial=0) == 0)
    only &= bool((~base).any())
    known = set(keys)
    taken = dict.fromkeys(list(dict.fromkeys(key for key in first if key in known))[:count])
    for worth, part in ((share * (1 - share), SHARES[0]), (share == 0, SHARES[1]), (only, SHARES[2])):
        worth = np.asarray(worth, dtype=float)
        by_task: dict[str, list[int]] = {}
        for at in np.argsort(-worth, kind="stable"):
            if worth[at] > 0 and keys[at] not in taken:
                by_task.setdefault(keys[at][0], []).append(int(at))
        room = min(round(part * count), count - len(taken))
        for turn in range(max(map(len, by_task.values()), default=0)):
            for members in by_task.values():
                if room > 0 and turn < len(members):
                    taken[keys[members[turn]]] = None
                    room -= 1
    for key in keys if len(taken) < count else ():  # a small test set is shown whole
        if len(taken) < count:
            taken[key] = None
    return sorted(taken, key=lambda key: setting.tasks.index(key[0]) if key[0] in setting.tasks else 0)


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    error, score = row.get("error"), row["score"]
    return {
        "text": str(row["prediction"] or "")[:400],
        "score": None if score is None or score != score else float(score),
        **({"error": str(error)[:200]} if isinstance(error, str) else {}),
    }


def _stated(rows: Sequence[Any], column: str) -> Any:
    """What the first run that states it says of a question."""
    return next((v for row in rows if (v := row.get(column)) is not None and not _empty(v)), None)


def _empty(value: Any) -> bool:
    return value == "" if isinstance(value, str) else value != value if isinstance(value, float) else len(value) == 0


class Layouts:
    """Where the visual tokens of images stand, each arrangement once.

    Attributes:
        boxes: of each arrangement the squares of its tokens, in thousandths of the picture's width and height.
    """

    def __init__(self) -> None:
        self.boxes: list[list[Any]] = []
        self._numbers: dict[str, int] = {}

    def tokens(self, images: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        """What became of a question's visual tokens, where a run has kept it: those that are left, and with each those
        that merged into it."""
        if images is None:
            return {}
        out = []
        for image in images:
            held = groups(image["holders"]).items()
            parts = [[token, *(m for m in members if m != token)] for token, members in held]
            out.append({"layout": self._number(image["regions"]), "held": parts, "made": int(image["made"])})
        return {"images": out}

    def _number(self, regions: Sequence[Mapping[str, Any]]) -> int:
        name = repr(regions)
        if name not in self._numbers:
            self._numbers[name] = len(self.boxes)
            boxes = token_boxes(regions)
            self.boxes.append([None if box is None else [round(1000 * side) for side in box] for box in boxes])
        return self._numbers[name]


class Pictures:
    """The pictures of a benchmark's questions, opened once a task; thumbnails of them.

    Args:
        run: whose configuration says where they are.
    """

    def __init__(self, run: Run) -> None:
        known = run.config.get("benchmark") or {}
        fields = BenchmarkSettings.__dataclass_fields__
        self.source: TaskSource | None
        try:
            settings = BenchmarkSettings(**{key: value for key, value in known.items() if key in fields})
            self.source = source_of(settings)
        except (UserError, TypeError, ValueError, ImportError):
            self.source = None  # of a plug-in that is not here, or a file from elsewhere
        self._tasks: dict[str, Mapping[str, Document]] = {}

    def of(self, key: Key, hashes: Sequence[str] | None) -> Document:
        """A question's text and its pictures as data URIs; without those that aren't at hand, or are others now."""
        document = self._documents(key[0]).get(key[1])
        if document is None:
            return Document()
        thumbnails = []
        for at, source in enumerate(document.pictures):
            stated = hashes[at] if hashes is not None and at < len(hashes) else None
            if image := thumbnail(source, stated):
                thumbnails.append(image)
        return Document(document.question, thumbnails)

    def _documents(self, task: str) -> Mapping[str, Document]:
        if task not in self._tasks:
            try:
                self._tasks[task] = {} if self.source is None else self.source.documents(task)
            except (UserError, OSError, ValueError, KeyError):
                self._tasks[task] = {}
        return self._tasks[task]


def thumbnail(source: Any, stated: str | None = None) -> str | None:
    """A picture as a small data URI; None where it can't be opened, or isn't the one that a result states a hash of."""
    from PIL import Image

    from vtc.data.pictures import hash_picture, open_picture

    try:
        picture = open_picture(source)
    except (OSError, ValueError):
        return None
    if stated is not None and hash_picture(picture) != stated:
        return None
    size = SIDE / max(picture.size)
    if size < 1:
        picture = picture.resize([max(1, round(size * side)) for side in picture.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
