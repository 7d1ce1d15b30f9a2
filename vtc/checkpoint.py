"""Trained weights of a method on disk: ``weights.safetensors`` and ``manifest.json``, written whole or not at all.

Only what training changed is stored: the method's own parameters (``method.…``) and those of the backbone that were
trained (``backbone.…``), LoRA adapters among them. The manifest says what they were trained for; loading them into
anything else is refused by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vtc import allowed
from vtc.distributed import barrier, is_main, whole
from vtc.errors import UserError, unknown
from vtc.folders import replacing
from vtc.results import hash_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
FINISHED = "weights"  # where a training's own folder holds its checkpoint
PARTS = ("method", "adapters", "projector", "decoder")  # what a stage may train, by places in an LVLM

_OBJECT, _NAMES = allowed.mapping("an object"), allowed.several("", allowed.text())
_STAGE = allowed.Allowed("", lambda v: _OBJECT.accepts(v) and _NAMES.accepts(v.get("train", ())))
_FIELDS = {
    "backbone": allowed.text(),
    "method": allowed.text(),
    "tokens": allowed.whole(1).or_null(),
    "options": _OBJECT.or_null(),
    "training": _OBJECT,
    "training.lora": _OBJECT.or_null(),
    "training.stages": allowed.several("a list of objects, of which train is a list", _STAGE),
}


def parameters_of(part: str, backbone: Backbone, method: Compressor) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of one of PARTS, named as in a checkpoint.

    ``method``: its own (registers, summary tokens); ``adapters``: LoRA; ``projector`` and ``decoder``: the backbone's.
    """
    if part == "method":
        yield from ((f"method.{n}", p) for n, p in method.named_parameters())
        return
    if part not in PARTS:
        raise unknown("training.stages[].train", part, PARTS)
    projector = {id(p) for p in backbone.projector.parameters()}
    tower = {id(p) for p in backbone.vision_tower.parameters()}
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            place = "adapters"
        elif id(parameter) in projector:
            place = "projector"
        else:
            place = "tower" if id(parameter) in tower else "decoder"
        if place == part:
            yield f"backbone.{name}", parameter


def folder_of(path: str | os.PathLike) -> Path:
    """The checkpoint that a path names: the folder itself, or of a training's own folder its weights."""
    folder = Path(path).expanduser()
    weights = folder / FINISHED
    return weights if not os.path.isfile(folder / MANIFEST) and os.path.isfile(weights / MANIFEST) else folder


def damage(folder: Path) -> str | None:
    """How a checkpoint's weights differ from what training wrote: missing, or of another digest; None: not at all.
    Checkpoints of before digests were kept are taken as they are.

    Raises:
        UserError: as `read_manifest`.
    """
    written = read_manifest(folder).get("digest")
    try:
        return f"{WEIGHTS} was changed" if written not in (None, hash_file(folder / WEIGHTS)) else None
    except OSError as error:
        return f"{WEIGHTS} can't be read ({error.strerror})"


def _wrong(folder: str | os.PathLike, what: str) -> UserError:
    return UserError(f"checkpoint={os.fspath(folder)!r}: {what}")


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        UserError: there is none, or it isn't what training writes.
    """
    path = Path(folder) / MANIFEST
    if not os.path.lexists(path):
        hint = "a checkpoint is a folder that training wrote"
        if any(Path(folder).glob("*/state/step-*")):
            hint = "a training that isn't finished; the command that began it goes on with it"
        raise _wrong(folder, f"no {MANIFEST} there; {hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(folder, f"{MANIFEST} is not readable ({error})") from None
    if not isinstance(manifest, dict):
        raise _wrong(folder, f"{MANIFEST} is not readable (an object is needed)")
    for key, kind in _FIELDS.items():
        section, _, name = key.rpartition(".")
        fields = manifest.get(section, {}) if section else manifest
        if name in fields:
            kind.check(f"checkpoint={os.fspath(folder)!r}: {MANIFEST}: {key}", fields[name])
    return manifest


@contextmanager
def _opened(folder: str | os.PathLike) -> Iterator[Any]:
    """The weights' file, whose header says that it is whole."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS
    if not os.path.lexists(path):
        raise _wrong(folder, f"{WEIGHTS} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise _wrong(folder, f"{WEIGHTS} is not readable ({error})") from None


def names_in(folder: str | os.PathLike) -> list[str]:
    """Names of the stored parameters, from the file's header.

    Raises:
        UserError: no such file, or one that isn't whole or isn't of safetensors.
    """
    with _opened(folder) as file:
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
    files: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a checkpoint. Every process of a run calls it: shards of parameters are put together, one process writes.

    Args:
        trained: names of the trained parameters of ``backbone.model``; all of the method's own are stored.
        dtype: stored type; as they are if not given.
        files: texts to lie beside the weights, by name.
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
            texts = {
                MANIFEST: json.dumps(manifest | {"digest": hash_file(fresh / WEIGHTS)}, indent=2, default=str) + "\n"
            }
            for name, text in (texts | {**files}).items():
                (fresh / name).write_text(text, encoding="utf-8")
    barrier()
    return folder


def load(folder: str | os.PathLike, backbone: Backbone, method: Compressor, *, fit: bool = True) -> dict[str, Any]:
    """Put a checkpoint's weights into a backbone and a method (``method.attach(backbone)`` must have run).

    Args:
        fit: refuse what was trained for another backbone, method or budget. Off to start one training from another:
            then method parameters of another shape (fewer summary tokens, say) keep their first rows or are extended.

    Raises:
        UserError: another backbone, method or budget; weights that do not fit the model, that are not finite, or that
            lack some of what the manifest says was trained.
    """
    import torch

    folder = Path(folder)
    if fit:
        manifest = check_manifest(folder, backbone.name, method.name, method.trained_for)
    else:
        manifest = read_manifest(folder)
    stages = manifest.get("training", {}).get("stages", ())
    trained = {part for part in PARTS if any(part in stage.get("train", ()) for stage in stages)} | {"method"}
    parts = trained if fit else trained - {"method", "adapters"}  # which another method or budget has others of
    required = {name for part in parts for name, _ in parameters_of(part, backbone, method)}
    targets = {f"method.{n}": p for n, p in method.named_parameters()}
    targets |= {f"backbone.{n}": p for n, p in backbone.model.named_parameters()}
    with _opened(folder) as file, torch.no_grad():
        names = set(file.keys())
        for odd, how in ((names - targets.keys(), "unknown"), (required - names, "missing")):
            if odd:
                raise _wrong(folder, f"{WEIGHTS} does not fit the model: {min(odd)!r} is {how}")
        for name in sorted(names):
            target, stored = targets[name], file.get_tensor(name)
            if target.is_floating_point() != stored.is_floating_point():
                raise _wrong(folder, f"{WEIGHTS}: {name} is {stored.dtype}, the model's {target.dtype}")
            tensor = stored.to(target)
            if not torch.isfinite(tensor).all():
                raise _wrong(folder, f"{WEIGHTS}: {name} has values that aren't finite in {target.dtype}")
            rows = slice(None)
            if target.shape != tensor.shape:
                if fit or target.ndim != tensor.ndim or target.shape[1:] != tensor.shape[1:]:
                    raise _wrong(
                        folder, f"{WEIGHTS}: {name} is {tuple(tensor.shape)}, the model's {tuple(target.shape)}"
                    )
                rows = slice(min(len(target), len(tensor)))
            target[rows].copy_(tensor[rows])
    return manifest
