"""What an image takes on the disk, beside what its tokens and what is said of it come to.

    python benchmarks/store/bytes.py --out benchmarks/store/bytes.json

Pictures of pocket's scenes are indexed. Thumbnails aren't counted; everything else that lies in the store's folder is,
LanceDB's own files among it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

CASES = (
    ("fwd2bot", 16, "float16"),
    ("fwd2bot", 16, "int8"),
    ("fwd2bot", 4, "float16"),
    ("avgpool", 36, "float16"),
    ("none", None, "float16"),
)
FIXED = 64 + 8 + 8 + 4 + 4 + 4 + 1  # hash, size, time, width, height, extent, gone
LISTS = 7 * 4  # where its path, its five lists and its thumbnail end


def expected(path: str, tokens: int, width: int, precision: str) -> int:
    """2·k'·d (int8: k'·(d + 4)), the embedding, and what is said of the file."""
    kept = tokens * (width + 4) if precision == "int8" else 2 * tokens * width
    return kept + 2 * width + len(path) + FIXED + LISTS


def measure(method: str, tokens: int | None, precision: str, folder: Path, where: Path) -> dict[str, Any]:
    from vtc.store import Store

    words = [f"method={method}", *([f"tokens={tokens}"] if tokens else [])]
    store = Store.open(where, words, precision)
    store.add(folder)
    width = store.job.shape.width
    rows = store.table.of(sorted(store.table.known()))
    kept = tokens or store.job.shape.visual_tokens
    size = sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(where) for name in names)
    own = (size - sum(len(row.thumbnail) for row in rows)) / len(rows)
    said = sum(expected(row.path, kept, width, precision) for row in rows) / len(rows)
    return {
        "method": " ".join(words),
        "precision": precision,
        "images": len(rows),
        "bytes_an_image": round(own, 1),
        "expected": round(said, 1),
        "ratio": round(own / said, 4),
        "of_tokens": (kept * (width + 4)) if precision == "int8" else 2 * kept * width,
        "thumbnail": round(sum(len(row.thumbnail) for row in rows) / len(rows), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from vtc.evaluation.record import git_commit

    file = Path(__file__).with_name("kills.py")
    spec = importlib.util.spec_from_file_location("kills", file)
    kills = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(kills)  # type: ignore[union-attr]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        kills.draw(Path(place, "pictures"), arguments.images, seed=0)
        for number, case in enumerate(CASES):
            rows.append(measure(*case, Path(place, "pictures"), Path(place, f"store{number}")))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        command = f"python benchmarks/store/bytes.py --images {arguments.images}"
        content = {"command": command, "commit": git_commit(), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
