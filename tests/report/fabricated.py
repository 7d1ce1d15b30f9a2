"""Result files of runs that never were, with known numbers, in the schema of `vtc.results`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vtc import results

TASKS = {"pocket_existence": "understanding", "pocket_counting": "understanding", "pocket_retrieval": "discriminative"}


def make(
    root: Path,
    method: str,
    tokens: int | None,
    score: float,
    *,
    created: str = "2026-01-01T00:00:00+00:00",
    run_id: str | None = None,
    stderr: float | None = 0.01,
    commit: str = "c" * 40,
    samples: dict[str, np.ndarray] | None = None,
    **config,
) -> Path:
    """A result file of one run whose tasks score `score`, `score` - 0.1 and `score` - 0.2."""
    folder = root / f"{method}-{tokens}-{created[:10]}-{run_id or ''}{'-'.join(map(str, config.values()))}"
    rows = []
    for at, (task, group) in enumerate(TASKS.items()):
        row = {
            "task": task,
            "group": group,
            "metric": "accuracy",
            "value": float(samples[task].mean()) if samples else score - 0.1 * at,
            "stderr": stderr,
            "n": 200,
        }
        row |= {"baseline": 0.9 - 0.1 * at, "retained": row["value"] / (0.9 - 0.1 * at), "p_value": 0.5}
        rows.append(row | {"blind": 0.3, "bag": 0.5 if group == "understanding" else None})
    options = {"fastv": {"layer": 2}, "avgpool": {"layer": 0, "dims": config.pop("dims", 2)}}.get(method, {})
    resolved = {
        "action": "evaluate",
        "backbone": {"name": "pocket", "pretrained": None, "dtype": "float32"},
        "method": {"name": method, **options},
        "tokens": tokens,
        "benchmark": {"name": "pocket", "tasks": list(TASKS), "limit": config.pop("limit", None)},
        "seed": 0,
        "output_dir": str(root),
        **config,
    }
    left = tokens or 144
    results.write(
        folder,
        {
            "run": {
                "id": run_id or f"{method}{tokens}",
                "created": created,
                "command": f"python -m vtc method={method} tokens={tokens}",
                "versions": {"vtc": "0.1.0", "torch": "2.15.0"},
                "git_commit": commit,
                "device": "cpu",
                "dtype": "float32",
                "attention": "sdpa",
            },
            "config": resolved,
            "backbone": {"name": "pocket"},
            "method": {"name": method, "tokens": tokens, "options": options},
            "checkpoint": None,
            "budget": {
                "requested": {"tokens": tokens},
                "visual_tokens_in": 144,
                "visual_tokens_out": left,
                "layer_average_tokens": left,
                "compression_ratio": 144 / left,
                "flops_ratio": 0.3 + 0.7 * left / 144,
            },
            "scores": rows,
            "efficiency": {"prefill_flops": 1e9 * left},
        },
    )
    if samples:
        columns = ("task", "id", "score")
        results.write_samples(
            folder,
            [
                dict(zip(columns, (t, str(i), float(s)), strict=True))
                for t, v in samples.items()
                for i, s in enumerate(v)
            ],
        )
    return folder


def edit(folder: Path, **changes) -> None:
    """Changes of a result file: `a__b=c` sets b of section a; `row__b=c` that of every row of scores."""
    result = results.load(folder)
    for key, value in changes.items():
        *where, last = key.split("__")
        for section in result["scores"] if where == ["row"] else [result]:
            for name in where if where != ["row"] else ():
                section = section[name]
            section[last] = value
    results.write(folder, result)
