"""Trained weights of a method on disk: ``weights.safetensors`` and ``manifest.json``, written whole or not at all.

Only what training changed is stored: the method's own parameters (``method.…``) and those of the backbone that were
trained (``backbone.…``), LoRA adapters among them. The manifest says what they were trained for; loading them into
anything else is refused by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.distributed import barrier, is_main, whole
from vtc.errors import UserError
from vtc.folders import replacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint; UserError where there is none."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        where = os.fspath(folder)
        raise UserError(f"checkpoint={where!r}: no {MANIFEST} there; a checkpoint is a folder that training wrote")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"checkpoint={os.fspath(folder)!r}: {MANIFEST} is not readable ({error})") from None


def names_in(folder: str | os.PathLike) -> list[str]:
    """Names of the stored parameters, from the file's header; none where there are no weights."""
    from safetensors import safe_open

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        return []
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def check_manifest(folder: str | os.PathLike, backbone: str, method: str, tokens: int | None) -> dict[str, Any]:
    """Refuse a checkpoint of another backbone, method or budget, by name.

    ``tokens`` of None, on either side, fits any budget. What was trained without compression (method none) is a
    backbone's weights, on which every method may run that needs no training of its own.
    """
    from vtc.registry import methods

    manifest = read_manifest(folder)
    where = f"checkpoint={os.fspath(folder)!r}"
    plain = manifest.get("method") == "none" and not methods.get(method).needs_training
    for key, value in (("backbone", backbone), ("method", "none" if plain else method)):
        if manifest.get(key) != value:
            raise UserError(f"{where} was trained for {key}={manifest.get(key)}, not {key}={value}")
    trained = manifest.get("tokens")
    if trained is not None and tokens is not None and trained != tokens:
        raise UserError(f"{where} was trained for tokens={trained}, not tokens={tokens}")
    return manifest


def save(
    folder: str | os.PathLike,
    backbone: Backbone,
    method: Compressor,
    manifest: dict[str, Any],
    trained: Iterable[str],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint. Every process of a run calls it: shards of parameters are put together, one process writes.

    Args:
        trained: names of the trained parameters of ``backbone.model``; all of the method's own are stored.
        dtype: stored type; as they are if not given.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    names = set(trained)
    parameters = {f"method.{n}": p for n, p in method.named_parameters()}
    parameters |= {f"backbone.{n}": p for n, p in backbone.model.named_parameters() if n in names}
    # Tied weights appear once among named_parameters(), so that nothing is stored twice.
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensor = whole(parameter)
        if is_main():
            tensors[name] = tensor.to(dtype or tensor.dtype).contiguous().cpu()
    if is_main():
        with replacing(folder) as fresh:
            save_file(tensors, fresh / WEIGHTS)
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2, default=str) + "\n")
    barrier()
    return folder


def load(folder: str | os.PathLike, backbone: Backbone, method: Compressor, *, fit: bool = True) -> dict[str, Any]:
    """Put a checkpoint's weights into a backbone and a method (``method.attach(backbone)`` must have run).

    Args:
        fit: refuse what was trained for another backbone, method or budget. Off to start one training from another:
            then method parameters of another shape (fewer summary tokens, say) keep their first rows or are extended.

    Raises:
        UserError: another backbone, method or budget; or weights that do not fit the model.
    """
    import torch
    from safetensors.torch import load_file

    folder = Path(folder)
    if fit:
        manifest = check_manifest(folder, backbone.name, method.name, method.trained_for)
    else:
        manifest = read_manifest(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"checkpoint={os.fspath(folder)!r}: {WEIGHTS} is missing")
    tensors = load_file(folder / WEIGHTS)
    targets = {f"method.{n}": p for n, p in method.named_parameters()}
    targets |= {f"backbone.{n}": p for n, p in backbone.model.named_parameters()}
    missing = [n for n in targets if n.startswith("method.") and n not in tensors]
    unknown = [n for n in tensors if n not in targets]
    if unknown or (missing and fit):
        odd, how = (unknown[0], "unknown") if unknown else (missing[0], "missing")
        raise UserError(f"checkpoint={os.fspath(folder)!r} does not fit the model: {odd!r} is {how}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            target = targets[name]
            if target.shape != tensor.shape:
                if fit or target.ndim != tensor.ndim or target.shape[1:] != tensor.shape[1:]:
                    sizes = f"{name} is {tuple(tensor.shape)}, the model's {tuple(target.shape)}"
                    raise UserError(f"checkpoint={os.fspath(folder)!r}: {sizes}")
                rows = min(len(target), len(tensor))
                target[:rows] = tensor[:rows].to(target)
            else:
                target.copy_(tensor)
    return manifest
