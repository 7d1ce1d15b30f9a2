"""The training loop: steps, progress, log, states, resume. What is trained is a :class:`Stage`.

The same code runs on one process and on many (accelerate: DDP, FSDP, DeepSpeed). A step's global batch is split into
parts, one for each process and micro-batch, and its loss does not depend on how many there are: for each term it is the
mean over the whole batch. Only a contrastive term knows of micro-batches: its negatives are those of one micro-batch on
all processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from vtc import distributed
from vtc.errors import UserError, unknown
from vtc.training import state, track
from vtc.training.optim import DECAYS, OPTIMIZERS, build_optimizers, build_schedulers

if TYPE_CHECKING:
    from vtc.training.parallel import Team


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
    batch_size: int | None = None  # rows of the global batch, where it is known: there must be one for every part

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

        Terms without a weight count 1 a part. A term of weight 0 in a part is left out there; it may be returned all
        the same, finite: sharded models need the same forward pass on every process.
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

    def __post_init__(self) -> None:
        """UserError: a number or a name that a plan can't have."""
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        for key in ("steps", "accumulate", "keep", "checkpoint_every", "log_every"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"training.{key}={value}: a whole number of 1 or more")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("training.stages[].optimizer", self.optimizer, OPTIMIZERS)
        if self.decay not in DECAYS:
            raise unknown("training.stages[].decay", self.decay, DECAYS)

    def identity(self) -> dict[str, Any]:
        """What the weights at the end depend on."""
        free = ("accumulate", "keep", "validate_every", "checkpoint_every", "log_every")
        return {k: v for k, v in asdict(self).items() if k not in free}


