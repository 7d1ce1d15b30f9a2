"""One task through lmms-eval, quietly, and what came of it sample by sample."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vtc import statistics
from vtc.errors import UserError, unknown
from vtc.evaluation import catalogue, requires, scoring
from vtc.evaluation.suite import About

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from vtc.evaluation.model import VtcModel

log = logging.getLogger(__name__)


@dataclass
class Sample:
    """One scored sample; `score` is None where the sample is bad, or where its task has no score a sample."""

    id: str
    prediction: str
    target: str
    score: float | None
    stratum: str = ""
    tokens_in: float | None = None
    tokens_kept: float | None = None
    error: str | None = None


@dataclass
class TaskRun:
    """What a model did on one task.

    Attributes:
        group: `understanding` (generated answers) or `discriminative` (embeddings compared).
        metric: the headline metric; `value` is it, None where no sample could be scored.
        metrics: every metric as lmms-eval aggregated it, without bad samples.
        floors: `blind` (no image seen) and `bag` (which attributes are there, not which belong together), where known.
        bad: `{id, error}` of the samples that could not be answered.
        layers: visual tokens in each decoder layer, mean over samples; empty where not reported.
        scale: `value` is divided by it in averages.
        unjudged: samples on which a judge gave no verdict; upstream's tasks count them as wrong.
    """

    task: str
    group: str
    metric: str
    value: float | None
    metrics: dict[str, float]
    floors: dict[str, float | None]
    samples: list[Sample]
    bad: list[dict[str, str]]
    layers: list[float] = field(default_factory=list)
    version: str = ""
    scale: float = 1.0
    unjudged: int = 0

    @property
    def scored(self) -> list[Sample]:
        return [s for s in self.samples if s.score is not None]

    @property
    def n(self) -> int:
        """Samples that count in the score."""
        return len(self.samples) - len(self.bad)

    def stderr(self) -> float | None:
        scored = self.scored
        return statistics.stderr([s.score for s in scored], [s.stratum for s in scored]) if scored else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> TaskRun:
        return cls(**{**stored, "samples": [Sample(**s) for s in stored["samples"]]})


# Quiet ---------------------------------------------------------------------------------------------------------------


def quiet_logging() -> None:
    """Undo what importing lmms_eval.models does to loguru (all handlers removed, one to stdout added): warnings go to
    Python's logging, the rest nowhere. Call it after the import."""
    from loguru import logger

    def forward(message: Any) -> None:
        record = message.record
        logging.getLogger(record["name"] or "lmms_eval").log(record["level"].no, record["message"])

    logger.remove()
    logger.add(forward, level="ERROR", format="{message}")


def import_harness() -> None:
    """Import lmms-eval (8 s the first time) without what it does to warnings and logging."""
    from huggingface_hub import constants

    os.environ.setdefault("HF_HOME", constants.HF_HOME)  # tasks with videos read it when they are imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lmms_eval.evaluator
        import lmms_eval.models
        import lmms_eval.tasks  # noqa: F401
    quiet_logging()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars but ours: lmms-eval draws several a task."""
    import datasets
    import lmms_eval.api.task
    import lmms_eval.evaluator

    def silent(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "disable": True})

    original = lmms_eval.evaluator.tqdm
    bars = not datasets.are_progress_bars_disabled()
    modules = (lmms_eval.evaluator, lmms_eval.api.task)
    datasets.disable_progress_bars()
    try:
        for module in modules:
            module.tqdm = silent
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module in modules:
            module.tqdm = original
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _inside(folder: str | Path | None) -> Iterator[None]:
    """Run in `folder`: a mirror of the hub there is found by the tasks' own names."""
    if folder is None:
        yield
        return
    before = os.getcwd()
    os.chdir(Path(folder).expanduser())
    try:
        yield
    finally:
        os.chdir(before)


# Tasks ---------------------------------------------------------------------------------------------------------------


def shipped_tasks() -> Path:
    from vtc import shipped

    return shipped.path("benchmarks/tasks")


