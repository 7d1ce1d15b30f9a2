"""What the runs of one process share: lmms-eval's index of tasks, and the backbone, loaded once.

A run is lent the backbone as it was loaded, puts its method's weights and adapters into it, and gives it back; what it
put there is taken out again. A backbone that isn't then as it was before is let go, and the next run loads one anew:
so no run can tell whether another one was before it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vtc import results
from vtc.evaluation import harness
from vtc.job import Job

if TYPE_CHECKING:
    from torch import Tensor

    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor


class Loaded:
    """Holds one backbone at most, between the runs that it is lent to."""

    def __init__(self) -> None:
        self._managers: dict[tuple[Any, ...], Any] = {}
        self._backbone: Backbone | None = None
        self._of: Any = None  # what it was loaded from
        self.loads = 0

    def task_manager(self, tasks: Sequence[str], include: Sequence[str]) -> Any:
        """See `harness.task_manager`."""
        key = tuple(tasks), tuple(map(str, include))
        if key not in self._managers:
            self._managers[key] = harness.task_manager(tasks, include)
        return self._managers[key]

    @contextlib.contextmanager
    def lent(self, job: Job) -> Iterator[tuple[Backbone, Compressor]]:
        """The backbone of a job, and its method with trained weights in both, for as long as the block lasts.

        Args:
            job: its device is this process's own.

        Raises:
            UserError: as `Job.load`.
        """
        job.check()
        plain = self._taken(job)
        before = _State(plain.model, _replaced_by(job))
        backbone = copy.copy(plain)  # what is kept with the object, compiled steps say, is the run's own
        try:
            yield backbone, job.fit(backbone)
        finally:
            if before.restored():
                self._backbone = plain
            else:
                self.clear()

    def clear(self) -> None:
        """Lets the backbone go."""
        self._backbone = self._of = None

    def _taken(self, job: Job) -> Backbone:
        """The backbone that is here, where it is the job's, else a new one; nobody else has it meanwhile."""
        of = (job.backbone, job.has_random_weights, results.hash_weights([job.backbone.source]))
        backbone = self._backbone if of == self._of else None
        self.clear()
        if backbone is None:
            with without_bars():
                backbone = job.load_backbone()
            self.loads += 1
        self._of = of
        return backbone


_OPEN: list[Loaded] = []


@contextlib.contextmanager
def sharing() -> Iterator[Loaded]:
    """What runs share, from here until the outermost of these blocks ends."""
    if _OPEN:
        yield _OPEN[-1]
        return
    _OPEN.append(Loaded())
    try:
        yield _OPEN[-1]
    finally:
        _OPEN.pop().clear()


def let_go() -> None:
    """Frees the memory of what is kept for runs to come."""
    for kept in _OPEN:
        kept.clear()


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without the bar that transformers draws over ours."""
    from transformers.utils import logging as transformers_logging

    visible = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if visible:
            transformers_logging.enable_progress_bar()


def _replaced_by(job: Job) -> list[str]:
    """Names of the backbone's parameters that a job's trained weights take the place of."""
    if job.weights is None:
        return []
    from vtc import checkpoint

    start = "backbone."
    return [name.removeprefix(start) for name in checkpoint.names_in(job.weights) if name.startswith(start)]


MOST = 2 * 2**30  # bytes of weights that are set aside for a run that has others in their places


class _State:
    """A model as it is now: its modules with all that hangs on them, its weights, and a copy of those that a run is
    about to replace.

    Args:
        names: of these, where the model has them.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model, self.now = model, _content(model)
        parameters = dict(model.named_parameters())
        replaced = {name: parameters[name] for name in names if name in parameters}
        size = sum(p.numel() * p.element_size() for p in replaced.values())
        few = size <= MOST
        self.aside: dict[str, Tensor] = {n: p.detach().to("cpu", copy=True) for n, p in replaced.items()} if few else {}

    def restored(self) -> bool:
        """Whether the model is as it was, once adapters are gone and what was set aside is back in its place."""
        import torch

        from vtc.backbones import adapters

        adapters.remove(self.model)
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.aside.items():
                if name in parameters:
                    parameters[name].copy_(tensor)
        for name, (_, _, learns) in self.now.weights.items():
            if name in parameters:
                parameters[name].requires_grad_(learns)
        return self.now.same(_content(self.model), but=self.aside)


class _Content:
    """What a model is made of, to be compared with what it is made of later.

    Attributes:
        modules: path → the module, the names of what it holds, how many hooks it has.
        weights: name → the parameter or buffer, how often it was written to, whether it learns.
    """

    def __init__(self, modules: dict[str, tuple[Any, ...]], weights: dict[str, tuple[Any, int, bool]]) -> None:
        self.modules, self.weights = modules, weights

    def same(self, other: _Content, but: Container[str]) -> bool:
        """Whether nothing is another one, or was written to, `but` what was given back."""
        if self.modules.keys() != other.modules.keys() or self.weights.keys() != other.weights.keys():
            return False
        for path, (module, held, hooks) in self.modules.items():
            now, *rest = other.modules[path]
            if now is not module or rest != [held, hooks]:
                return False
        for name, (tensor, writes, _) in self.weights.items():
            now, later, _ = other.weights[name]
            if now is not tensor or (later != writes and name not in but):
                return False
        return True


CAPTURING = "_output_capturing_hooks_installed"  # transformers puts hooks of its own there at the first call, for good


def _content(model: Any) -> _Content:
    def hooks(module: Any) -> int:
        every = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        return sum("output_capturing" not in getattr(hook, "__module__", "") for hook in every)

    modules = {
        path: (module, frozenset(vars(module)) - {CAPTURING}, hooks(module)) for path, module in model.named_modules()
    }
    weights = [*model.named_parameters(), *model.named_buffers()]
    return _Content(modules, {name: (tensor, tensor._version, tensor.requires_grad) for name, tensor in weights})
