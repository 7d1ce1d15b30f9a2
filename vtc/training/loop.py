"""The training loop: steps, progress, log, checkpoints, resume. What is trained is a :class:`Stage`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc.training.folders import replacing
from vtc.training.optim import build_optimizers, build_schedulers


@dataclass(frozen=True)
class Part:
    """Which share of a step's global batch: rank and micro-batch together."""

    index: int = 0
    count: int = 1

    def of(self, n: int) -> slice:
        """Its rows of `n`: contiguous, sizes differ by one at most."""
        whole, more = divmod(n, self.count)
        start = self.index * whole + min(self.index, more)
        return slice(start, start + whole + (self.index < more))


class Stage:
    """One stage of training: which parameters, which data, which losses.

    A batch must be a function of the step and the part alone, so that a run which was killed and resumed ends bit for
    bit where the run that was never killed does, and one on several processes where one on a single process does.
    """

    name: str
    device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Work there from now on. Stages with modules of their own move them."""
        self.device = device

    def modules(self) -> dict[str, nn.Module]:
        """Everything that runs in `losses`, trained or not; wrapped together for several processes.

        Stages that train one loose set of parameters need not say more than `named_parameters`.
        """
        return {"trained": nn.ParameterList(p for _, p in self.named_parameters())}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained; names are the keys in the checkpoint."""
        raise NotImplementedError

    def start_step(self, step: int, total: int) -> None:
        """Called before each step; schedules live here."""

    def expect(self, parts: Sequence[Part], first: int, last: int) -> None:
        """Called once: `batch` will be asked for these parts, in this order, in each of the steps first … last-1.
        Loading ahead begins here."""

    def batch(self, step: int, part: Part) -> Any:
        """A part of the global batch, on the CPU: a tensor, an object with ``to(device)``, or a tuple of these."""
        raise NotImplementedError

    def weights(self, batch: Any) -> dict[str, float]:
        """What a part counts in the mean over the step's parts, for each term: answer tokens, say.

        Terms without a weight count 1 a part; a term of weight 0 in a part is left out there.
        """
        return {}

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named terms, means over the part. The weighted mean over the parts of each is added up and minimised."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Figures for the log, from the validation split."""
        return {}

    def images(self, batch: Any) -> int:
        """Images in a batch, for the speed in the log."""
        return 0

    def tokens(self, batch: Any) -> int:
        """Tokens in a batch, for the speed in the log."""
        return 0


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch moved to a device."""
    return tuple(on_device(part, device) for part in batch) if isinstance(batch, tuple) else batch.to(device)


@dataclass
class Plan:
    """How a stage is trained.

    Attributes:
        lr, adam_lr: peak rates; `adam_lr` is AdamW's beside Muon.
        warmup, cooldown: shares of the steps.
        clip: largest norm of the gradient.
        accumulate: micro-batches that each process takes a step.
        keep: resumable states that are kept.
    """

    steps: int
    lr: float
    optimizer: str = "adamw"
    adam_lr: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.03
    decay: str = "cosine"
    cooldown: float = 0.25
    clip: float = 1.0
    bf16: bool = False
    accumulate: int = 1
    keep: int = 2
    validate_every: int = 0
    checkpoint_every: int = 200
    log_every: int = 20


def _save_state(
    folder: Path, step: int, parameters: dict[str, nn.Parameter], optimizers: list, schedulers: list, seconds: float
) -> None:
    """Write a checkpoint, whole or not at all."""
    tensors = {f"parameter/{n}": p.detach().contiguous() for n, p in parameters.items()}
    meta: dict[str, Any] = {"step": step, "seconds": seconds, "groups": [], "scalars": []}
    for i, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for key, values in state["state"].items():
            for name, value in values.items():
                if torch.is_tensor(value):
                    tensors[f"optimizer/{i}/{key}/{name}"] = value.detach().contiguous()
                else:
                    scalars.setdefault(str(key), {})[name] = value
        meta["groups"].append(state["param_groups"])
        meta["scalars"].append(scalars)
    meta["schedulers"] = [{"last_epoch": s.last_epoch, "_step_count": s._step_count} for s in schedulers]
    with replacing(folder) as fresh:
        save_file(tensors, fresh / "state.safetensors")
        (fresh / "state.json").write_text(json.dumps(meta, default=list))


def _load_state(folder: Path, parameters: dict[str, nn.Parameter], optimizers: list, schedulers: list) -> dict:
    if not folder.exists() and folder.with_name(folder.name + ".old").exists():
        folder = folder.with_name(folder.name + ".old")  # killed between the two renames
    tensors = load_file(folder / "state.safetensors")
    meta = json.loads((folder / "state.json").read_text())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer/{i}/"):
                _, _, index, name = key.split("/", 3)
                state.setdefault(int(index), {})[name] = tensor
        for index, values in meta["scalars"][i].items():
            state.setdefault(int(index), {}).update(values)
        groups = meta["groups"][i]
        for group in groups:
            group["betas"] = tuple(group["betas"]) if "betas" in group else None
            if group["betas"] is None:
                del group["betas"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    for scheduler, state in zip(schedulers, meta["schedulers"], strict=True):
        scheduler.__dict__.update(state)
    return meta


def train_stage(stage: Stage, plan: Plan, folder: str | os.PathLike, resume: bool = True, quiet: bool = False) -> dict:
    """Train a stage to its last step.

    Args:
        folder: gets ``log.jsonl`` (one line a logged step and a validation) and ``state/`` (the resumable checkpoint).
        resume: go on from ``state/`` where there is one.

    Returns:
        {"steps", "seconds", "validation"}: seconds of training over all sittings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {n: p for n, p in stage.named_parameters() if p.requires_grad}
    optimizers = build_optimizers(
        parameters.items(), plan.optimizer, plan.lr, plan.weight_decay, betas=tuple(plan.betas), adam_lr=plan.adam_lr
    )
    schedulers = build_schedulers(optimizers, plan.steps, plan.warmup, plan.decay, plan.cooldown)
    state = folder / "state"
    first, before = 0, 0.0
    if resume and (state.exists() or state.with_name("state.old").exists()):
        meta = _load_state(state, parameters, optimizers, schedulers)
        first, before = meta["step"], meta["seconds"]
    log = folder / "log.jsonl"
    if first == 0:
        log.write_text("")
    began = time.perf_counter()

    def seconds() -> float:
        return round(before + time.perf_counter() - began, 1)

    def write(entry: dict) -> None:
        with log.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=quiet,
        refresh_per_second=1,
    )
    running: dict[str, float] = {}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    validation: dict[str, float] = next((e["validation"] for e in reversed(lines) if "validation" in e), {})
    with progress:
        bar = progress.add_task(stage.name, total=plan.steps, completed=first, figures="")
        for step in range(first, plan.steps):
            stage.start_step(step, plan.steps)
            batch = on_device(stage.batch(step, Part()), stage.device)
            with torch.autocast(stage.device.type, torch.bfloat16) if plan.bf16 else contextlib.nullcontext():
                terms = stage.losses(batch)
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(list(parameters.values()), plan.clip)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()
            for name, term in terms.items():
                value = float(term.detach())
                running[name] = value if name not in running else 0.95 * running[name] + 0.05 * value
            done = step + 1
            speed = stage.images(batch) * (done - first) / (time.perf_counter() - began)
            figures = " ".join(f"{n} {v:.3f}" for n, v in running.items()) + (f" · {speed:.0f} img/s" if speed else "")
            progress.update(bar, completed=done, figures=figures)
            if done % plan.log_every == 0 or done == plan.steps:
                rate = schedulers[0].get_last_lr()[0]
                entry = {"step": done, "seconds": seconds(), "lr": rate, "norm": round(float(norm), 4)}
                entry |= {n: round(v, 4) for n, v in running.items()}
                write(entry | {"images_per_second": round(speed, 1)})
            if (plan.validate_every and done % plan.validate_every == 0) or done == plan.steps:
                validation = stage.validate()
                if validation:
                    rounded = {k: round(v, 4) for k, v in validation.items()}
                    write({"step": done, "seconds": seconds(), "validation": rounded})
            if done % plan.checkpoint_every == 0 or done == plan.steps:
                _save_state(state, done, parameters, optimizers, schedulers, seconds())
    return {"steps": plan.steps, "seconds": seconds(), "validation": validation}
