"""Rows of pocket's test sets: what a row holds, and how sets are written, once, the same bytes for everyone."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]

_TEXT, _TEXTS, _NUMBER = pa.string(), pa.list_(pa.string()), pa.float64()
_COLUMNS: dict[str, pa.DataType] = (
    {"id": _TEXT, "image": pa.struct([("bytes", pa.binary()), ("path", _TEXT)]), "question": _TEXT, "answer": _TEXT}
    | {"options": _TEXTS, "kind": _TEXT, "references": _TEXTS, "blind": _NUMBER, "bag": _NUMBER}
    | {"blind_prediction": _TEXT, "bag_prediction": _TEXT, "group": pa.int64()}
)
_ABSENT = {_TEXT: "", _TEXTS: [], _NUMBER: float("nan"), pa.int64(): -1}  # what a row holds that says nothing else


def row(picture: np.ndarray, question: str, answer: str, kind: str, **more: Any) -> Row:
    """One question.

    Args:
        picture: [H, W, 3] uint8.
        more: other columns.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    image = {"bytes": buffer.getvalue(), "path": None}
    empty = {name: _ABSENT.get(column) for name, column in _COLUMNS.items()}
    return empty | {"image": image, "question": question, "answer": answer, "kind": kind, **more}


def _feature(column: pa.DataType) -> dict[str, Any]:
    """A column in the words of `datasets`."""
    if pa.types.is_struct(column):
        return {"_type": "Image"}
    if pa.types.is_list(column):
        return {"feature": _feature(column.value_type), "_type": "List"}
    return {"dtype": str(column).replace("double", "float64"), "_type": "Value"}


_FEATURES = {name: _feature(_COLUMNS[name]) for name in ("image", *_COLUMNS)}
_SCHEMA = pa.schema([*_COLUMNS.items()], {"huggingface": json.dumps({"info": {"features": _FEATURES}})})


def written(
    folder: str | os.PathLike, tasks: Sequence[str], ending: str, rows: Callable[[str], list[Row]]
) -> dict[str, Path]:
    """Writes every task's set as parquet, unless it is there already.

    Args:
        ending: of the files' names: the split and the version.
        rows: of a task.

    Returns:
        task name → path. Files are written whole by a rename, so that two runs may do this at once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for task in tasks:
        path = folder / f"{task}-{ending}.parquet"
        if not path.exists():
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            pq.write_table(pa.Table.from_pylist(rows(task), schema=_SCHEMA), fresh)
            os.replace(fresh, path)
        paths[task] = path
    return paths
