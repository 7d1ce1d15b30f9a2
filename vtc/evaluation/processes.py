"""Several processes score one run: the first one leads, the others help it to answer.

`accelerate launch` and `torchrun` start them. The leader alone looks at results, holds locks, draws test sets, scores,
measures, prints and writes; the helpers do what it orders: load the model, answer their share of a task. To lmms-eval
each of them looks alone: all build the same requests and the same batches, a batch is answered by one of them as it
would be by a single process, and the leader has all answers before the first is scored. So scores, samples and their
order are those of one process, for any metric.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from unittest import mock

from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.evaluation.harness import TaskRun

T = TypeVar("T")
WAIT = timedelta(days=30)  # for each other: test sets are drawn, another job makes the baseline, costs are measured
POLL = 0.05  # seconds between two looks at whether the leader has its data
END = "end"
LOST = "another process of this run is gone; finished tasks are kept, the same command goes on with the rest"


class Answered(BaseException):
    """A helper's share of a task is with the leader. No error, and nothing that catches errors may catch it."""


class Stopped(Exception):
    """Another process failed, which says why by itself."""


class Lost(UserError):
    """Another process is gone without a word."""


@dataclass(frozen=True)
class Failure:
    """An error on its way to another process.

    Attributes:
        line: the error in one line; `mistake`: whether it is the user's to mend; `trace`: where it came from.
    """

    rank: int
    line: str
    mistake: bool
    trace: str

    @classmethod
    def of(cls, error: Exception, rank: int) -> Failure:
        mistake, words = isinstance(error, UserError), " ".join(str(error).split())
        return cls(rank, words if mistake else f"{type(error).__name__}: {words}", mistake, traceback.format_exc())

    def error(self) -> Exception:
        """What the leader raises where a helper failed."""
        told = f"process {self.rank}: {self.line}"
        if self.mistake:
            return UserError(told)
        error = RuntimeError(told)
        error.__cause__ = RuntimeError(f"there:\n{self.trace}")
        return error


def launched() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def check(settings: Mapping[str, Any]) -> None:
    """What can't be done by several processes.

    Raises:
        UserError: a model over several GPUs, or a GPU for several processes.
    """
    if launched() == 1:
        return
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true":
            raise UserError(
                f"accelerate: {kind} splits a model that is trained; to evaluate, each process holds all of it: "
                "see conf/accelerate/ddp.yaml"
            )
    backbone, count = settings["backbone"], launched()
    if backbone.get("device_map") is not None:
        raise UserError(
            f"backbone.device_map={backbone['device_map']}: spreads one model over the GPUs, but {count} processes "
            "were started and each loads its own; leave out device_map or the launcher"
        )
    wanted = str(backbone.get("device") or "auto")
    if wanted.startswith("cuda:"):
        raise UserError(
            f"backbone.device={wanted}: {count} processes would share it; with auto each takes a GPU of its own"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or count)
    if _on_gpus(wanted) and here > (gpus := _gpus()):
        raise UserError(f"backbone.device={wanted}: {here} processes for {gpus} GPUs; start one a GPU at most")


def placed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with the device that is this process's own."""
    backbone = dict(settings["backbone"])
    wanted = str(backbone.get("device") or "auto")
    if launched() > 1 and _on_gpus(wanted):
        import torch

        backbone["device"] = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(backbone["device"])
    elif launched() > 1 and wanted == "auto" and _gpus():
        backbone["device"] = "cpu"  # the launcher was told so
    return {**settings, "backbone": backbone}


def _on_gpus(wanted: str) -> bool:
    cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return (wanted == "cuda" or (wanted == "auto" and not cpu)) and _gpus() > 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


# The team ------------------------------------------------------------------------------------------------------------


