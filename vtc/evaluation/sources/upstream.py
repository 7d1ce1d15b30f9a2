"""The tasks of lmms-eval, those of the shipped suites, and files like theirs in folders of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vtc.errors import UserError, unknown
from vtc.evaluation import catalogue, harness, preflight, suite
from vtc.evaluation.sources.base import TaskSource
from vtc.evaluation.spec import TaskSpec
from vtc.job import Job


class UpstreamTasks(TaskSource):
    """Tasks that a YAML file defines; their data are on the hub, in its cache, or in a folder that mirrors it."""

    def names(self, tasks: Iterable[str]) -> dict[str, list[str]]:
        """Task or group → the tasks that it is.

        Raises:
            UserError: a name that nobody has. lmms-eval is asked where its files don't say.
        """
        inside = {name: catalogue.members(name, self.files) for name in tasks}
        for name in [n for n, members in inside.items() if not members]:
            everything = harness.every_task(self.benchmark.include)
            if name not in everything:
                raise unknown("benchmark.tasks", name, catalogue.near(name, [*everything, *self.files]))
            inside[name] = [name]
        return inside

    def members(self, name: str) -> list[str]:
        return self.names([name])[name]

    def spec(self, task: str, seed: int) -> TaskSpec:
        contents = {member: self._content(member) for member in self.members(task)}
        data = {
            name: {"definition": content, "files": self.mirrored(content.get("dataset_path"))}
            for name, content in contents.items()
        }
        return self._spec(task, seed, contents.values(), mirror=self.benchmark.data, data=data)

    def check(self, job: Job, tasks: Sequence[str], network: bool = True) -> None:
        members = [member for inside in self.names(tasks).values() for member in inside]
        entries = {member: suite.about(self.benchmark.about, member) for member in members}
        preflight.check(preflight.Needs(job, entries, {task: self._content(task) for task in members}), network)

    def location(self, task: str, look_up: Callable[[str], str]) -> str:
        folder = f"{self.benchmark.data}/" if self.benchmark.data else ""
        names: dict[str, None] = {}
        for member in self.members(task):
            if member not in self.files:
                raise UserError(f"benchmark.tasks={member}: its data can't be told")
            names[str(self._content(member)["dataset_path"])] = None
        return ", ".join(look_up(folder + name) for name in names)

    def _content(self, task: str) -> dict[str, Any]:
        return catalogue.settings(self.files[task]) if task in self.files else {}