def seed_step(seed: int, stage: str, step: int) -> None:
    """Makes the randomness of a step (dropout) a function of the seed, the stage, the step and the process."""
    text = f"{seed}/{stage}/{step}/{distributed.rank()}"
    torch.manual_seed(int.from_bytes(_digest(text)[:8], "little") >> 1)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def train_stage(
    stage: Stage,
    plan: Plan,
    folder: str | os.PathLike,
    resume: bool = True,
    quiet: bool = False,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    log: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a stage to its last step. Every process of a run calls it, with the same arguments.

    Args:
        folder: gets ``log.jsonl`` (one line a logged step and a validation) and ``state/`` (see `vtc.training.state`).
        resume: go on from the newest state that is whole; a stage that is finished is read, not trained. False: states
            of before are removed.
        seed: of dropout and whatever else is random in a step; see `seed_step`.
        config: what else the weights depend on (backbone, method, data); a state of another one is refused.
        log: trackers beside ``log.jsonl``: tensorboard, wandb, trackio.

    Returns:
        {"steps", "seconds", "validation"}: seconds of training over all sittings.

    Raises:
        UserError: a state of another configuration; a tracker that is not there; what this kind of launch can't do.
    """
    from vtc.training.parallel import Team, parts_of

    track.check(log)
    distributed.begin(stage.device.type == "cpu")
    folder = Path(folder)
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
    identity = {"stage": stage.name, "plan": plan.identity(), "seed": seed, **(config or {})}

    def optimizers(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        named = parameters.items()
        return build_optimizers(named, plan.optimizer, plan.lr, plan.weight_decay, plan.betas, plan.adam_lr)

    parts = parts_of(plan)
    if stage.batch_size is not None and stage.batch_size < parts[0].count:
        raise UserError(
            f"training.data.batch_size={stage.batch_size}: fewer than the {parts[0].count} parts of a step "
            f"({distributed.world()} processes × accumulate={plan.accumulate})"
        )
    team = Team(stage, plan, optimizers, folder, log)
    schedulers = build_schedulers(team.raw, plan.steps, plan.warmup, plan.decay, plan.cooldown)
    own = (team.accelerator.save_state, team.accelerator.load_state) if team.deepspeed else (None, None)
    training = state.Training(team.parameters, team.raw, schedulers, *own)
    states = state.States(folder / "state", plan.keep, identity)
    if not resume:
        states.clear()
    notes = FRESH
    found = states.newest()
    if found:
        notes = found[1]
        state.restore(*found, training)
    first = int(notes["step"])
    if first < plan.steps:
        stage.expect(parts, first, plan.steps)
    with _Book(folder, plan, notes, stage.name, quiet) as book:
        book.tracker = track.Tracker(team.accelerator, log if first < plan.steps else (), folder, identity)
        for step in range(first, plan.steps):
            began = time.perf_counter()
            seed_step(seed, stage.name, step)
            stage.start_step(step, plan.steps)
            terms, seen = _gradients(team, stage, step, parts)
            norm, rate = team.step(plan.clip), float(schedulers[0].get_last_lr()[0])
            for scheduler in schedulers:
                scheduler.step()
            done = step + 1
            book.step(done, terms, seen, norm, rate, time.perf_counter() - began)
            if (plan.validate_every and done % plan.validate_every == 0) or done == plan.steps:
                book.validated(done, team.run(stage.validate))
            if done % plan.checkpoint_every == 0 or done == plan.steps:
                more = {"of": plan.steps, "versions": versions(), "launch": team.launch, **book.position()}
                states.save(done, training, more, finished=done == plan.steps)
    team.close()
    return {"steps": plan.steps, "seconds": book.seconds, "validation": book.validation}


def _gradients(team: Team, stage: Stage, step: int, parts: Sequence[Part]) -> tuple[dict[str, float], dict[str, float]]:
    """Leaves the gradient of the step's loss in the parameters.

    Returns:
        (the step's terms, what all processes saw: "images" and "tokens").

    Raises:
        UserError: on every process, where a batch of one of them can't be had, or nothing in the step is to be learned.
    """
    batches, weights, mistake, sums = [], [], "", {"parts": float(len(parts))}
    try:
        batches = [stage.batch(step, part) for part in parts]
        weights = [stage.weights(batch) for batch in batches]
        sums |= _added([{f"weight/{n}": float(w) for n, w in each.items()} for each in weights])
        sums |= {"images": float(sum(map(stage.images, batches))), "tokens": float(sum(map(stage.tokens, batches)))}
    except UserError as error:
        mistake = str(error)
    told = distributed.gather_objects((mistake, sums))
    if any(each for each, _ in told):
        raise UserError(next(each for each, _ in told if each))
    totals = _added([each for _, each in told])

    values = []
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        last = number == len(batches) - 1
        shares = {n: w / totals[f"weight/{n}"] if w else 0.0 for n, w in weight.items()}
        with team.alone(last):
            terms = team.losses(stage, on_device(batch, stage.device), shares, 1 / totals["parts"])
            team.backward(torch.stack(list(terms.values())).sum(), last)
        values.append({n: float(t.detach()) / team.factor for n, t in terms.items() if n})
    whole = distributed.sum_over_ranks(_added(values))
    if not whole:
        raise UserError(f"training: step {step + 1} of stage {stage.name!r} has nothing to learn from")
    return whole, {n: totals[n] for n in ("images", "tokens")}


def _added(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for entry in entries:
        for name, value in entry.items():
            total[name] = total.get(name, 0.0) + value
    return total


def versions() -> dict[str, str]:
    """Of the software that the numbers depend on."""
    from importlib.metadata import version

    from vtc import __version__

    packages = ("torch", "transformers", "accelerate", "peft")
    return {"vtc": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


FRESH: dict[str, Any] = {"step": 0, "seconds": 0.0, "running": {}, "validation": {}}


class _Book:
    """What is told of a stage: the progress line, ``log.jsonl``, the trackers. The main process alone writes.

    Attributes:
        validation: the newest figures.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        meta: Mapping[str, Any],
        name: str,
        quiet: bool,
    ) -> None:
        self.plan, self.first, self.before = plan, int(meta["step"]), float(meta["seconds"])
        self.running, self.validation = dict(meta["running"]), dict(meta["validation"])
        self.tracker: track.Tracker | None = None
        self.began, self.spent, self.seen = time.perf_counter(), 0.0, {"images": 0.0, "tokens": 0.0}
        self.writes, self.file = distributed.is_main(), folder / "log.jsonl"
        if self.writes:
            self.file.write_text("".join(_lines_until(self.file, self.first)))
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=quiet or not self.writes,
            refresh_per_second=1,
        )
        self.bar = self.progress.add_task(name, total=plan.steps, completed=self.first, figures="")

    def __enter__(self) -> _Book:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()
        if self.tracker:
            self.tracker.finish()

    @property
    def seconds(self) -> float:
        """Of training, over all sittings."""
        return round(self.before + time.perf_counter() - self.began, 1)

    def position(self) -> dict[str, Any]:
        """What a state remembers of it."""
        return {"seconds": self.seconds, "running": self.running, "validation": self.validation}

    def write(self, entry: dict[str, Any]) -> None:
        if self.writes:
            with self.file.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
            if self.tracker:
                figures = entry.get("validation", entry)
                self.tracker.log({n: v for n, v in figures.items() if n != "step"}, entry["step"])

    def step(
        self, done: int, terms: Mapping[str, float], seen: Mapping[str, float], norm: float, rate: float, seconds: float
    ) -> None:
        """One step: its terms, how many images and tokens all processes saw, the time it took."""
        for name, value in terms.items():
            self.running[name] = value if name not in self.running else 0.95 * self.running[name] + 0.05 * value
        self.spent += seconds
        for name, count in seen.items():
            self.seen[name] += count
        speed = {name: count / self.spent for name, count in self.seen.items()}
        units = ((speed["images"], "img/s"), (speed["tokens"], "tok/s"))
        figures = [" ".join(f"{n} {v:.3f}" for n, v in self.running.items())]
        figures += [f"{value:.0f} {unit}" for value, unit in units if value]
        self.progress.update(self.bar, completed=done, figures=" · ".join(figures))
        if done % self.plan.log_every and done != self.plan.steps:
            return
        left = (self.plan.steps - done) * self.spent / (done - self.first)
        entry = {"step": done, "seconds": self.seconds, "lr": rate, "norm": round(norm, 4)}
        entry |= {"loss": round(sum(terms.values()), 6)} | {n: round(v, 4) for n, v in self.running.items()}
        entry |= {f"{name}_per_second": round(value, 1) for name, value in speed.items()}
        self.write(entry | {"seconds_left": round(left, 1)})

    def validated(self, done: int, figures: Mapping[str, float]) -> None:
        self.validation = dict(figures)
        if figures:
            rounded = {k: round(v, 4) for k, v in figures.items()}
            self.write({"step": done, "seconds": self.seconds, "validation": rounded})


def _lines_until(file: Path, step: int) -> list[str]:
    """The lines of a log up to a step; what a killed run wrote after its last state, or only in part, is left out."""
    kept = []
    for line in file.read_text().splitlines() if step and file.is_file() else ():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    return kept