def task_manager(tasks: Sequence[str], include: Sequence[str | Path] = ()) -> TaskManager:
    """An index of the shipped tasks, those in `include`, and the folders of lmms-eval's that are asked for; of all its
    1,985 (6 s) only for groups, and for what its files don't name.

    Raises:
        UserError: a task that nobody has.
    """
    import_harness()
    from lmms_eval.tasks import TaskManager

    known = catalogue.files(include)
    folders = {str(known[task].parent) for task in tasks if catalogue.members(task, known) == [task]}
    paths = [str(shipped_tasks()), *(str(Path(p).expanduser()) for p in include), *sorted(folders)]
    manager = TaskManager(include_path=paths, include_defaults=False, model_name="vtc")
    if any(t not in manager.all_tasks for t in tasks):
        manager = TaskManager(include_path=paths, include_defaults=True, model_name="vtc")
    for task in tasks:
        if task not in manager.all_tasks:
            raise unknown("benchmark.tasks", task, requires.near(task, manager.all_tasks))
    return manager


def every_task(include: Sequence[str | Path] = ()) -> list[str]:
    """The names of all tasks and groups, as lmms-eval finds them."""
    import_harness()
    from lmms_eval.tasks import TaskManager

    return list(TaskManager(include_path=[str(shipped_tasks()), *map(str, include)], model_name="vtc").all_tasks)


