"""How a store grows: time to build its index, time of a search, recall, memory and bytes, from 10⁴ rows on.

    python benchmarks/store/scale.py --width 512 --rows 10000 --folder /tmp/scale --out benchmarks/store/scale.json
    python benchmarks/store/scale.py --width 4096 --rows 1000000 --folder /tmp/scale --stage fill  # then the others

The rows have embeddings and names, no tokens and thumbnails: those are read for the images that are shown, and cost a
search nothing else. Embeddings are drawn as pooled summaries are distributed: in groups (images of like things), in few
of all directions (a spectrum that falls as 1/k), around a mean that all share. Queries are drawn from the same groups.
Recall is against all cosines in float32. Searches run in a process of their own, whose largest memory is told. Beside
the time that passes stands the processor's, of all threads together, which other programs don't lengthen. The first
searches of a process read the index's lists that they look into from files, the later ones have them in memory: each
kind has its times, and the recall is that of the later ones.

The four stages of a size stay in its folder, so a run that is stopped goes on where it was, and each can be run alone;
a size that `--out` has is not measured again. A table is deleted when its size is done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOP, QUERIES, BATCH, GROUP = 10, 200, 10_000, 100
STAGES = ("fill", "build", "search", "exact")


class Embeddings:
    """Draws of one distribution: [count, width] float16, of length 1.

    Attributes:
        groups: how many groups of images of like things there are.
    """

    def __init__(self, width: int, rows: int) -> None:
        self.width, self.groups = width, max(10, rows // GROUP)
        fixed = np.random.default_rng(width)
        self.spectrum = (1.0 / np.arange(1, width + 1)).astype(np.float32)
        self.shared = 0.05 * fixed.standard_normal(width, dtype=np.float32)
        self.centres = fixed.standard_normal((self.groups, width), dtype=np.float32)

    def draw(self, count: int, stream: int) -> np.ndarray:
        """`stream` 0, 1, …: other draws."""
        rng = np.random.default_rng([self.width, stream])
        out = rng.standard_normal((count, self.width), dtype=np.float32)
        out *= 0.5
        out += self.centres[rng.integers(self.groups, size=count)]
        out *= self.spectrum
        out += self.shared
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return out.astype(np.float16)

    def queries(self) -> np.ndarray:
        """Those of the first searches of a process, and as many for the later ones."""
        return self.draw(2 * QUERIES, 10**7)


def fill(where: str, width: int, rows: int) -> dict[str, Any]:
    import pyarrow as pa

    from vtc.store.table import Table

    shutil.rmtree(where, ignore_errors=True)  # what is left of a run that was stopped
    table, embeddings = Table.make(where, width, "float16", {"made_with": {}}), Embeddings(width, rows)
    schema, drawing = table._table.schema, 0.0
    for start in range(0, rows, BATCH):
        began = time.monotonic()
        vectors = embeddings.draw(min(BATCH, rows - start), start // BATCH)
        drawing += time.monotonic() - began
        content = {name: pa.nulls(len(vectors), schema.field(name).type) for name in schema.names}
        content["path"] = pa.array([f"/pictures/{start + i:09d}.jpg" for i in range(len(vectors))])
        content["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
        content["gone"] = pa.array([False] * len(vectors))
        content["thumbnail"] = pa.array([b""] * len(vectors))
        table._table.add(pa.table(content, schema=schema))
    return {"seconds_to_draw": round(drawing, 2)}


def build(where: str, width: int, rows: int) -> dict[str, Any]:
    from vtc.store.table import Table

    table = Table(where)
    table.tidy()
    return {"indexed": table.index() is not None, "bytes": size(where), "bytes_of_embeddings": 2 * width * rows}


def search(where: str, width: int, rows: int) -> dict[str, Any]:
    """Times of single searches, one after the other, and what the later ones found."""
    queries = Embeddings(width, rows).queries()
    np.save(f"{where}.queries.npy", queries)
    command = [sys.executable, __file__, "--searcher", where]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    Path(f"{where}.found.json").write_text(json.dumps(told.pop("found")))
    return told


def searcher(where: str) -> dict[str, Any]:
    """What `search` tells: in a process that holds nothing else."""
    from vtc.store.table import Table

    table, queries = Table(where), np.load(f"{where}.queries.npy")
    before, found = resident("VmHWM"), []
    clocks = {"p": time.perf_counter, "processor_p": time.process_time}
    times: dict[str, list[float]] = {clock: [] for clock in clocks}
    for query in queries:
        began = {clock: now() for clock, now in clocks.items()}
        hits = table.nearest(query, TOP)
        for clock, now in clocks.items():
            times[clock].append(now() - began[clock])
        found.append([int(hit.path[10:19]) for hit in hits])
    parts = {"first_": slice(QUERIES), "": slice(QUERIES, None)}
    return {
        **{
            f"{part}{clock}{q}_ms": round(1000 * float(np.percentile(own[which], q)), 2)
            for part, which in parts.items()
            for clock, own in times.items()
            for q in (50, 95, 99)
        },
        "memory_bytes": resident("VmHWM"),
        "memory_before_search_bytes": before,
        "found": found[QUERIES:],
    }


def exact(where: str, width: int, rows: int) -> dict[str, Any]:
    """The share of the rows with the largest cosines, by comparing with all, that the searches found."""
    queries = np.load(f"{where}.queries.npy")[QUERIES:].astype(np.float32)
    best = np.full((QUERIES, TOP), -np.inf, np.float32)
    which = np.zeros((QUERIES, TOP), np.int64)
    for start, vectors in stored(where, width):
        scores = np.concatenate([best, queries @ vectors.T], 1)
        names = np.concatenate([which, np.arange(start, start + len(vectors))[None].repeat(QUERIES, 0)], 1)
        order = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        best, which = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
    found = json.loads(Path(f"{where}.found.json").read_text())
    right = sum(len(set(a) & set(b)) for a, b in zip(found, which.tolist(), strict=True))
    return {"recall_at_10": round(right / which.size, 4)}


def stored(where: str, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """What is in the table, in the order of its rows: the first row's number, [n, width] float32 of length 1."""
    from vtc.store.table import Table

    for batch in Table(where)._table.search().select(["path", "vector"]).to_batches(BATCH):
        vectors = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(-1, width).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        paths = batch.column("path").to_pylist()
        first = int(paths[0][10:19])
        assert int(paths[-1][10:19]) == first + len(paths) - 1  # a batch of rows that follow each other
        yield first, vectors


