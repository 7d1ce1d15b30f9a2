"""Rows of a user's own questions: fields with values of other kinds, files in other encodings, prompts of any shape."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

from attack import Case
from PIL import Image

ROW = {"image": "a.png", "question": "how many circles are there ?", "answer": "two"}
CHOICE = {**ROW, "options": ["one", "two"], "answer": "B"}
BASE = ("benchmark=jsonl", "data=x.jsonl", "method=none", "output_dir=o")
# value as JSON text → fields for which it is right; for all others the row is refused.
VALUES = {
    "null": {"id", "options", "image", "images"},  # a question without a picture is one too
    "5": {"answer", "id"},
    "-1.5": {"answer", "id"},
    "1e400": set(),
    "NaN": set(),
    "true": {"answer"},
    "[]": {"images"},
    "{}": set(),
    '""': set(),
    '"' + "x" * 5000 + '"': {"answer", "id", "question"},
    '"\\ud800"': set(),
    "[null]": set(),
    "[5]": {"answers"},
    '[["a"]]': set(),
    '{"a": 1}': set(),
    '{"A": "one", "B": "two"}': set(),
    '"one, two"': {"answer", "id", "question"},
    "9" * 5000: set(),
    '"\\u0000"': {"answer", "id", "question"},
    '"狗"': {"answer", "id", "question"},
}
FIELDS = ("image", "images", "question", "answer", "answers", "options", "id")
PROMPTS = (
    "{question.x}",
    "{question[a]}",
    "{question[0]}",
    "{question.__class__}",
    "{nope}",
    "{}",
    "{0}",
    "{question",
    "question}",
    "{question!z}",
    "{question:d}",
    "no question in it",
)


def row_text(field: str, value: str) -> str:
    """A row as JSON text in which one field has a value that need not be one that Python can write."""
    row = dict(CHOICE if field == "options" else ROW)
    for other in {"images": ("image",), "answers": ("answer",)}.get(field, ()):
        del row[other]
    row[field] = "@"
    return json.dumps(row, ensure_ascii=False).replace('"@"', value)


def picture(folder: Path) -> None:
    Image.new("RGB", (96, 96), (200, 0, 0)).save(folder / "a.png")


def case(name: str, data: bytes | None, right: str, *more: str, seconds: float = 120.0) -> Case:
    def prepare(folder: Path) -> None:
        picture(folder)
        if data is not None:
            (folder / "x.jsonl").write_bytes(data)

    prompt = () if any(word.startswith("benchmark.prompt") for word in more) else ("benchmark.prompt='{question}'",)
    return Case(name, [*BASE, *prompt, *more], right, prepare=prepare, seconds=seconds)


def cases(folder: Path) -> Iterator[Case]:
    for field in FIELDS:
        more = ("benchmark.metric=choice",) if field == "options" else ()
        for value, fields in VALUES.items():
            # Null options and numbers as ids may be taken or not: only silence about nonsense is wrong.
            right = "either" if field in fields else "refused"
            yield case(f"{field}: {value[:40]}", row_text(field, value).encode(), right, *more)
    text = json.dumps(ROW)
    two = [json.dumps({**ROW, "id": str(n)}) for n in range(2)]
    yield case("empty", b"", "refused")
    yield case("blank lines alone", b"\n \n\t\n", "refused")
    yield case("missing", None, "refused")
    yield case("latin-1", b'{"image":"a.png","question":"\xe9","answer":"x"}', "refused")
    yield case("UTF-16", text.encode("utf-16"), "refused")
    yield case("UTF-32", text.encode("utf-32"), "refused")
    yield case("UTF-8 with a mark", b"\xef\xbb\xbf" + text.encode(), "works")
    yield case("CRLF", "\r\n".join(two).encode(), "works")
    yield case("blank lines between", "\n\n".join(two).encode(), "works")
    yield case("no end of line", two[0].encode(), "works")
    yield case("nested", b"[" * 100000 + b"]" * 100000, "refused")
    yield case("nested in a row", row_text("note", "[" * 100000 + "]" * 100000).encode(), "refused")
    yield case("array on top", json.dumps([ROW]).encode(), "refused")
    yield case("a number", b"5", "refused")
    yield case("a string", b'"x"', "refused")
    yield case("null", b"null", "refused")
    yield case("comma behind", (text + ",").encode(), "refused")
    yield case("cut", text[:-5].encode(), "refused")
    yield case("two rows on one line", (two[0] + two[1]).encode(), "refused")
    yield case("zeros behind", text.encode() + b"\0" * 100, "refused")
    yield case("gzip", gzip.compress(text.encode()), "refused")
    yield case("one id for all", "\n".join([json.dumps({**ROW, "id": "same"})] * 2).encode(), "refused")
    yield case("null id for all", "\n".join([json.dumps({**ROW, "id": None})] * 2).encode(), "either")
    yield case("ids 1 and '1'", "\n".join(json.dumps({**ROW, "id": i}) for i in (1, "1")).encode(), "refused")
    yield case("ids in some rows", "\n".join([two[0], text]).encode(), "either")
    yield case("field twice", (text[:-1] + ', "answer": "three"}').encode(), "either")
    yield case("two rows alike", "\n".join([text, text]).encode(), "works")
    for key in ("question", "answer"):
        yield case(f"without {key}", json.dumps({k: v for k, v in ROW.items() if k != key}).encode(), "refused")
    for name in ("nowhere.png", "../a.png", "/nowhere/a.png", "x.jsonl", ".", "", "a.png\0", "file:///a.png"):
        yield case(f"image {name!r}", json.dumps({**ROW, "image": name}).encode(), "refused")
    for answer in ("A", "B", "C", "b", "one", "", "1", "AB"):
        right = {"A": "works", "B": "works", "C": "refused", "": "refused", "AB": "refused"}.get(answer, "either")
        yield case(f"choice {answer!r}", json.dumps({**CHOICE, "answer": answer}).encode(), right,
                   "benchmark.metric=choice")  # fmt: skip
    for options in (["one"], ["one", "one"], [str(n) for n in range(30)], ["one", 2], ["", "two"]):
        yield case(f"options {options[:4]}", json.dumps({**CHOICE, "options": options}).encode(), "either",
                   "benchmark.metric=choice")  # fmt: skip
    for prompt in PROMPTS:
        yield case(f"prompt {prompt}", text.encode(), "refused", f"benchmark.prompt='{prompt}'")
    for metric in ("nope", "''", "5", "[choice]", "null"):
        right = "either" if metric == "null" else "refused"
        yield case(f"metric {metric}", text.encode(), right, f"benchmark.metric={metric}")
    many = {"images": ["a.png"] * 20, "question": "q", "answer": "a"}
    yield case("20 pictures, past the context", json.dumps(many).encode(), "refused")
    yield Case("a folder", [*BASE], "refused", prepare=lambda f: (f / "x.jsonl").mkdir())
    yield Case("a pipe", [*BASE], "refused", prepare=lambda f: os.mkfifo(f / "x.jsonl"), seconds=30)
