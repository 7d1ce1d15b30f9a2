"""The tasks of lmms-eval, those of the shipped suites, and files like theirs in folders of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
            name: {"definition": content, "files": self.mirrored(content.get("dataset_path")), **self._videos(content)}
            for name, content in contents.items()
        }
        return self._spec(task, seed, contents.values(), mirror=self.benchmark.data, data=data)

    def check(self, job: Job, tasks: Sequence[str], network: bool = True) -> None:
        entries, contents = {}, {}
        for name, inside in self.names(tasks).items():
            # A group that a suite speaks of is one thing, whose tasks differ in nothing that is looked at here.
            whole = suite.about(self.benchmark.about, name).data is not None
            for task in [name] if whole else inside:
                entries[task] = suite.about(self.benchmark.about, task)
                contents[task] = self._content(inside[0] if whole else task)
        preflight.check(preflight.Needs(job, entries, contents), network)

    def location(self, task: str, look_up: Callable[[str], str]) -> str:
        folder = f"{self.benchmark.data}/" if self.benchmark.data else ""
        names: dict[str, None] = {}
        for member in self.members(task):
            if member not in self.files:
                raise UserError(f"benchmark.tasks={member}: its data can't be told")
            names[str(self._content(member)["dataset_path"])] = None
        return ", ".join(look_up(folder + name) for name in names)

    def _videos(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The videos of a mirror, where the task has some: they are in a folder beside its data set."""
        folder = preflight.video_folder(content)
        return {"videos": self.mirrored(folder)} if folder and self.benchmark.data else {}

    def _content(self, task: str) -> dict[str, Any]:
        return catalogue.settings(self.files[task]) if task in self.files else {}