def size(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(width: int, rows: int, folder: str, stage: str | None) -> dict[str, Any] | None:
    """What is known of a size when its last stage is done; None before."""
    from vtc.evaluation.record import git_commit

    where = os.path.join(folder, f"{width}-{rows}")
    state = Path(f"{where}.json")
    state.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads(state.read_text()) if state.is_file() else {}
    stages: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
        "fill": fill, "build": build, "search": search, "exact": exact,
    }  # fmt: skip
    for name, run in stages.items():
        if name in done or stage not in (None, name):
            continue
        began = time.monotonic()
        told = run(where, width, rows)
        done[name] = told | {"seconds": round(time.monotonic() - began, 2), "peak_bytes": resident("VmHWM")}
        state.write_text(json.dumps(done))
        print(width, rows, name, json.dumps(done[name]), flush=True)
    if set(done) != set(STAGES):
        return None
    shutil.rmtree(where)
    for file in (state, Path(f"{where}.queries.npy"), Path(f"{where}.found.json")):
        file.unlink()
    fill_, build_ = done["fill"], done["build"]
    return {
        "width": width,
        "rows": rows,
        "commit": git_commit(),
        "seconds_to_fill": round(fill_["seconds"] - fill_["seconds_to_draw"], 2),
        "seconds_to_build": build_.pop("seconds"),
        "memory_to_build_bytes": build_.pop("peak_bytes"),
        **build_,
        **{key: value for key, value in done["search"].items() if key not in ("seconds", "peak_bytes")},
        "recall_at_10": done["exact"]["recall_at_10"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", default="outputs/scale", help="where the tables are made")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--searcher", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.searcher:
        print(json.dumps(searcher(arguments.searcher)))
        return
    out = arguments.out
    sizes = json.loads(out.read_text())["sizes"] if out and out.is_file() else []
    for rows in (int(n) for n in arguments.rows.split(",")):
        if any((s["width"], s["rows"]) == (arguments.width, rows) for s in sizes):
            continue
        measured = measure(arguments.width, rows, arguments.folder, arguments.stage)
        if measured is None:
            continue
        print(json.dumps(measured), flush=True)
        if out:
            sizes = sorted([*sizes, measured], key=lambda s: (s["width"], s["rows"]))
            content = {"queries": QUERIES, "top": TOP, "processors": os.cpu_count(), "sizes": sizes}
            out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
