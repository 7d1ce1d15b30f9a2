"""One run on the disk: what names it, where its files are, what of it is finished."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtc import profiling, results
from vtc.evaluation import scoring
from vtc.evaluation.sources import source_of
from vtc.evaluation.spec import TaskScores, TaskSpec
from vtc.folders import lock_of
from vtc.identity import COSTS, SCORES, digest
from vtc.job import COST_LEVELS, Job
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
        damage: why a result that is there isn't believed, in words; empty where it is, or where there is none.
    """

    damage = ""

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
        self.id, self.costs_id = digest(scores)[:12], self.costs_id_of(self.job.costs)
        root = job.output_dir.expanduser().absolute()
        if job.is_baseline:
            self.folder = root / "baselines" / self.id
        else:
            budget = job.budget_in_words.replace("=", "").replace(" ", "-") or "default"
            self.folder = root / f"{job.backbone.name}-{job.method.name}-{budget}-{self.id}"

    def costs_id_of(self, level: str) -> str:
        """Names the measurement of the costs at a level of `vtc.job.COST_LEVELS`."""
        settings = dataclasses.replace(self.job, costs=level).deciding(COSTS)
        return digest({"settings": settings, "weights": self.weights, "profiling": profiling.VERSION})[:12]

    def costs_hold(self, result: Mapping[str, Any]) -> bool:
        """Whether a result's costs are those that are asked for, or more than those."""
        enough = COST_LEVELS[COST_LEVELS.index(self.job.costs) :]
        return result["run"].get("costs_id") in map(self.costs_id_of, enough)

    @property
    def label(self) -> str:
        """What it is called on the screen."""
        return "baseline" if self.job.is_baseline else self.job.label

    @property
    def path(self) -> Path:
        """Of its result file."""
        return self.folder / results.RESULT

    def finished(self) -> bool:
        """Whether its result is there, as the run left it."""
        self.damage = ""
        try:
            results.check_intact(self.folder, self.id)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            self.damage = str(error)
            return False
        return True

    def lock(self) -> Any:
        """One process at a time makes a run: jobs of a sweep that start together share one baseline."""
        return lock_of(self.folder)

    # -- tasks that are done
    def partial(self, task: str) -> Path:
        """The file of a task that is done, until the run is."""
        return self.folder / PARTIAL / f"{task}.json"

    def stored(self, task: str) -> TaskScores | None:
        """The task as an interrupted run left it; None where it didn't, or where the file isn't as it was written."""
        try:
            content = json.loads(self.partial(task).read_text(encoding="utf-8"))
            if content["run"] != self.id or content["digest"] != results.digest_of(content):
                return None
            return TaskScores.from_dict(content["scores"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def discard(self) -> None:
        """Throw away the tasks that an interrupted run left. A result stays until a new one takes its place."""
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)

    def open_specs(self) -> list[TaskSpec]:
        """The tasks that are not scored yet."""
        return [spec for spec in self.specs if self.stored(spec.name) is None]

    def store(self, scores: TaskScores) -> None:
        content = {"run": self.id, "scores": scores.to_dict()}
        results.write_json(self.partial(scores.task), {**content, "digest": results.digest_of(content)}, indent=None)

    def write(self, result: dict[str, Any], tasks: list[TaskScores] | None = None) -> dict[str, Any]:
        """Write the result and, where they are new, its samples; returns what `read` does.

        Where a process is killed in here the tasks that are kept make the rest, without a model.
        """
        if tasks is not None:
            rows = [{"task": task.task, **vars(sample)} for task in tasks for sample in task.samples]
            result["run"]["samples"] = results.hash_file(results.write_samples(self.folder, rows))
        (self.folder / results.SUMMARY).unlink(missing_ok=True)
        results.write(self.folder, result)
        return self.read()

    def read(self) -> dict[str, Any]:
        """The result of a finished run. What a process that was killed left undone is done: the summary is written,
        and what it would have needed to go on goes."""
        from vtc.evaluation import display

        result, summary = results.load(self.path), self.folder / results.SUMMARY
        if not summary.is_file():
            results.write_text(summary, display.markdown(result))
        self.discard()
        for half in self.folder.glob(".*.part"):
            half.unlink(missing_ok=True)
        return result

    def code(self) -> str:
        """Hash of vtc's code and of the plug-ins that the run takes, for the record: it names nothing."""
        classes = [methods.get(part) for part in parts(self.job.method.name).values()]
        classes += [self.job.family, type(self.source)]
        files = {getattr(sys.modules.get(cls.__module__), "__file__", None) for cls in classes}
        package = Path(results.__file__).parent
        return results.hash_code(sorted(f for f in files if f and package not in Path(f).parents))[:12]