def run_task(
    model: VtcModel,
    task: str,
    manager: TaskManager,
    limit: int | None = None,
    data: str | Path | None = None,
    mirror: str | Path | None = None,
    seed: int = 0,
    own: Mapping[str, Any] | None = None,
    about: About | None = None,
) -> TaskRun:
    """Score `model` on one task.

    Args:
        limit: samples; None: all.
        data: for a pocket task, the folder of its parquet file.
        mirror: for a task of lmms-eval, a folder that mirrors the hub.
        own: for a task over the user's own data, the `benchmark` section of the configuration.
        about: what its suite says of it.

    Raises:
        UserError: its data can't be loaded.
    """
    from lmms_eval.evaluator import simple_evaluate

    spec: Any = task
    if task.startswith("pocket_") and task != "pocket":
        from vtc.evaluation.data import path

        spec = {"task": task, "dataset_kwargs": {"data_files": {"test": str(path(task, data))}}}
    elif own is not None:
        spec = {"task": task, "dataset_kwargs": dict(own)}
    about = about or About()
    model.bad, model.kept, model.together = [], {}, about.together
    # The task's own number of new tokens stands; this is for those that set none.
    longest = f"max_new_tokens={about.max_new_tokens}" if about.max_new_tokens else None
    with quiet(), model.team.unseen(), tempfile.TemporaryDirectory(prefix="vtc-") as scratch, _inside(mirror):
        try:
            results = simple_evaluate(
                model=model,
                tasks=[spec],
                task_manager=manager,
                batch_size=model.batch_size,
                limit=limit,
                gen_kwargs=longest,  # type: ignore[arg-type]  # None is its default
                bootstrap_iters=0,
                log_samples=True,
                # Submission files of some tasks would land in the user's folder; images aren't needed for scoring.
                cli_args=SimpleNamespace(process_with_media=False, output_path=scratch),
                process_docs_parallel=1,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except Exception as error:
            cause = _cause(error)
            if cause is error or isinstance(cause, UserError):
                raise cause from None if cause is not error else error
            raise UserError(f"benchmark.tasks={task}: lmms-eval stopped ({type(cause).__name__}: {cause})") from error
    return _read(task, results, model, about)


def _cause(error: Any) -> BaseException:
    """What is behind tenacity's RetryError, which hides it."""
    while getattr(error, "last_attempt", None) is not None:
        error = error.last_attempt.exception()
    return error


def _read(task: str, results: dict[str, Any], model: VtcModel, about: About) -> TaskRun:
    """lmms-eval's results on one task as a TaskRun."""
    names = [n for n in results["results"] if n in results.get("samples", {}) or n == task]
    config = results["configs"].get(task, {})
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    metrics = {
        key.split(",")[0]: float(value)
        for name in names
        for key, value in results["results"][name].items()
        if "_stderr" not in key
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and "," in key
        and value == value  # no verdict at all is no score
    }
    order = [m["metric"] for m in config.get("metric_list") or [] if isinstance(m.get("metric"), str)]
    headline = (
        about.metric
        or metadata.get("headline")
        or next((m for m in order if m in metrics), next(iter(metrics), "score"))
    )
    logged = results.get("samples", {}).get(task) or [s for n in names for s in results["samples"].get(n, [])]
    docs = [s["doc"] for s in logged]
    records = [s.get(headline) for s in logged]
    kind = metadata.get("samples")
    scores: list[float | None]
    if kind:
        scores = [float(x) for x in scoring.OVER_ALL[kind](records)]
    else:
        scores = [_number(r) for r in records]
    strata = [str(d.get(metadata["strata"], "")) if "strata" in metadata else "" for d in docs]
    value = metrics.get(headline)
    known = [x for x in scores if x is not None]
    if about.samples_mean and known:
        value = statistics.mean(known, strata)
    if len(known) < len(scores) or not known or abs((statistics.mean(known, strata) or 0.0) - (value or 0.0)) > 1e-6:
        if metadata.get("headline") and known:
            raise RuntimeError(f"{task}: the samples' scores don't make {headline}={value}")
        scores = [None] * len(scores)  # a metric that isn't a mean over samples (MME): no error bar, no paired test
    samples = []
    for i, (sample, doc, score, stratum) in enumerate(zip(logged, docs, scores, strata, strict=True)):
        kept = model.kept.get((task, int(sample["doc_id"])))
        samples.append(
            Sample(
                id=str(doc.get("id", sample["doc_id"])),
                prediction=_prediction(kind, metadata, sample, doc, records, i),
                target=_text(sample["target"]),
                score=score,
                stratum=stratum,
                tokens_in=kept.tokens_in if kept else None,
                tokens_kept=kept.tokens_out if kept else None,
            )
        )
    bad = [{"id": b.id, "error": b.error} for b in model.bad]
    samples += [Sample(b["id"], "", "", None, error=b["error"]) for b in bad]
    layers = [k.layers for k in model.kept.values() if k.layers]
    return TaskRun(
        task=task,
        group=metadata.get("group", "understanding"),
        metric=headline,
        value=value if logged else None,
        metrics=metrics,
        floors={floor: _floor(floor, docs, strata, metadata) for floor in ("blind", "bag")},
        samples=samples,
        bad=bad,
        layers=[sum(c) / len(layers) for c in zip(*layers, strict=True)] if layers else [],
        scale=about.scale,
        unjudged=sum(map(_unjudged, records)) if "judge" in about.requires else 0,
        version=str(metadata.get("version", results.get("versions", {}).get(task, ""))),
    )


def _number(record: Any) -> float | None:
    """A sample's score in lmms-eval's two customs: a number, or a dict or a pair that ends with it."""
    if isinstance(record, dict):
        record = record.get("score")
    elif isinstance(record, (tuple, list)) and len(record) == 2:
        record = record[1]
    return float(record) if isinstance(record, (int, float)) else None


def _unjudged(record: Any) -> bool:
    """Whether a sample's record says that the judge was silent: no record, no model (MM-Vet), no marks (LLaVA-W)."""
    if not isinstance(record, dict):
        return record is None
    return record.get("eval_model") == "" or list(record.get("scores") or ()) == [-1, -1]


def _text(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _prediction(
    kind: str | None, metadata: dict[str, Any], sample: dict[str, Any], doc: Any, records: list, i: int
) -> str:
    """The answer in words; for embeddings the caption that is closest to the image."""
    answer = sample["filtered_resps"][0]
    answer = answer[0] if isinstance(answer, list) and answer else answer
    if metadata.get("group") != "discriminative":
        return str(answer)
    if kind == "retrieval":
        if i == 0:
            closest = scoring.similarities(records).argmax(axis=1)
            for record, best in zip(records, closest, strict=True):
                record["found"] = records[int(best)]["caption"]
        return records[i]["found"]
    return doc["answer"] if _number(sample[metadata["headline"]]) else doc["options"][0]


def _floor(name: str, docs: Sequence[dict[str, Any]], strata: Sequence[str], metadata: dict[str, Any]) -> float | None:
    """The score of a floor on these samples: the mean of what the test set expects of it row by row; for captions,
    those that the floor would give, scored as the model's are. None where the test set doesn't say.

    A retrieval gallery of n can be guessed with 1/n, however many the whole set has.
    """
    if not docs:
        return None
    expected = [float(e) for d in docs if (e := d.get(name)) is not None and e == e]
    if len(expected) == len(docs):
        value = statistics.mean(expected, strata)
        return max(value or 0.0, 1 / len(docs)) if metadata.get("samples") == "retrieval" else value
    guesses = [d.get(f"{name}_prediction") for d in docs]
    if metadata.get("samples") == "captions" and all(guesses):
        return scoring.cider(
            [{"prediction": g, "references": d["references"]} for g, d in zip(guesses, docs, strict=True)]
        )
    return None