class Team:
    """The processes of a run, as one of them sees them. Alone it costs nothing and changes nothing.

    The leader gives orders; all processes do what each says, and meet once before it is done. One that fails stops the
    others before their next batch, and the leader raises its error.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._orders = 0  # given so far; they name the keys in the store
        self._met = self._failed = False
        self._group: Any = None
        self._store: Any = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    # -- the leader
    def lead(self, call: Callable[[], T]) -> T:
        """`call()`; the helpers hear what it returned, or that it failed, and are free."""
        if self.world == 1:
            return call()
        try:
            value = call()
        except Exception as error:
            with contextlib.suppress(Lost):
                self._send(END, Failure.of(error, self.rank))
            raise
        self._send(END, value)
        return value

    @contextlib.contextmanager
    def doing(self, order: str, *given: Any) -> Iterator[None]:
        """Around what the leader does itself of an order that it gives.

        Raises:
            UserError, RuntimeError: a helper failed, or is gone.
        """
        if self.world > 1:
            self._send(order, given)
        with self._part():
            yield

    # -- the helpers
    def serve(self) -> Any:
        """Do what the leader orders, in silence, until it is done; returns what it returned.

        Raises:
            UserError: the leader failed, which says why by itself.
        """
        scorer: Scorer | None = None
        with _silent():
            while True:
                order, given = self._hear()
                if order == END:
                    if isinstance(given, Failure):
                        self._failed = True
                        raise UserError(given.line)
                    return given
                try:
                    with self._part():
                        if order == "load":
                            scorer = None  # the memory is needed
                            scorer = Scorer(self, *given)
                        elif scorer is not None:
                            scorer.score(*given)
                except Lost:
                    raise
                except Exception:  # the leader knows, and will say what becomes of the run
                    continue

    # -- all of them
    def mine(self, batch: int) -> bool:
        """Whether this process answers a batch.

        Raises:
            Stopped: another process failed.
        """
        if self.world > 1 and self._marked("stop"):
            raise Stopped
        return batch % self.world == self.rank

    def collect(self, share: T) -> list[T]:
        """Every process's share, by rank, for the leader; a helper's order ends here.

        Raises:
            Answered: on a helper.
            UserError, RuntimeError: another process failed, or is gone.
        """
        shares = self._meet(share)
        if not self.leads:
            raise Answered
        return shares

    def after_leader(self, call: Callable[[], T]) -> T:
        """`call()`, on the leader first: what it downloads or prepares, the others find."""
        if self.leads:
            value = call()
            if self.world > 1:
                self._mark("ready")
            return value
        while not self._marked("ready"):
            if self._marked("stop"):
                raise Stopped
            time.sleep(POLL)
        return call()

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """lmms-eval sees no process but this one: else it would split, pad and gather requests in a way of its own, and
        wait at places where a process that failed never comes."""
        if self.world == 1:
            yield
            return
        import lmms_eval.evaluator
        import torch.distributed

        load = lmms_eval.evaluator.get_task_dict
        with (
            mock.patch.dict(os.environ),
            mock.patch.object(torch.distributed, "is_initialized", lambda: False),
            mock.patch.object(
                lmms_eval.evaluator, "get_task_dict", lambda *a, **k: self.after_leader(lambda: load(*a, **k))
            ),
        ):
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                os.environ.pop(name, None)
            yield

    @contextlib.contextmanager
    def _part(self) -> Iterator[None]:
        """This process's part of an order: whatever comes of it, the processes meet once."""
        self._met = False
        try:
            yield
        except Answered:
            return
        except Exception as error:
            if not self._met:
                self._meet(None, error)
            raise
        if not self._met:
            self._meet(None)

    def _meet(self, share: Any, error: Exception | None = None) -> list[Any]:
        """Give the leader a share, or say that there is none. Raises the first failure of another process there."""
        self._met = True
        if self.world == 1:
            return [share]
        import torch.distributed as dist

        failure = None
        if error is not None and not isinstance(error, Stopped):
            failure = Failure.of(error, self.rank)
            self._mark("stop")
        told: list[Any] | None = [None] * self.world if self.leads else None
        with _or_lost():
            dist.gather_object((share, failure), told, dst=0, group=self._group)
        if told is None:
            return []
        if failure is None:  # else it is raised as it is
            for _, other in told:
                if other is not None:
                    raise other.error()
        return [share for share, _ in told]

    def _send(self, order: str, given: Any) -> None:
        self._said([(order, given)])

    def _hear(self) -> tuple[str, Any]:
        box: list[Any] = [None]
        self._said(box)
        return box[0]

    def _said(self, box: list[Any]) -> None:
        import torch.distributed as dist

        with _or_lost():
            dist.broadcast_object_list(box, src=0, group=self._group)
        self._orders += 1

    def _mark(self, what: str) -> None:
        """For all to see, until the next order."""
        with _or_lost():
            self._store.set(f"vtc/evaluation/{self._orders}/{what}", "")

    def _marked(self, what: str) -> bool:
        with _or_lost():
            return self._store.check([f"vtc/evaluation/{self._orders}/{what}"])

    @classmethod
    def joined(cls) -> Team:
        """The team of the processes that were started with this one; they talk on the CPU, whatever computes."""
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _get_default_store

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=WAIT)
        team = cls(dist.get_rank(), dist.get_world_size())
        team._group, team._store = dist.new_group(backend="gloo", timeout=WAIT), _get_default_store()
        atexit.register(team._leave)
        return team

    def _leave(self) -> None:
        """A helper of a run that failed ends after the leader: launchers kill all others when the first one ends, and
        the leader has to say why."""
        if self._failed:
            with contextlib.suppress(Lost):
                self._hear()


_TEAMS: list[Team] = []  # the one of this process, once it has joined: the jobs of a sweep share it


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """The processes that were launched together; a team of one where there was no launcher."""
    if launched() == 1:
        yield Team()
        return
    if not _TEAMS:
        _TEAMS.append(Team.joined())
    with _terminable():
        yield _TEAMS[0]


@contextlib.contextmanager
def _or_lost() -> Iterator[None]:
    """A broken connection is a process that is gone."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(LOST) from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, with which launchers end all processes where one failed, is an interruption, not a silent death."""

    def interrupted(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the leader warns of needs no saying twice."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# What every process does ---------------------------------------------------------------------------------------------


class Scorer:
    """A loaded model, and the tasks that it can be scored on.

    Args:
        settings: the resolved configuration; description: of the model, see `VtcModel`.
        say: called with what is being loaded.
        on_sample: see `VtcModel`.
    """

    def __init__(
        self,
        team: Team,
        settings: Mapping[str, Any],
        description: str,
        say: Callable[[str], None] | None = None,
        on_sample: Callable[[int], None] | None = None,
    ) -> None:
        from vtc.evaluation import harness
        from vtc.evaluation.run import assembled

        say = say or (lambda what: None)
        say("loading lmms-eval")
        self.manager = harness.task_manager(settings["benchmark"]["tasks"], settings["benchmark"].get("include") or ())
        from vtc.evaluation.model import FRAMES, VtcModel

        say("loading the model")
        self.backbone, self.method = assembled(placed(settings))
        frames = int(settings["backbone"].get("frames") or FRAMES)
        self.model = VtcModel(
            self.backbone, self.method, settings["batch_size"], description, frames, on_sample=on_sample, team=team
        )

    def score(self, task: str, *given: Any) -> TaskRun:
        """See `vtc.evaluation.harness.run_task`, for what is given beside the task too."""
        from vtc.evaluation import harness

        return harness.run_task(self.model, task, self.manager, *given)
