"""Training data in the upstream layouts, with tiny images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

WORDS = ["red", "blue", "circle", "square", "left", "right", "one", "two", "three"]


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (9 + number % 3, 9), (number * 37 % 256, number * 91 % 256, number * 53 % 256))


def pictures(folder: Path, count: int, prefix: str = "coco/train2017") -> list[str]:
    """`count` images under `folder`; their paths as an entry names them."""
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    paths = [f"{prefix}/{n:012d}.png" for n in range(count)]
    for n, path in enumerate(paths):
        picture(n).save(folder / path)
    return paths


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """LLaVA's `conversations`."""
    return [{"from": who, "value": text} for q, a in turns for who, text in (("human", q), ("gpt", a))]


def words(number: int, count: int = 3) -> str:
    """Another text for each number below 81."""
    return " ".join(WORDS[(number // len(WORDS) ** (n % 2) + n // 2) % len(WORDS)] for n in range(count))


def conversations(paths: Sequence[str]) -> list[dict[str, Any]]:
    """One entry an image; every third has two turns, every fourth is followed by one without an image."""
    entries: list[dict[str, Any]] = []
    for n, path in enumerate(paths):
        turns = [("<image>\nwhat is this ?" if n % 2 else "what is this ?\n<image>", words(n, 1 + n % 5))]
        if n % 3 == 0:
            turns.append(("is this one ?", words(n + 1)))
        entries.append({"id": f"{n:012d}", "image": path, "conversations": said(*turns)})
        if n % 4 == 0:
            entries.append({"id": f"text{n}", "conversations": said(("what is " + words(n) + " ?", words(n + 2)))})
    return entries


def captions(paths: Sequence[str]) -> list[dict[str, Any]]:
    return [{"image": path, "caption": f"a {words(n)} ."} for n, path in enumerate(paths)]


def written(path: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON array, or JSON lines where the file is called so."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        path.write_text(json.dumps(list(entries), ensure_ascii=False, indent=1))
    return path


def shard(path: Path, first: int, count: int, objects: bool = False, leave_out: Sequence[str] = ()) -> Path:
    """cc3m's layout: 000000.jpg with 000000.txt, or with `objects` 000000.json."""
    with tarfile.open(path, "w") as tar:
        for n in range(first, first + count):
            image = io.BytesIO()
            picture(n).save(image, "jpeg")
            text = json.dumps({"caption": f"a {words(n)} ."}) if objects else f"a {words(n)} ."
            members = {f"{n:06d}.jpg": image.getvalue(), f"{n:06d}.{'json' if objects else 'txt'}": text.encode()}
            for name, content in members.items():
                if name not in leave_out:
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return path
