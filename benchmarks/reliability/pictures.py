"""A picture is what it shows: stored in any mode, format or orientation it has the answers that it has as a PNG.

The pictures are scenes of pocket, so that an answer depends on what is seen. All stand in one file of questions; broken
ones are left out by name and never scored.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from attack import Case, Outcome
from PIL import Image

QUESTION = "describe the image."  # colours, shapes and places are in the answer
MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGB": lambda p: p,
    "RGBA": lambda p: p.convert("RGBA"),
    "palette": lambda p: p.quantize(256),
    "CMYK": lambda p: p.convert("CMYK"),
}
GREY: dict[str, Callable[[Image.Image], Image.Image]] = {
    "L": lambda p: p,
    "LA": lambda p: p.convert("LA"),
    "I;16": lambda p: Image.fromarray((np.asarray(p, np.uint16) * 257).astype(np.uint16)),
    "I": lambda p: Image.fromarray(np.asarray(p, np.int32) * 257),
    "F": lambda p: Image.fromarray(np.asarray(p, np.float32) / 255),
}
FORMATS = {
    "RGB": ("png", "bmp", "tiff", "webp", "ppm", "tga", "jp2", "gif"),
    "RGBA": ("png", "tiff", "webp", "tga"),
    "palette": ("png", "gif", "bmp", "tiff"),
    "CMYK": ("tiff",),
    "L": ("png", "bmp", "tiff", "webp", "pgm"),
    "LA": ("png",),
    "I;16": ("png", "tiff", "pgm"),
    "I": ("tiff",),
    "F": ("tiff",),
}
LOSSLESS = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}
# What undoes each EXIF orientation, so that the stored picture is upright again once it is applied.
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


ARGV = ("benchmark=jsonl", "data=x.jsonl", "method=none", "output_dir=o", "benchmark.prompt='{question}'")


def scene(seed: int = 0, size: int = 96) -> Image.Image:
    """Coloured shapes in four colours, which a palette holds without loss."""
    pixels = np.full((size, size, 3), 255, np.uint8)
    random = np.random.default_rng(seed)
    for colour in ((220, 40, 40), (40, 90, 220), (40, 170, 70)):
        x, y = random.integers(8, size - 32, 2)
        pixels[y : y + 22, x : x + 22] = colour
    return Image.fromarray(pixels)


def write(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Files under their names: each whole one with the name of the one that it has to equal; the broken ones."""
    equal: dict[str, str] = {}
    colour = scene()
    for group, reference, modes in (("c", colour, MODES), ("g", colour.convert("L"), GREY)):
        reference.save(folder / f"{group}.png")
        equal[f"{group}.png"] = f"{group}.png"
        for mode, made in modes.items():
            for suffix in FORMATS[mode]:
                name = f"{group}-{mode.replace(';', '')}.{suffix}"
                made(reference).save(folder / name, **LOSSLESS.get(suffix, {}))
                equal[name] = f"{group}.png"
    for orientation, undo in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "webp", "tiff"):
            turned = colour.transpose(undo)
            turned.save(folder / f"turned-{orientation}.{suffix}", exif=exif, **LOSSLESS.get(suffix, {}))
            equal[f"turned-{orientation}.{suffix}"] = "c.png"
    clear = colour.convert("RGBA")
    clear.putalpha(Image.fromarray(((np.asarray(colour) < 255).any(-1) * 255).astype(np.uint8)))
    hidden = np.asarray(clear).copy()
    hidden[hidden[..., 3] == 0] = 0  # what is transparent is black, as many programs store it
    Image.fromarray(hidden).save(folder / "transparent.png")
    equal["transparent.png"] = "c.png"
    broken = []
    whole = io.BytesIO()
    colour.save(whole, "PNG")
    data = whole.getvalue()
    for name, content in {
        "empty.png": b"",
        "half.png": data[: len(data) // 2],
        "head.png": data[:40],
        "text.png": b"not a picture",
        "zeros.png": b"\0" * 1000,
        "damaged.png": data[:60] + bytes(255 - byte for byte in data[60:90]) + data[90:],
        "page.html.png": b"<html>404</html>",
    }.items():
        (folder / name).write_bytes(content)
        broken.append(name)
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    return equal, [*broken, "bomb.png"]


def cases(folder: Path) -> Iterator[Case]:
    equal, broken = write(folder)
    yield from beside_reference(folder, equal)
    for name in broken:
        yield Case(f"broken {name}", ARGV, check=never_scored, prepare=rows(str(folder / name)))
    for size in ((1, 1), (1, 96), (1, 3000), (3000, 1)):
        Image.new("RGB", size, (9, 9, 9)).save(folder / f"{size}.png")
        yield Case(f"{size[0]} × {size[1]}", ARGV, prepare=rows(str(folder / f"{size}.png")))


def rows(*paths: str) -> Callable[[Path], object]:
    """Writes a file of questions, one for each picture, with the picture's path as its id."""
    texts = [json.dumps({"id": path, "image": path, "question": QUESTION, "answer": "x"}) for path in paths]
    return lambda folder: (folder / "x.jsonl").write_text("\n".join(texts))


def beside_reference(folder: Path, equal: dict[str, str]) -> Iterator[Case]:
    """Each picture beside its reference: their answers are the same."""
    for name, reference in equal.items():
        if name == reference:
            continue

        def same(outcome: Outcome, paths: tuple[str, str] = (str(folder / name), str(folder / reference))) -> str:
            answers = answers_of(outcome)
            seen, right = (answers.get(path) for path in paths)
            return "" if seen == right is not None else f"answered {seen!r}, as a PNG {right!r}"

        yield Case(name, ARGV, "works", same, rows(str(folder / name), str(folder / reference)))


def answers_of(outcome: Outcome) -> dict[str, str]:
    """Sample id → answer of each sample that was scored."""
    frames = [pd.read_parquet(file) for file in (outcome.folder / "o").rglob("samples.parquet")]
    frame = pd.concat(frames) if frames else pd.DataFrame({"id": [], "prediction": [], "score": []})
    frame = frame[frame["score"].notna()]
    return dict(zip(frame["id"].astype(str), frame["prediction"], strict=True))


def never_scored(outcome: Outcome) -> str:
    return f"scored: {answers_of(outcome)}" if answers_of(outcome) else ""
