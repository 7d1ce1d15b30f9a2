"""The recipe behind ``action=train``: a compression method on a backbone, stage by stage.

Every stage keeps its own folder with a log and a resumable state; a run that was killed goes on where it was. Another
recipe (`vtc.pocket.base`, say) is a function of a job too, and trains its stages with `run_stage`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from safetensors import SafetensorError

from vtc import distributed, shipped, trackers
from vtc.errors import UserError, unknown
from vtc.folders import UNWRITABLE, lock_of
from vtc.identity import digest
from vtc.job import POCKET_WEIGHTS, Job, add_lora, written
from vtc.registry import recipes, training_sources
from vtc.settings import DataSettings, StageSettings
from vtc.training.identity import identity, identity_of_manifest, is_slow_in_bf16, recipe, training_folder

if TYPE_CHECKING:
    from vtc.data.training import TrainingSource
    from vtc.training.stage import Stage


COUNTED = 6  # steps whose FLOPs are counted
POLL = 10.0  # seconds: processes that wait together hear from the first one so often, or would think it dead


def run(job: Job) -> Path:
    """Train by the recipe in ``job.training``.

    Returns:
        The folder of the finished weights; of a dry run the folder of the training that it speaks of.

    Raises:
        UserError: a recipe, stage or option that doesn't exist, before anything is trained.
    """
    training = recipe(job)
    train = recipes.get(training.recipe)
    if job.backbone.quantization != "none":
        raise UserError(
            f"backbone.quantization={job.backbone.quantization}: quantised weights are there to answer with, not to be "
            "trained; train with quantization=none and evaluate the checkpoint with it"
        )
    trackers.check(training.log, "training.log")
    if training.dry_run or job.dry_run:
        if training.recipe != "method":
            raise UserError("dry_run: the pocket model is small enough to be trained; it plans a method's stages")
        from vtc.training.plan import dry_run

        return dry_run(job)
    device = distributed.device(job.backbone.device).type
    distributed.begin(cpu=device == "cpu")
    if (slow := slow_bf16(job.training.stages, device)) and distributed.is_main():  # type: ignore[union-attr]
        print(slow, flush=True)
    folder = training_folder(job)
    with writable(folder), alone(folder):
        return train(job)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A folder that can't be made, or a disk that is full or locked later on, in one line.

    Raises:
        UserError: what the system says, and how to move the folder.
    """
    begun = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = True
        yield
    except (OSError, SafetensorError) as error:
        if begun and getattr(error, "errno", None) not in UNWRITABLE and "I/O error" not in str(error):
            raise
        raise UserError(
            f"{folder}: can't be written ({getattr(error, 'strerror', None) or error}); what was stored is kept, and "
            "training.folder=<folder> is another place"
        ) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One run at a time trains into a folder. Another one waits for it and says so; what is finished then is read."""
    lock = lock_of(folder / "weights")  # inside: the folder around a user's may not be writable

    def acquired(seconds: float) -> bool:
        if distributed.is_main():
            with suppress(Timeout):
                lock.acquire(timeout=seconds)
        return distributed.from_main(lock.is_locked)

    try:
        if not acquired(0):
            if distributed.is_main():
                print(f"another run trains into {folder}; waiting for it", flush=True)
            while not acquired(POLL):
                pass
        yield
    finally:
        lock.release()


def train_method(job: Job) -> Path:
    """A compression method on a backbone: the stages of the recipe, one after the other.

    Raises:
        UserError: a part that can't be trained, a checkpoint to start from that isn't there, what `Job.load` refuses.
    """
    import torch

    from vtc import checkpoint
    from vtc.checkpoint import PARTS
    from vtc.training.log import LOG, gathered_logs, provenance
    from vtc.training.method_stage import MethodStage

    training = recipe(job)
    for number, settings in enumerate(training.stages):
        if not settings.train:
            raise UserError(f"training.stages.{number}.train=[]: allowed: some of {', '.join(PARTS)}")
        for part in settings.train:
            if part not in PARTS:
                raise unknown("training.stages[].train", part, PARTS)
    start = checkpoint.folder_of(training.start) if training.start else None
    if start and not start.is_dir():
        raise UserError(f"training.start={training.start!r}: no such folder; give a checkpoint to start from, or null")
    if start:
        checkpoint.names_in(start)  # whole, before anything is loaded
        checkpoint.read_manifest(start)
    folder = training_folder(job)
    target = folder / checkpoint.FINISHED
    if is_finished(job, target):
        tell(job, target, already=True)
        return target
    for settings in training.stages:  # before the backbone is loaded, which can take minutes
        data = training.data_of(settings)
        if check := getattr(source_class(data, job.backbone.name), "check", None):
            check(data)
    torch.manual_seed(job.seed)  # Registers, summary tokens and adapters start at random, alike in every process.
    backbone, method = at_the_start(job).load(trained=False)
    add_lora(backbone, method, training.lora)
    if start:
        checkpoint.load(start, backbone, method, fit=False)
    reports, trained = [], set()
    for settings in training.stages:
        data = training.data_of(settings)
        embed = float(data.contrastive) > 0 and not method.learns_from_captions
        source = source_class(data, backbone.name).of_stage(settings.name, data, backbone, job.seed, embed)
        stage = MethodStage(
            settings.name,
            backbone,
            method,
            settings.train,
            source,
            losses=training.losses,
            contrastive=float(data.contrastive),
            checkpointing=training.checkpointing,
            compress=settings.compress,
            workers=training.workers,
            seed=job.seed,
        )
        stage.to(backbone.device)
        trained |= {n.removeprefix("backbone.") for n in stage.trained if n.startswith("backbone.")}
        size = len(source) if isinstance(source, Sized) else None
        reports.append(run_stage(stage, job, settings, folder, size))
    manifest = {
        "backbone": backbone.name,
        "method": method.name,
        "tokens": None if method.elastic else method.tokens,
        "options": {"name": job.method.name, **job.method.options},
        "training": written_recipe(job),
    } | provenance(job, reports)
    dtype = torch.bfloat16 if training.store == "bfloat16" else None
    log = gathered_logs(folder, [settings.name for settings in training.stages]) if distributed.is_main() else ""
    checkpoint.save(target, backbone, method, manifest, trained, dtype, {LOG: log})
    tell(job, target)
    return target


def run_stage(stage: Stage, job: Job, settings: StageSettings, folder: Path, size: int | None = None) -> dict[str, Any]:
    """Trains one stage of a recipe in a folder of its own under `folder`; what it says of it in a manifest.

    Args:
        size: samples of its source, where that is known; epochs are counted by it.
    """
    from vtc.training import loop

    training = recipe(job)
    settings_in_steps = in_steps(settings, training.data_of(settings), size)
    accumulate = settings.accumulate or training.accumulate
    flops = flops_per_step(stage, settings_in_steps.steps or 0, accumulate)
    report = loop.train_stage(
        stage,
        settings_in_steps,
        folder / settings.name,
        resume=job.resume is not False,
        seed=job.seed,
        accumulate=accumulate,
        keep=settings.keep or training.keep,
        config=identity(job),
        log=training.log,
    )
    plan = {key: value for key, value in dataclasses.asdict(settings).items() if key != "name"}
    return {"name": settings.name, **report, "flops_per_step": flops, "plan": plan}


def flops_per_step(stage: Stage, steps: int, accumulate: int = 1) -> float | None:
    """FLOPs of a step, forward and backward: the mean over `COUNTED` steps spread over the stage, which are computed
    for it and teach nothing. None where files are read, which are read once, or where several processes share a step.
    """
    import torch

    from vtc.data.training import FileSource
    from vtc.data.training.batch import Part, on_device
    from vtc.profiling.counter import flop_counter

    if distributed.world() > 1 or isinstance(getattr(stage, "source", None), FileSource):
        return None
    chosen = sorted({int((n + 0.5) * steps / COUNTED) for n in range(COUNTED)})
    total = 0
    for step in chosen:
        stage.start_step(step, steps)
        for micro in range(accumulate):
            batch = on_device(stage.batch(step, Part(micro, accumulate)), stage.device)
            with flop_counter() as counter:
                torch.stack(list(stage.losses(batch).values())).sum().backward()
            total += counter.get_total_flops()
    for _, parameter in stage.named_parameters():
        parameter.grad = None
    return total / len(chosen)


def in_steps(settings: StageSettings, data: DataSettings, size: int | None) -> StageSettings:
    """A stage counted in steps; one that is counted in epochs on a source without a size has a single one."""
    if settings.epochs is None:
        return settings
    steps = max(1, math.ceil(float(settings.epochs) * size / data.batch_size)) if size else 1
    return dataclasses.replace(settings, steps=steps, epochs=None)


def written_recipe(job: Job) -> dict[str, Any]:
    """The recipe as a manifest holds it: `TrainingSettings.of` reads it back."""
    return {key: value for key, value in dataclasses.asdict(recipe(job)).items() if key != "folder"}


def source_class(data: DataSettings, backbone: str) -> type[TrainingSource]:
    """What a stage reads: what `data.source` says, files where some are named, else the backbone's own scenes.

    Raises:
        UserError: no such source, or none at all.
    """
    files = "files" if data.path or data.sources else None
    source = data.source or files or backbone
    if source == backbone and source not in training_sources.names():
        raise UserError(
            f"training.data: backbone={backbone} needs data.path=<file>; only pocket draws scenes of its own"
        )
    return training_sources.get(source)


def slow_bf16(stages: Sequence[StageSettings], device: str) -> str | None:
    """A line for stages in bfloat16 where the processor has no instructions for it (`is_slow_in_bf16`), else None."""
    slow = [i for i, stage in enumerate(stages) if stage.bf16 is True]
    if not is_slow_in_bf16(device):
        return None
    if slow:
        instead = " ".join(f"training.stages.{i}.bf16=false" for i in slow)
        return f"bf16=true: this processor is many times slower in bfloat16 than in float32; quicker here: {instead}"
    if any(stage.bf16 == "auto" for stage in stages):
        return "bf16=auto: in float32, as this processor is many times slower in bfloat16"
    return None


def is_finished(job: Job, target: Path) -> bool:
    """Whether the weights of this very training are there, as it wrote them.

    Raises:
        UserError: they are another training's, or nobody can say whose.
    """
    from vtc.checkpoint import MANIFEST, damage, read_manifest

    if job.resume is False or not (target / MANIFEST).is_file():
        return False
    try:
        same = digest(identity_of_manifest(read_manifest(target), job)) == digest(identity(job))
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{target} holds the weights of another training, or its {MANIFEST} was changed; "
            "resume=false trains anew in its place, another training.folder keeps both"
        )
    if (what := damage(target)) and distributed.is_main():
        print(f"{target}: {what}; it is made anew from what the stages stored", flush=True)
    return what is None


def tell(job: Job, weights: Path, already: bool = False) -> None:
    """Says where the weights of a training are, and what to type next. The main process alone speaks."""
    from vtc.checkpoint import MANIFEST

    if not distributed.is_main():
        return
    if not (weights / MANIFEST).is_file():  # a model of its own
        print(f"trained: {weights}\nscore it: python -m vtc {shlex.quote(written('pretrained', weights))}", flush=True)
        return
    score = f"score it: {scoring_command(job, weights)}"
    if already:
        on = shlex.quote(written("training.start", weights))
        print(f"trained already: {weights}; {score}; train on from it: {on}; anew: resume=false", flush=True)
    else:
        print(f"trained: {weights}\n{score}", flush=True)


def scoring_command(job: Job, weights: Path) -> str:
    """What to type to score the weights that a job trained: its own overrides but those of training."""
    dropped = {"action", "training", "checkpoint", "resume", "dry_run", "seed"}
    words = job.overrides
    if words is None:
        words = (written("backbone", job.backbone.name), written("method", job.method.name))
        words += tuple(written(key, value) for key, value in job.budget.requested.items())
    kept = {word: word.lstrip("+~").partition("=")[0].split(".") for word in words}
    start = at_the_start(job).backbone.pretrained
    parts = {part for stage in recipe(job).stages for part in stage.train}
    if start == job.backbone.pretrained or (recipe(job).pretrained == "aligned" and {"projector", "decoder"} <= parts):
        start = None  # the weights to score with are the backbone's own, or all that differs from them is stored
    else:
        kept = {word: key for word, key in kept.items() if key[-1] != "pretrained"}
    command = [word for word, key in kept.items() if key[0] not in dropped]
    if "experiment" in (key[0] for key in kept.values()):
        command.append("action=evaluate")
    if not job.budget.requested and job.compressor.tokens is not None:  # of an elastic method any will do
        command.append(written("tokens", job.compressor.tokens))
    command += [written("backbone.pretrained", start)] if start else []
    return shlex.join(["python", "-m", "vtc", *command, written("checkpoint", weights)])


def at_the_start(job: Job) -> Job:
    """The job with the backbone's weights of before: ``aligned`` is pocket before it was instructed.

    Raises:
        UserError: another backbone has no such weights.
    """
    pretrained = recipe(job).pretrained
    if pretrained == "aligned":
        if job.backbone.name not in POCKET_WEIGHTS:
            raise UserError("training.pretrained=aligned: pocket has such weights; give a folder or null")
        pretrained = str(shipped.path(f"{POCKET_WEIGHTS[job.backbone.name]}/aligned"))
    return dataclasses.replace(
        job, backbone=dataclasses.replace(job.backbone, pretrained=pretrained or job.backbone.pretrained)
    )
