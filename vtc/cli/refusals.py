"""What `Job.check` refuses by arithmetic alone, said before torch is imported, which takes seconds.

A budget, an option, a layer, a property that a backbone lacks, weights that there are not: what decides about them is
in the classes of methods and families, none of which makes a tensor until it is built. So they are asked in a process
that is forked off, where packages with tensors are stand-ins: names that can be inherited from, called and annotated
with, and that give up as soon as something would be decided by them. What the child can't say, the real check says
later.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from vtc.errors import UserError
from vtc.job import Job
from vtc.registry import families, methods, parts

HEAVY = ("numpy", "peft", "safetensors", "torch", "transformers")


class _Undecided(BaseException):
    """Something depends on what a stand-in stands for. No `Exception`, so that nobody takes it for another failure."""


def _undecided(*_: Any) -> NoReturn:
    raise _Undecided


class _Absent(type):
    """The kind of every stand-in: a class, for the classes below `nn.Module`."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        if cls.__module__ != __name__:
            return super().__call__(*arguments, **named)  # a class of vtc's below a stand-in
        decorated = arguments[0] if len(arguments) == 1 and not named and callable(arguments[0]) else None
        return decorated or _stand_in(cls.__name__)

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __eq__(cls, other: object) -> bool:
        return cls is other or _undecided()

    __hash__ = type.__hash__
    __bool__ = __len__ = __iter__ = __contains__ = __int__ = __float__ = __index__ = _undecided
    __lt__ = __le__ = __gt__ = __ge__ = _undecided
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _undecided


def _stand_in(name: str) -> _Absent:
    return _Absent(name, (), {"__module__": __name__, "__init__": lambda self, *_, **__: None})


class _Module(ModuleType):
    """A module of which every name is a stand-in."""

    __path__: MutableSequence[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for the heavy packages and all that is in them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def can_tell(job: Job) -> bool:
    """Whether a child knows it, and sooner: torch isn't imported yet, all classes are vtc's own, sizes are at hand."""
    own = all(methods.path(name) for name in parts(job.method.name).values()) and families.path(job.backbone.family)
    sized = job.backbone.is_released and job.backbone.sizes is not None
    sized = sized or Path(job.backbone.source, "config.json").is_file()
    return bool(own and sized) and "torch" not in sys.modules and hasattr(os, "fork") and threading.active_count() == 1


def refusal(job: Job, trained: bool) -> str | None:
    """Why `job.check` is bound to refuse a job, in its words; None where that takes torch to say.

    Args:
        trained: whether trained weights are needed.
    """
    if not can_tell(job):
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with _silence():
                os.write(sending, _reason(job, trained).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as told:
        words = told.read().decode()
    os.waitpid(child, 0)
    return words or None


def check(job: Job, trained: bool = True) -> None:
    """Refuses a job as `Job.check` does, as far as that can be said at once.

    Raises:
        UserError: as `Job.compressor` and `Job.weights`.
    """
    if words := refusal(job, trained):
        raise UserError(words)


def _reason(job: Job, trained: bool) -> str:
    """The refusal, in a process of its own: what is imported here is of no use for anything else."""
    sys.meta_path.insert(0, _Finder())
    try:
        if (lacking := job.compressor.lacking()) and not job.has_random_weights:
            return lacking
        if trained:
            job.weights  # noqa: B018
    except UserError as error:
        return str(error)
    except (Exception, _Undecided):
        pass
    return ""


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    yield
