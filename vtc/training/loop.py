"""The training loop: steps, states, resume. What is trained is a :class:`vtc.training.stage.Stage`.

The same code runs on one process and on many (accelerate: DDP, FSDP, DeepSpeed). A step's global batch is split into
parts, one for each process and micro-batch, and its loss does not depend on how many there are: for each term it is the
mean over the whole batch. Only a contrastive term knows of micro-batches: its negatives are those of one micro-batch on
all processes.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vtc import distributed, trackers
from vtc.data.training.batch import Part, on_device
from vtc.errors import UserError
from vtc.identity import WEIGHTS, deciding
from vtc.settings import StageSettings
from vtc.training import state, track
from vtc.training.interruption import Interruption
from vtc.training.log import FRESH, StageLog, versions
from vtc.training.optim import build_schedulers
from vtc.training.parallel import ParallelModel
from vtc.training.stage import Stage


def seed_step(seed: int, stage: str, step: int) -> None:
    """Makes the randomness of a step (dropout) a function of the seed, the stage, the step and the process."""
    text = f"{seed}/{stage}/{step}/{distributed.rank()}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)


def train_stage(
    stage: Stage,
    settings: StageSettings,
    folder: str | os.PathLike,
    resume: bool = True,
    quiet: bool = False,
    *,
    seed: int = 0,
    accumulate: int = 1,
    keep: int = 2,
    config: Mapping[str, Any] | None = None,
    log: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a stage to its last step. Every process of a run calls it, with the same arguments.

    Args:
        settings: how it is trained, counted in steps.
        folder: gets ``log.jsonl`` (one line a logged step and a validation) and ``state/`` (see `vtc.training.state`).
        resume: go on from the newest state that is whole; a stage that is finished is read, not trained. False: states
            of before are removed.
        seed: of dropout and whatever else is random in a step; see `seed_step`.
        accumulate: micro-batches that each process takes a step.
        keep: resumable states that are kept.
        config: what else the weights depend on (backbone, method, data); a state of another one is refused.
        log: trackers beside ``log.jsonl``: tensorboard, wandb, trackio.

    Returns:
        {"steps", "seconds", "validation"}: seconds of training over all sittings.

    Raises:
        UserError: a state of another configuration; a tracker that is not there; what this kind of launch can't do.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step at hand, whose state is stored.
    """
    trackers.check(log, "training.log")
    distributed.begin(stage.device.type == "cpu")
    folder, total = Path(folder), settings.steps
    if total is None:
        raise ValueError(f"stage {stage.name!r}: counted in epochs, not in steps")
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
    identity = {"stage": stage.name, "plan": deciding(settings, WEIGHTS), "seed": seed, **(config or {})}

    world, rank = distributed.world(), distributed.rank()
    # This process's parts of a step: a micro-batch's parts on all processes lie side by side.
    parts = [Part(micro * world + rank, world * accumulate) for micro in range(accumulate)]
    if stage.batch_size is not None and stage.batch_size < parts[0].count:
        raise UserError(
            f"training.data.batch_size={stage.batch_size}: fewer than the {parts[0].count} parts of a step "
            f"({world} processes × accumulate={accumulate})"
        )

    model = ParallelModel(stage, settings, accumulate, folder, log)
    schedulers = build_schedulers(model.raw, settings, total)
    own = (model.accelerator.save_state, model.accelerator.load_state) if model.deepspeed else (None, None)
    training = state.Training(model.parameters, model.raw, schedulers, *own)
    states = state.States(folder / "state", keep, identity)
    if not resume:
        states.clear()
    notes = FRESH
    if newest := states.newest():
        notes = newest[1]
        state.restore(*newest, training)
    first = int(notes["step"])
    if first < total:
        stage.expect(parts, first, total)

    def store(done: int) -> None:
        more = {"of": total, "versions": versions(), "launch": model.launch, **written.position()}
        states.save(done, training, more, finished=done == total)

    with StageLog(folder, settings, notes, stage.name, quiet) as written, Interruption() as interruption:
        written.tracker = track.Tracker(model.accelerator, log if first < total else (), folder, identity)
        for step in range(first, total):
            began = time.perf_counter()
            seed_step(seed, stage.name, step)
            stage.start_step(step, total)
            terms, seen = _gradients(model, stage, step, parts)
            norm, rate = model.step(settings.clip), float(schedulers[0].get_last_lr()[0])
            if not all(map(math.isfinite, (norm, *terms.values()))):
                raise UserError(
                    f"training: step {step + 1} of stage {stage.name!r} has a loss or a gradient that isn't finite "
                    f"({', '.join(f'{n} {v:.3g}' for n, v in terms.items())}, norm {norm:.3g}); a smaller lr may help"
                )
            for scheduler in schedulers:
                scheduler.step()
            done = step + 1
            written.step(done, terms, seen, norm, rate, time.perf_counter() - began)
            if (settings.validate_every and done % settings.validate_every == 0) or done == total:
                written.validated(done, model.run(stage.validate))
            interrupted = next(filter(None, distributed.gather_objects(interruption.noted)), None)  # all stop as one
            if done % settings.checkpoint_every == 0 or done == total or interrupted:
                store(done)
            if interrupted:
                written.say(f"{stage.name}: stopped after step {done} of {total}, whose state is stored")
                raise KeyboardInterrupt(interrupted)
    model.close()
    return {"steps": total, "seconds": written.seconds, "validation": written.validation}


def _gradients(
    model: ParallelModel, stage: Stage, step: int, parts: Sequence[Part]
) -> tuple[dict[str, float], dict[str, float]]:
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
        sums |= distributed.added([{f"weight/{n}": float(w) for n, w in each.items()} for each in weights])
        sums |= {"images": float(sum(map(stage.images, batches))), "tokens": float(sum(map(stage.tokens, batches)))}
    except UserError as error:
        mistake = str(error)
    everyone = distributed.gather_objects((mistake, sums))
    if mistakes := [text for text, _ in everyone if text]:
        raise UserError(mistakes[0])
    totals = distributed.added([each for _, each in everyone])

    values = []
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        last = number == len(batches) - 1
        shares = {n: w / totals[f"weight/{n}"] if w else 0.0 for n, w in weight.items()}
        with model.alone(last):
            terms = model.losses(stage, on_device(batch, stage.device), shares, 1 / totals["parts"])
            model.backward(torch.stack(list(terms.values())).sum(), last)
        values.append({n: float(t.detach()) / model.factor for n, t in terms.items() if n})
    whole = distributed.sum_over_ranks(distributed.added(values))
    if not whole:
        raise UserError(f"training: step {step + 1} of stage {stage.name!r} has nothing to learn from")
    return whole, {n: totals[n] for n in ("images", "tokens")}
