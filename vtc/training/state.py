"""Resumable states of a training: ``state/step-000200/``, each written whole or not at all, the last few kept.

A state holds the trained parameters and the optimizers' tensors in ``state.safetensors``, whole ones, so that training
goes on with another number of processes, and the rest in ``state.json``, which is written last: step, schedules, what
identifies the training, and the size and checksum of every file. DeepSpeed's optimizer is in a folder of its own, by
accelerate. The last state of a finished stage holds the parameters alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc.distributed import barrier, gather_objects, is_main, whole
from vtc.errors import UserError
from vtc.folders import replacing
from vtc.identity import flat

TENSORS, REST = "state.safetensors", "state.json"


@dataclass
class Training:
    """What changes while a stage is trained.

    Attributes:
        parameters: trained ones by name, as they are now (FSDP's pieces, say).
        optimizers: torch's own.
        save, load: of what DeepSpeed keeps to itself, into and from a folder; None where nobody does.
    """

    parameters: dict[str, nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[torch.optim.lr_scheduler.LambdaLR]
    save: Callable[[Path], None] | None = None
    load: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class States:
    """The states in one folder.

    Attributes:
        keep: how many, the newest ones.
        identity: what the weights at the end depend on; nested mappings of plain values.
    """

    folder: Path
    keep: int = 2
    identity: Mapping[str, Any] = field(default_factory=dict)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest state that is whole, and its ``state.json``; None where there is none. Every process must call it.

        Raises:
            UserError: it is another training's.
        """
        newest = gather_objects(self._newest() if is_main() else None)[0]
        if newest:
            self._check(*newest)
        return newest

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        for path in reversed(self._all()):
            try:
                return path, _read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                print(f"vtc: {path} is damaged ({error}); the state before it is taken", file=sys.stderr, flush=True)
        return None

    def _check(self, path: Path, rest: dict[str, Any]) -> None:
        before, now = dict(flat(rest["identity"])), dict(flat(json.loads(json.dumps(self.identity, default=list))))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{path} is of a training with {key}={before.get(key)}, not {key}={now.get(key)}; "
                    "resume=false starts anew, another training.folder keeps both"
                )

    def save(self, step: int, training: Training, notes: Mapping[str, Any], finished: bool = False) -> None:
        """Write the state after `step` steps. Every process must call it.

        Args:
            notes: more to be remembered, in JSON.
            finished: parameters alone.
        """
        target = self.folder / f"step-{step:06d}"
        tensors, rest = _collect(training, finished)
        rest |= {"step": step, "finished": finished, "identity": self.identity, **notes}
        with_folder = training.save is not None and not finished
        if is_main():
            with replacing(target) as fresh:
                barrier()
                if with_folder:
                    training.save(fresh / "optimizer")  # type: ignore[misc]
                    barrier()
                save_file(tensors, fresh / TENSORS)
                files = [file for file in sorted(fresh.rglob("*")) if file.is_file()]
                rest["files"] = {str(file.relative_to(fresh)): _fingerprint(file) for file in files}
                (fresh / REST).write_text(json.dumps(rest, default=list))
            self._prune(target)
        else:
            barrier()
            if with_folder:
                training.save(target.with_name(target.name + ".new") / "optimizer")  # type: ignore[misc]
                barrier()
        barrier()

    def clear(self) -> None:
        """Removes all of them."""
        if is_main():
            shutil.rmtree(self.folder, ignore_errors=True)
        barrier()

    def _all(self) -> list[Path]:
        """By step."""
        if not self.folder.is_dir():
            return []
        names = {re.fullmatch(r"step-(\d+)", entry.name): entry for entry in self.folder.iterdir()}
        return [path for _, path in sorted((int(m[1]), path) for m, path in names.items() if m)]

    def _prune(self, newest: Path) -> None:
        """Keeps the newest and the ones before it; later ones were damaged, and what a crash left is nobody's."""
        states = self._all()
        upto = states[: states.index(newest) + 1]
        kept = {path.name for path in upto[-max(1, self.keep) :]}
        for path in self.folder.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def restore(path: Path, rest: dict[str, Any], training: Training) -> None:
    """Put a state into a training. Every process must call it.

    Raises:
        UserError: it doesn't hold what the training needs, as one that somebody has edited.
    """
    try:
        _restore(path, rest, training)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, SafetensorError) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} doesn't fit this training ({words}); resume=false starts anew") from error


def _restore(path: Path, rest: dict[str, Any], training: Training) -> None:
    tensors = load_file(path / TENSORS)
    with torch.no_grad():
        for name, parameter in training.parameters.items():
            tensor = tensors[f"parameter/{name}"]
            if tensor.dtype != parameter.dtype or not torch.isfinite(tensor).all():
                raise ValueError(f"parameter/{name} is {tensor.dtype} or not finite")
            _put(parameter, tensor)
    if rest["finished"]:
        return
    for scheduler, values in zip(training.schedulers, rest["schedulers"], strict=True):
        scheduler.__dict__.update(values)
    if training.load is not None:
        training.load(path / "optimizer")
        return
    for i, optimizer in enumerate(training.optimizers):
        owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer/{i}/"):
                _, _, index, name = key.split("/", 3)
                state.setdefault(int(index), {})[name] = _like(tensor, owners[int(index)])
        for index, values in rest["scalars"][i].items():
            state.setdefault(int(index), {}).update(values)
        groups = [dict(group) for group in rest["groups"][i]]
        for group in groups:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _collect(training: Training, finished: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, whole and in the main process's memory alone, and the rest."""
    tensors: dict[str, Tensor] = {}

    def add(name: str, tensor: Tensor) -> None:
        tensor = whole(tensor)
        if is_main():
            tensors[name] = tensor.detach().cpu().contiguous()

    rest: dict[str, Any] = {"groups": [], "scalars": []}
    rest["schedulers"] = [{"last_epoch": s.last_epoch, "_step_count": s._step_count} for s in training.schedulers]
    for name, parameter in training.parameters.items():
        add(f"parameter/{name}", parameter)
    if finished or training.save is not None:
        return tensors, rest
    for i, optimizer in enumerate(training.optimizers):
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for key, values in state["state"].items():
            for name, value in values.items():
                if torch.is_tensor(value):
                    add(f"optimizer/{i}/{key}/{name}", value)
                else:
                    scalars.setdefault(str(key), {})[name] = value
        rest["groups"].append(state["param_groups"])
        rest["scalars"].append(scalars)
    return tensors, rest


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The tensor split over the processes as the parameter is, if it is."""
    if hasattr(parameter, "placements") and tensor.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return tensor


def _put(parameter: nn.Parameter, tensor: Tensor) -> None:
    if hasattr(parameter, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            if is_main():
                parameter.copy_(tensor)
    else:
        parameter.copy_(_like(tensor, parameter))


def _read(path: Path) -> dict[str, Any]:
    """``state.json`` of a state that is whole; ValueError, KeyError or OSError of one that is not."""
    rest = json.loads((path / REST).read_text())
    for key, kind in (("step", int), ("finished", bool), ("identity", dict)):
        if not isinstance(rest[key], kind):
            raise ValueError(f"{REST}: {key} is {rest[key]!r}")
    for name, expected in rest["files"].items():
        if _fingerprint(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return rest


def _fingerprint(file: Path) -> list[int]:
    """Bytes and CRC-32."""
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return [os.path.getsize(file), checksum]
