"""One run on the disk: what names it, where its files are, what of it is finished."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtc import profiling, results
from vtc.evaluation import scoring
from vtc.evaluation.sources import source_of
from vtc.evaluation.spec import TaskScores, TaskSpec
from vtc.folders import lock_of
from vtc.identity import COSTS, SCORES, digest
from vtc.job import Job
from vtc.registry import methods, parts

PARTIAL = "partial"  # tasks of a run that isn't finished, one file each


class RunFolder:
    """What a job will make, and where: no model is loaded here.

    Attributes:
        source: of its tasks; specs: the tasks.
        weights: hash of what the weights of backbone and method hold.
        id: names the run: of the same settings, weights, tasks and versions of what scores them the same.
        costs_id: names what its costs were measured of; another one than a finished run has says: measure again.
        folder: where its files go.
    """

    def __init__(self, job: Job) -> None:
        self.job = job.baseline() if job.is_baseline else job
        self.source = source_of(job.benchmark)
        self.specs: list[TaskSpec] = self.source.specs(job.seed)
        self.weights = results.hash_weights([self.job.backbone.source, self.job.weights])
        scores = {
            "settings": self.job.deciding(SCORES),
            "weights": self.weights,
            "tasks": [spec.identity for spec in self.specs],
            "scoring": scoring.VERSION,
        }
        costs = {"settings": self.job.deciding(COSTS), "weights": self.weights, "profiling": profiling.VERSION}
        self.id, self.costs_id = digest(scores)[:12], digest(costs)[:12]
        root = job.output_dir.expanduser().absolute()
        if job.is_baseline:
            self.folder = root / "baselines" / self.id
        else:
            budget = job.budget_in_words.replace("=", "") or "default"
            self.folder = root / f"{job.backbone.name}-{job.method.name}-{budget}-{self.id}"

    @property
    def label(self) -> str:
        """What it is called on the screen."""
        return "baseline" if self.job.is_baseline else self.job.label

    @property
    def path(self) -> Path:
        """Of its result file."""
        return self.folder / results.RESULT

    def discard(self) -> None:
        """Throw away what there is of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> bool:
        """Whether its result can be read."""
        try:
            results.load(self.path)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def lock(self) -> Any:
        """One process at a time makes a run: jobs of a sweep that start together share one baseline."""
        return lock_of(self.folder)

    # -- tasks that are done
    def _partial(self, task: str) -> Path:
        return self.folder / PARTIAL / f"{task}.json"

    def stored(self, task: str) -> TaskScores | None:
        """The task as an interrupted run left it."""
        try:
            return TaskScores.from_dict(json.loads(self._partial(task).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def open_specs(self) -> list[TaskSpec]:
        """The tasks that are not scored yet."""
        return [spec for spec in self.specs if self.stored(spec.name) is None]

    def store(self, scores: TaskScores) -> None:
        results.write_json(self._partial(scores.task), scores.to_dict())

    def write(self, result: dict[str, Any], tasks: list[TaskScores] | None = None) -> dict[str, Any]:
        """Write the result, its summary and, where they are new, its samples; what an interrupted run would need goes.

        Returns:
            the result as it is read.
        """
        from vtc.evaluation import display

        if tasks is not None:
            rows = [{"task": task.task, **asdict(sample)} for task in tasks for sample in task.samples]
            results.write_samples(self.folder, rows)
        results.write(self.folder, result)
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
        result = results.load(self.path)
        results.write_text(self.folder / results.SUMMARY, display.markdown(result))
        return result

    def code(self) -> str:
        """Hash of vtc's code and of the plug-ins that the run takes, for the record: it names nothing."""
        classes = [methods.get(part) for part in parts(self.job.method.name).values()]
        classes += [self.job.family, type(self.source)]
        files = {getattr(sys.modules.get(cls.__module__), "__file__", None) for cls in classes}
        package = Path(results.__file__).parent
        return results.hash_code(sorted(f for f in files if f and package not in Path(f).parents))[:12]
