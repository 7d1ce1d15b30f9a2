"""`benchmark=mteb`: tasks on pictures of mteb (Massive Text and Image Embedding Benchmarks, arXiv 2504.10471).

    python -m vtc benchmark=mteb 'benchmark.tasks=[Flickr30kT2IRetrieval,Winoground]' method=fwd2bot tokens=16

A name is a task's (`AROFlickrOrder`, `VidoreDocVQARetrieval`) or a benchmark's (`MIEB(lite)`, `ViDoRe(v1)`), which
stands for its tasks. mteb defines, loads and scores them; what it loads is on the hub, in its cache, or below
`benchmark.data` by the name that the hub has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from vtc.errors import UserError, unknown
from vtc.evaluation import preflight, suite
from vtc.evaluation.sources.base import TaskSource
from vtc.evaluation.spec import TaskSpec
from vtc.job import Job, launched

OTHERS = {"audio", "video"}
R_AT_1 = "hit_rate_at_1"
HEADLINES = dict.fromkeys(  # as the papers report them; of other tasks it is mteb's own
    ("Flickr30kT2IRetrieval", "Flickr30kI2TRetrieval", "MSCOCOT2IRetrieval", "MSCOCOI2TRetrieval"), R_AT_1
)


class MtebTasks(TaskSource):
    """Tasks of mteb that show pictures: a model answers with embeddings of pictures and of texts."""

    tasks = (*HEADLINES, "Winoground", "AROVisualAttribution", "AROVisualRelation", "AROCocoOrder", "AROFlickrOrder")
    scorer = "vtc.evaluation.embedding_tasks:EmbeddingScorer"
    apart = True

    def members(self, name: str) -> list[str]:
        return members_of(name)

    def spec(self, task: str, seed: int) -> TaskSpec:
        metadata = task_of(task).metadata
        about = suite.about(self.benchmark.about, task)
        name = str(metadata.dataset["path"])
        data = {
            "mteb": version("mteb"),
            "dataset": name,
            "revision": metadata.dataset.get("revision"),
            "files": self.mirrored(name),
            "headline": about.metric or HEADLINES.get(task, metadata.main_score),
        }
        return TaskSpec(
            task, group="discriminative", limit=self.benchmark.limit, seed=seed, mirror=self.benchmark.data,
            about=about, data=data,
        )  # fmt: skip

    def check(self, job: Job, tasks: Sequence[str], network: bool = True) -> None:
        benchmark = self.benchmark
        if launched() > 1:
            raise UserError(f"benchmark=mteb: is scored by one process, {launched()} were started")
        if benchmark.picture != "own":
            raise UserError(f"benchmark.picture={benchmark.picture}: benchmark=mteb shows each question its own")
        for task in tasks:
            metadata, metrics = task_of(task).metadata, metrics_of(task)
            wanted = suite.about(benchmark.about, task).metric
            if wanted is not None and metrics is not None and wanted not in (*metrics, metadata.main_score):
                raise unknown(f"benchmark.about.{task}.metric", wanted, metrics)
            if benchmark.limit is not None and metrics is None:
                raise UserError(
                    f"benchmark.limit={benchmark.limit}: {task} ({metadata.type}) is scored as a whole; leave it out"
                )
            preflight.check_data_set(task, str(metadata.dataset["path"]), benchmark.data, network)

    def location(self, task: str, look_up: Callable[[str], str]) -> str:
        folder = f"{self.benchmark.data}/" if self.benchmark.data else ""
        return look_up(folder + str(task_of(task).metadata.dataset["path"]))


def library() -> Any:
    """mteb, whose import takes some seconds.

    Raises:
        UserError: it isn't installed.
    """
    try:
        import mteb
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise UserError("benchmark=mteb: needs mteb; pip install 'vtc[retrieval]'") from None
    return mteb


def task_of(name: str) -> Any:
    """A new `mteb.AbsTask`."""
    return library().get_task(name)


def metrics_of(name: str) -> list[str] | None:
    """The metrics of a task that ranks documents for queries, or matches pictures and texts row by row; None of others,
    which are scored as a whole."""
    task, abstasks = task_of(name), library().abstasks
    from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification

    if isinstance(task, abstasks.AbsTaskRetrieval):
        return [f"{kind}_at_{k}" for kind in ("hit_rate", "ndcg", "recall", "map", "precision") for k in task.k_values]
    if isinstance(task, AbsTaskImageTextPairClassification):
        return ["accuracy", "text_acc", "image_acc"]
    return None


@cache
def members_of(name: str) -> list[str]:
    """The tasks that a name stands for: of a benchmark, of a task that puts others together, or the one.

    Raises:
        UserError: nobody has it, or it shows no pictures.
    """
    mteb = library()
    try:
        found = [mteb.get_task(name)]
    except KeyError:
        try:
            found = list(mteb.get_benchmark(name).tasks)
        except KeyError:
            pictured = [task.metadata.name for task in mteb.get_tasks(modalities=["image"])]
            raise unknown("benchmark.tasks", name, _near(name, pictured)) from None
    names = []
    for task in found:
        modalities = set(task.metadata.modalities)
        if "image" not in modalities or modalities & OTHERS:
            has = ", ".join(sorted(modalities))
            raise UserError(f"benchmark.tasks={name}: {task.metadata.name} is about {has}; allowed: pictures and texts")
        parts = getattr(task.metadata, "tasks", None)
        names += [part.metadata.name for part in parts] if parts else [task.metadata.name]
    return names


def _near(name: str, names: Sequence[str]) -> list[str]:
    """Those that an error lists: all 130 would fill the screen."""
    import difflib

    return difflib.get_close_matches(name, [*names, "MIEB(lite)", "MIEB(eng)", "ViDoRe(v1)", "ViDoRe(v2)"], 5, 0.3)
