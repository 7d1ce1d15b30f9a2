"""Several processes do one piece of work: the first one leads, the others help.

`accelerate launch` and `torchrun` start them. The leader gives orders by name; all of them do what each order stands
for, and meet once before it is done. What the orders are, whoever brings them knows (`vtc.evaluation.scorer`).
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from vtc.errors import UserError
from vtc.job import launched

T = TypeVar("T")
WAIT = timedelta(days=30)  # for each other: test sets are drawn, another job makes the baseline, costs are measured
POLL = 0.05  # seconds between two looks at whether the leader has its data
END = "end"
LOST = "another process of this run is gone; finished tasks are kept, the same command goes on with the rest"


class Delivered(BaseException):
    """A helper's share of an order is with the leader. No error, and nothing that catches errors may catch it."""


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
        error = (UserError if self.mistake else RuntimeError)(f"process {self.rank}: {self.line}")
        if not self.mistake:
            error.__cause__ = RuntimeError(f"there:\n{self.trace}")
        return error


class Crew:
    """The processes of a run, as one of them sees them. Alone it costs nothing and changes nothing.

    One that fails stops the others before their next batch, and the leader raises its error.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._orders = 0  # how many there were so far: the keys in the store are named by it
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
                self._order(END, Failure.of(error, self.rank))
            raise
        self._order(END, value)
        return value

    @contextlib.contextmanager
    def doing(self, order: str, *arguments: Any) -> Iterator[None]:
        """Around what the leader does itself of an order that it gives.

        Args:
            order: a name that the helpers know (see `serve`).
            arguments: of the function that they call.

        Raises:
            UserError, RuntimeError: a helper failed, or is gone.
        """
        if self.world > 1:
            self._order(order, arguments)
        with self._part():
            yield

    # -- the helpers
    def serve(self, orders: Mapping[str, Callable[..., Any]]) -> Any:
        """Do what the leader orders, in silence, until it is done; returns what it returned.

        Args:
            orders: name → what to call with the order's arguments.

        Raises:
            UserError: the leader failed, which says why by itself.
        """
        with _silent():
            while True:
                order, content = self._order()
                if order == END:
                    if isinstance(content, Failure):
                        self._failed = True
                        raise UserError(content.line)
                    return content
                try:
                    with self._part():
                        orders[order](*content)
                except Lost:
                    raise
                except Exception:  # the leader knows, and will say what becomes of the run
                    continue

    # -- all of them
    def owns(self, batch: int) -> bool:
        """Whether this process is to answer a batch."""
        return batch % self.world == self.rank

    def agreed(self, number: int) -> int:
        """The leader's number, of those that each process has found for itself: once an order."""
        if self.world == 1:
            return number
        if self.leads:
            self._mark("number", str(number))
            return number
        while not self._marked("number"):
            if self._marked("stop"):
                raise Stopped
            time.sleep(POLL)
        with _or_lost():
            return int(self._store.get(self._key("number")))

    def mine(self, batch: int) -> bool:
        """Whether this process answers a batch.

        Raises:
            Stopped: another process failed.
        """
        if self.world > 1 and self._marked("stop"):
            raise Stopped
        return self.owns(batch)

    def collect(self, share: T) -> list[T]:
        """Every process's share, by rank, for the leader; a helper's order ends here.

        Raises:
            Delivered: on a helper.
            UserError, RuntimeError: another process failed, or is gone.
        """
        shares = self._meet(share)
        if not self.leads:
            raise Delivered
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
    def _part(self) -> Iterator[None]:
        """This process's part of an order: whatever comes of it, the processes meet once."""
        self._met = False
        try:
            yield
        except Delivered:
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
        shares: list[Any] | None = [None] * self.world if self.leads else None
        with _or_lost():
            dist.gather_object((share, failure), shares, dst=0, group=self._group)
        if shares is None:
            return []
        if failure is None:  # else it is raised as it is
            for _, other in shares:
                if other is not None:
                    raise other.error()
        return [share for share, _ in shares]

    def _order(self, name: str = "", content: Any = None) -> tuple[str, Any]:
        """The leader's next order, which helpers hear here."""
        import torch.distributed as dist

        box = [(name, content)]
        with _or_lost():
            dist.broadcast_object_list(box, src=0, group=self._group)
        self._orders += 1
        return box[0]

    def _key(self, what: str) -> str:
        return f"vtc/crew/{self._orders}/{what}"

    def _mark(self, what: str, words: str = "") -> None:
        """For all to see, until the next order."""
        with _or_lost():
            self._store.set(self._key(what), words)

    def _marked(self, what: str) -> bool:
        with _or_lost():
            return self._store.check([self._key(what)])

    @classmethod
    def join(cls) -> Crew:
        """The crew of the processes that were started with this one; they talk on the CPU, whatever computes."""
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _get_default_store

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=WAIT)
        crew = cls(dist.get_rank(), dist.get_world_size())
        crew._group, crew._store = dist.new_group(backend="gloo", timeout=WAIT), _get_default_store()
        atexit.register(crew._leave)
        return crew

    def _leave(self) -> None:
        """A helper of a run that failed ends after the leader: launchers kill all others when the first one ends, and
        the leader has to say why."""
        if self._failed:
            with contextlib.suppress(Lost):
                self._order()


_CREWS: list[Crew] = []  # the one of this process, once it has joined: the jobs of a sweep share it


@contextlib.contextmanager
def launched_crew() -> Iterator[Crew]:
    """The processes that were launched together; a crew of one where there was no launcher."""
    if launched() == 1:
        yield Crew()
        return
    if not _CREWS:
        _CREWS.append(Crew.join())
    with _terminable():
        yield _CREWS[0]


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
        raise KeyboardInterrupt("SIGTERM")

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
