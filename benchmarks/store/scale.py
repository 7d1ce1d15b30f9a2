"""How a store grows: time to build its index, time of a search, recall, memory and bytes, from 10⁴ rows on.

    python benchmarks/store/scale.py --width 512 --rows 10000,100000,1000000 --out benchmarks/store/scale-512.json

The rows have embeddings and names, no tokens and thumbnails: those are read for the images that are shown, and cost a
search nothing else. Embeddings are drawn as pooled summaries are distributed: in groups (images of like things), in few
of all directions (a spectrum that falls as 1/k), around a mean that all share. Queries are drawn from the same groups.
Recall is against all cosines in float32. Searches run in a process of their own, whose largest memory is told.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TOP, QUERIES, BATCH, GROUP = 10, 200, 20_000, 100


def embeddings(width: int, count: int, stream: int, groups: int) -> np.ndarray:
    """[count, width] float16 of length 1; `stream` 0, 1, …: other draws of the same distribution."""
    fixed = np.random.default_rng(width)
    spectrum = (1.0 / np.arange(1, width + 1)).astype(np.float32)
    shared = fixed.standard_normal(width).astype(np.float32)
    rng = np.random.default_rng([width, stream])
    group = rng.integers(groups, size=count)
    out = np.empty((count, width), np.float32)
    for number in np.unique(group):
        members = group == number
        centre = np.random.default_rng([width, 10**6, int(number)]).standard_normal(width).astype(np.float32)
        own = rng.standard_normal((int(members.sum()), width), dtype=np.float32)
        out[members] = 0.05 * shared + spectrum * (centre + 0.5 * own)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out.astype(np.float16)


def fill(where: str, width: int, rows: int) -> None:
    import pyarrow as pa

    from vtc.store.table import Table

    table = Table.make(where, width, "float16", {"made_with": {}})
    schema = table._table.schema
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        vectors = embeddings(width, count, start // BATCH, max(10, rows // GROUP))
        content = {name: pa.nulls(count, schema.field(name).type) for name in schema.names}
        content["path"] = pa.array([f"/pictures/{start + i:09d}.jpg" for i in range(count)])
        content["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
        content["gone"] = pa.array([False] * count)
        content["thumbnail"] = pa.array([b""] * count)
        table._table.add(pa.table(content, schema=schema))


def search(where: str, width: int, rows: int) -> dict:
    """Times and hits of single searches, warm, one after the other."""
    from vtc.store.table import Table

    table = Table(where)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queries = embeddings(width, QUERIES + 10, 10**7, max(10, rows // GROUP))
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        hits = table.nearest(query, TOP)
        times.append(time.perf_counter() - began)
        found.append([int(hit.path[10:19]) for hit in hits])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"times": times[10:], "found": found[10:], "memory": peak * 1024, "memory_before": before * 1024}


def exact(width: int, rows: int) -> np.ndarray:
    """[QUERIES, TOP] the rows with the largest cosines, by comparing with all."""
    groups = max(10, rows // GROUP)
    queries = embeddings(width, QUERIES + 10, 10**7, groups)[10:].astype(np.float32)
    best = np.full((QUERIES, TOP), -np.inf, np.float32)
    which = np.zeros((QUERIES, TOP), np.int64)
    for start in range(0, rows, BATCH):
        vectors = embeddings(width, min(BATCH, rows - start), start // BATCH, groups).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = np.concatenate([best, queries @ vectors.T], 1)
        names = np.concatenate([which, np.arange(start, start + len(vectors))[None].repeat(QUERIES, 0)], 1)
        order = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        best, which = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
    return which


def size(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)


def measure(width: int, rows: int, place: str) -> dict:
    from vtc.store.table import Table

    where = os.path.join(place, f"{width}-{rows}")
    began = time.monotonic()
    fill(where, width, rows)
    filled = time.monotonic() - began
    began = time.monotonic()
    Table(where).tidy()
    built = time.monotonic() - began
    command = [sys.executable, __file__, "--search", where, "--width", str(width), "--rows", str(rows)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    truth = exact(width, rows)
    right = sum(len(set(a) & set(b)) for a, b in zip(told["found"], truth.tolist(), strict=True))
    return {
        "rows": rows,
        "width": width,
        "indexed": Table(where).index() is not None,
        "seconds_to_fill": round(filled, 2),
        "seconds_to_build": round(built, 2),
        "p50_ms": round(1000 * float(np.percentile(told["times"], 50)), 2),
        "p95_ms": round(1000 * float(np.percentile(told["times"], 95)), 2),
        "recall_at_10": round(right / truth.size, 4),
        "memory_bytes": told["memory"],
        "memory_before_search_bytes": told["memory_before"],
        "bytes": size(where),
        "bytes_of_embeddings": 2 * width * rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--search")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", help="where the tables are made; default: the system's for temporary files")
    arguments = parser.parse_args()
    rows = [int(n) for n in arguments.rows.split(",")]
    if arguments.search:
        print(json.dumps(search(arguments.search, arguments.width, rows[0])))
        return
    results = []
    for count in rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            results.append(measure(arguments.width, count, place))
        print(json.dumps(results[-1]), flush=True)
        if arguments.out:
            content = {"queries": QUERIES, "top": TOP, "processors": os.cpu_count(), "sizes": results}
            arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
