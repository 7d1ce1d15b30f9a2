"""What a run asks of the source of its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vtc.errors import UserError
from vtc.evaluation import catalogue, suite
from vtc.evaluation.spec import UNDERSTANDING, TaskSpec
from vtc.job import Job
from vtc.registry import imported, sources
from vtc.settings import BenchmarkSettings

UPSTREAM = "vtc.evaluation.sources.upstream:UpstreamTasks"  # the source of benchmarks that bear no source's name


@dataclasses.dataclass(frozen=True)
class Document:
    """A question as a person sees it: its text, and its pictures as `vtc.data.pictures.open_picture` takes them."""

    question: str = ""
    pictures: Sequence[Any] = ()


class TaskSource:
    """The tasks of a benchmark: what each is, what it needs, where its data are.

    A class states `spec`, and whatever else it knows better than this one.

    Args:
        benchmark: the settings of the benchmark.

    Attributes:
        tasks: of a plug-in's benchmark where the user names none; empty: one, called as the benchmark is.
        preparation: what is done before the first task is scored and takes a while; None: nothing.
        scorer: import path of what loads the model and scores the tasks, as `vtc.evaluation.scorer.Scorer` does.
        apart: whether the tasks that a name stands for are scored one by one, each with a row of its own.
    """

    tasks: ClassVar[tuple[str, ...]] = ()
    preparation: ClassVar[str | None] = None
    scorer: ClassVar[str] = "vtc.evaluation.scorer:Scorer"
    apart: ClassVar[bool] = False

    def __init__(self, benchmark: BenchmarkSettings) -> None:
        self.benchmark = benchmark

    def spec(self, task: str, seed: int) -> TaskSpec:
        """What a task is. Data need not be there yet, but what of them decides a score must be known.

        Raises:
            UserError: there is no such task, or its data can't be what they have to be.
        """
        raise NotImplementedError

    def specs(self, seed: int) -> list[TaskSpec]:
        """All tasks of the benchmark.

        Raises:
            UserError: as `spec`; a task that would count twice, by its own name or in two groups.
        """
        names: dict[str, str] = {}
        for name in self.benchmark.tasks:
            for task in self.members(name):
                if names.setdefault(task, name) != name or self.benchmark.tasks.count(name) > 1:
                    also = f"{task} is in {names[task]} too" if names[task] != name else "named twice"
                    raise UserError(f"benchmark.tasks={name}: {also}, and would count twice")
        return [self.spec(name, seed) for name in (names if self.apart else self.benchmark.tasks)]

    def members(self, name: str) -> list[str]:
        """The tasks that a name stands for."""
        return [name]

    def check(self, job: Job, tasks: Sequence[str], network: bool = True) -> None:
        """Refuses what these tasks lack, before lmms-eval is imported or a model is loaded.

        Args:
            network: whether to ask the hub for what is not here.

        Raises:
            UserError: the first thing that is missing.
        """

    def samples(self, task: str) -> int | None:
        """How many samples of a task are scored; None where lmms-eval must be asked. It may draw or read data."""
        return None

    def location(self, task: str, look_up: Callable[[str], str]) -> str:
        """Where a task's data come from, in words.

        Args:
            look_up: what the hub says of a data set, or that a folder is here.
        """
        raise NotImplementedError

    def documents(self, task: str) -> Mapping[str, Document]:
        """The questions of a task by their ids, to look at behind a run; empty where they aren't at hand without
        lmms-eval or the network. It may read or draw data.

        Raises:
            UserError, OSError, ValueError: they can't be read.
        """
        return {}

    # -- for those who write a source
    @property
    def kwargs(self) -> dict[str, Any]:
        """What lmms-eval hands to a task's `download`, with which `source_from` makes this source again."""
        return {"source": self.benchmark.name, "benchmark": dataclasses.asdict(self.benchmark)}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Task or group → the file that defines it."""
        return catalogue.files(self.benchmark.include)

    def shipped_spec(self, task: str, definition: str, seed: int, data: Mapping[str, Any], **rest: Any) -> TaskSpec:
        """A spec of a task that a shipped file defines.

        Args:
            definition: the name that the file gives.
            data: what of the task's data decides a score; the file's content is added to it.
        """
        content = catalogue.settings(self.files[definition])
        data = {"definition": content, **data}
        return self._spec(task, seed, [content], definition=definition, data=data, **rest)

    def mirrored(self, name: str | None) -> list[tuple[str, int]] | None:
        """Names and sizes of the files that a mirror has of a data set: those of another revision are others. None for
        a data set of the hub, which counts by its name and configuration."""
        if not self.benchmark.data or not name:
            return None
        folder = Path(self.benchmark.data).expanduser() / name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]

    def _spec(self, task: str, seed: int, contents: Iterable[Mapping[str, Any]], **rest: Any) -> TaskSpec:
        groups = {catalogue.metadata(content).get("group", UNDERSTANDING) for content in contents}
        group = groups.pop() if len(groups) == 1 else UNDERSTANDING
        about = suite.about(self.benchmark.about, task)
        return TaskSpec(task, group=group, limit=self.benchmark.limit, seed=seed, about=about, **rest)


def source_of(benchmark: BenchmarkSettings) -> TaskSource:
    """The source of a benchmark: the one that bears its name, else lmms-eval's tasks."""
    cls = sources.get(benchmark.name) if benchmark.name in sources.names() else imported(UPSTREAM)
    return cls(benchmark)


def source_from(kwargs: Mapping[str, Any]) -> TaskSource:
    """The source whose task has these `dataset_kwargs` (see `TaskSource.kwargs`)."""
    return sources.get(kwargs["source"])(BenchmarkSettings(**kwargs["benchmark"]))
