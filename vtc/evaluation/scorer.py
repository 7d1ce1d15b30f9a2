"""A loaded model and what it can be scored on, in every process of a run.

To lmms-eval each process looks alone: all build the same requests and the same batches, a batch is answered by one of
them as it would be by a single process, and the leader has all answers before the first is scored. So scores, samples
and their order are those of one process, for any metric. The leader alone looks at results, holds locks, draws test
sets, scores, measures, prints and writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError
from vtc.evaluation import harness, loaded
from vtc.evaluation.spec import TaskScores, TaskSpec
from vtc.job import Job, launched
from vtc.shipped import cache_folder

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.evaluation.crew import Crew
    from vtc.interface import Compressor

LOAD, SCORE = "load", "score"  # what the leader orders


class Scorer:
    """A loaded model, and the tasks that it can be scored on; `close` gives the model back.

    Args:
        tasks: of lmms-eval, by name.
        description: of the model, see `VtcModel`.
        say: called with what is being loaded.
        on_sample: see `VtcModel`.
    """

    def __init__(
        self,
        crew: Crew,
        job: Job,
        tasks: Sequence[str],
        description: str,
        say: Callable[[str], None] | None = None,
        on_sample: Callable[[int], None] | None = None,
    ) -> None:
        say = say or (lambda what: None)
        with ExitStack() as stack:
            shared = stack.enter_context(loaded.sharing())
            say("loading lmms-eval")
            self.manager = shared.task_manager(tasks, job.benchmark.include)
            from vtc.evaluation.model import FRAMES, VtcModel
            from vtc.evaluation.towers import FOLDER, GIGABYTE, TowerCache

            say("loading the model")
            self.backbone, self.method = stack.enter_context(lent(job))
            self.model = VtcModel(
                self.backbone,
                self.method,
                job.batch_size,
                description,
                job.backbone.frames or FRAMES,
                on_sample=on_sample,
                crew=crew,
                picture=job.benchmark.picture,
                workers=job.workers,
                spreads=job.budget.is_mean,
                towers=TowerCache(cache_folder() / FOLDER, job.tower_cache * GIGABYTE) if job.tower_cache else None,
            )
            self.close = stack.pop_all().close

    def score(self, spec: TaskSpec) -> TaskScores:
        """See `vtc.evaluation.harness.run_task`."""
        return harness.run_task(self.model, spec, self.manager)


@contextlib.contextmanager
def orders_of(crew: Crew) -> Iterator[Mapping[str, Callable[..., Any]]]:
    """What the other processes do on the leader's orders, by name, for `Crew.serve`."""
    scorers: list[Scorer] = []

    def close() -> None:
        while scorers:
            scorers.pop().close()

    def load(job: Job, tasks: Sequence[str], description: str) -> None:
        close()  # the memory is needed
        scorers.append(Scorer(crew, job, tasks, description))

    def score(spec: TaskSpec) -> None:
        for scorer in scorers:  # where loading failed the leader knows
            scorer.score(spec)

    try:
        yield {LOAD: load, SCORE: score}
    finally:
        close()


def check_processes(job: Job) -> None:
    """What can't be done by several processes.

    Raises:
        UserError: a model over several GPUs, or a GPU for several processes.
    """
    if (count := launched()) == 1:
        return
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true":
            raise UserError(
                f"accelerate: {kind} splits a model that is trained; to evaluate, each process holds all of it: "
                "see conf/accelerate/ddp.yaml"
            )
    device_map, device = job.backbone.device_map, job.backbone.device
    if device_map is not None:
        raise UserError(
            f"backbone.device_map={device_map}: spreads one model over the GPUs, but {count} processes "
            "were started and each loads its own; leave out device_map or the launcher"
        )
    if device.startswith("cuda:"):
        raise UserError(
            f"backbone.device={device}: {count} processes would share it; with auto each takes a GPU of its own"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or count)
    if _on_gpus(device) and here > (gpus := _gpus()):
        raise UserError(f"backbone.device={device}: {here} processes for {gpus} GPUs; start one a GPU at most")


def on_own_device(job: Job) -> Job:
    """The same job with the device that is this process's own."""
    device = job.backbone.device
    if launched() > 1 and _on_gpus(device):
        import torch

        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    elif launched() > 1 and device == "auto" and _gpus():
        device = "cpu"  # as the launcher's own settings have it
    return dataclasses.replace(job, backbone=dataclasses.replace(job.backbone, device=device))


def _on_gpus(device: str) -> bool:
    cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return (device == "cuda" or (device == "auto" and not cpu)) and _gpus() > 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextlib.contextmanager
def lent(job: Job) -> Iterator[tuple[Backbone, Compressor]]:
    """The backbone and a method of its own on this process's device, until the block ends."""
    with loaded.sharing() as shared, shared.lent(on_own_device(job)) as pair:
        yield pair


def load(job: Job) -> tuple[Backbone, Compressor]:
    """The same for good."""
    with loaded.without_bars():
        return on_own_device(job).load()
