"""Small test sets in the layout of the pocket benchmark."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
NAMES = ("circle", "square", "star", "ring")
N = 12


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def row(task: str, i: int, question: str, answer: str, **more) -> dict:
    return {
        "id": f"{task}-{i}",
        "image": {"bytes": png(i), "path": None},
        "question": question,
        "answer": answer,
        "options": [],
        "kind": "",
        "references": [],
        "blind": 0.25,
        "bag": 0.5,
        "blind_prediction": "",
        "bag_prediction": "",
    } | more


def caption_of(i: int) -> str:
    return f"a large {COLORS[i % 6]} {NAMES[i % 4]}, a small {COLORS[(i + 2) % 6]} {NAMES[(i // 2) % 4]}."


def make_rows(task: str) -> list[dict]:
    short = task.removeprefix("pocket_")
    nan = float("nan")
    makers = {
        "existence": lambda i: ("is there a red circle?", "yes" if i % 2 else "no", {}),
        "counting": lambda i: ("how many objects are there?", str(i % 5), {}),
        "attributes": lambda i: ("what color is the star?", COLORS[i % 6], {}),
        "relations": lambda i: ("where is the red circle?", ("top left", "bottom right")[i % 2], {}),
        "reading": lambda i: ("what digit is red?", str(i % 10), {}),
        "choice": lambda i: ("what color is the star? A red B green C blue D yellow", "ABCD"[i % 4], {}),
        "captions": lambda i: (
            "describe the image.",
            caption_of(i),
            {
                "references": [caption_of(i)],
                "blind": nan,
                "bag": nan,
                "blind_prediction": caption_of(i + 1),
                "bag_prediction": caption_of(i),
            },
        ),
        "retrieval": lambda i: ("<embed>", caption_of(i), {"blind": 1 / N}),
        "hard_captions": lambda i: (
            "<embed>",
            caption_of(i),
            {"options": [caption_of(i + 1)], "kind": ("replace", "swap", "add", "add")[i % 4], "blind": 0.5},
        ),
    }
    out = []
    for i in range(N):
        question, answer, more = makers[short](i)
        out.append(row(short, i, question, answer, **more))
    return out


def write_rows(path: Path, rows: list[dict]) -> Path:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("image", image), ("question", pa.string()), ("answer", pa.string())]
        + [("options", pa.list_(pa.string())), ("kind", pa.string()), ("references", pa.list_(pa.string()))]
        + [("blind", pa.float64()), ("bag", pa.float64())]
        + [("blind_prediction", pa.string()), ("bag_prediction", pa.string()), ("group", pa.int64())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path
