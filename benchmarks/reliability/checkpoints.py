"""A checkpoint of which a part is missing, isn't finite or isn't what its manifest says is refused, never scored."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attack import Case
from safetensors.torch import load_file, save, save_file

from vtc import shipped

METHODS = ("victor", "fwd2bot")
SCORED = ("benchmark.limit=2", "benchmark.tasks=[pocket_counting]", "output_dir=o")
CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "missing": lambda t: None,
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "one inf": lambda t: t.flatten().index_fill(0, torch.tensor([t.numel() - 1]), float("inf")).view_as(t),
    "another shape": lambda t: t.flatten()[:-1].clone(),
    "no elements": lambda t: t.flatten()[:0].clone(),
    "whole numbers": lambda t: torch.ones_like(t, dtype=torch.int64),
    "truth values": lambda t: torch.ones_like(t, dtype=torch.bool),
}
VALUES = (None, [], {}, "x", -1, 0.5)


def cases(folder: Path) -> Iterator[Case]:
    for method in METHODS:
        source = shipped.path(f"benchmarks/pocket/weights/{method}-16")
        weights, manifest = (
            load_file(source / "weights.safetensors"),
            json.loads((source / "manifest.json").read_text()),
        )
        argv = [f"method={method}", "tokens=16", "checkpoint=c", *SCORED]
        yield Case(f"{method} untouched", argv, "works", prepare=partial(write, source))
        own = next(key for key in weights if key.startswith("method."))
        decoder = [key for key in weights if not key.startswith("method.")]
        for key in (own, decoder[0], decoder[-1]):
            for name, change in CHANGES.items():
                changed = {**weights, key: change(weights[key])}
                content = {k: v for k, v in changed.items() if v is not None}
                yield Case(f"{method} {key}: {name}", argv, "refused", prepare=partial(write, source, tensors=content))
        alone = {key: weights[key] for key in weights if key.startswith("method.")}
        yield Case(f"{method} no decoder", argv, "refused", prepare=partial(write, source, tensors=alone))
        added = {**weights, "decoder.nope.weight": torch.ones(2, 2)}
        yield Case(f"{method} one too many", argv, "refused", prepare=partial(write, source, tensors=added))
        data = (source / "weights.safetensors").read_bytes()
        for name, content in {
            "half": data[: len(data) // 2],
            "head alone": data[:100],
            "empty": b"",
            "pickled": b"\x80\x04}q\x00.",
            "text": b"404: not found",
            "a long head": struct.pack("<Q", 2**40) + b"{}",
            "another model's": save({"a": torch.ones(1)}),
            "a pointer of git": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        }.items():
            yield Case(f"{method} file: {name}", argv, "refused", prepare=partial(write, source, data=content))
        for name, text in {
            "list": b"[]",
            "binary": b"\xff\xfe",
            "empty": b"",
            "nested": b"[" * 100000,
            "number": b"5",
            "missing": None,
        }.items():
            yield Case(f"{method} manifest: {name}", argv, "refused", prepare=partial(write, source, manifest=text))
        for key in manifest:
            for value in VALUES:
                text = json.dumps({**manifest, key: value}).encode()
                yield Case(f"{method} manifest {key}: {value!r}", argv, prepare=partial(write, source, manifest=text))
    yield Case("no folder", ["method=victor", "tokens=16", "checkpoint=nowhere", *SCORED], "refused")
    yield Case("another method's", ["method=fwd2bot", "tokens=16", "checkpoint=c", *SCORED], "refused",
               prepare=partial(write, shipped.path("benchmarks/pocket/weights/victor-16")))  # fmt: skip


def write(source: Path, folder: Path, tensors: Any = None, data: bytes | None = None, manifest: Any = False) -> None:
    """The shipped checkpoint, in which something is another: tensors, the file's bytes, or the manifest's."""
    checkpoint = folder / "c"
    shutil.copytree(source, checkpoint)
    if tensors is not None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, checkpoint / "weights.safetensors")
    if data is not None:
        (checkpoint / "weights.safetensors").write_bytes(data)
    if manifest is None:
        (checkpoint / "manifest.json").unlink()
    elif manifest is not False:
        (checkpoint / "manifest.json").write_bytes(manifest)
