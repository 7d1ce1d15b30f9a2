"""Everything that tames lmms-eval: its imports, warnings, logs and bars, its index of tasks, its processes, its judge.

Beside this file only `vtc.evaluation.model` knows it, the adapter that answers its requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from vtc import shipped
from vtc.errors import UserError, unknown
from vtc.evaluation import catalogue
from vtc.evaluation.reading import scores_of
from vtc.evaluation.spec import TaskScores, TaskSpec

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from vtc.evaluation.crew import Crew
    from vtc.evaluation.model import VtcModel


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
    import lmms_eval.api.task
    import lmms_eval.evaluator

    def silent(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "disable": True})

    original = lmms_eval.evaluator.tqdm
    with (
        mock.patch.object(lmms_eval.evaluator, "tqdm", silent),
        mock.patch.object(lmms_eval.api.task, "tqdm", silent),
        quiet_datasets(),
    ):
        yield


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Neither warnings nor progress bars of `datasets`."""
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def inside(folder: str | Path | None) -> Iterator[None]:
    """Run in `folder`: a mirror of the hub there is found by the tasks' own names, and their videos, which upstream's
    tasks look for below HF_HOME, in the same folders of it."""
    if folder is None:
        yield
        return
    import datasets

    before, mirror = os.getcwd(), Path(folder).expanduser().resolve()
    caches = {"HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE") or str(datasets.config.HF_DATASETS_CACHE)}
    os.chdir(mirror)
    try:
        with mock.patch.dict(os.environ, {"HF_HOME": str(mirror), **caches}):
            yield
    finally:
        os.chdir(before)


# Tasks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(crew: Crew) -> Iterator[None]:
    """lmms-eval sees no process but this one: else it would split, pad and gather requests in a way of its own, and
    wait at places where a process that failed never comes. What it downloads, the leader downloads first."""
    if crew.world == 1:
        yield
        return
    import lmms_eval.evaluator
    import torch.distributed

    load = lmms_eval.evaluator.get_task_dict
    patch = mock.patch.object
    with (
        mock.patch.dict(os.environ),
        patch(torch.distributed, "is_initialized", lambda: False),
        patch(lmms_eval.evaluator, "get_task_dict", lambda *a, **k: crew.after_leader(lambda: load(*a, **k))),
    ):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        yield


def task_manager(tasks: Sequence[str], include: Sequence[str | Path] = ()) -> TaskManager:
    """An index of the shipped tasks, those in `include`, and the folders of lmms-eval's that are asked for; of all its
    1,985 (6 s) only for what its files don't name.

    Raises:
        UserError: a task that nobody has.
    """
    import_harness()
    from lmms_eval.tasks import TaskManager

    known = catalogue.files(include)
    inside = {task: [task, *catalogue.members(task, known)] for task in tasks if catalogue.members(task, known)}
    folders = {str(known[name].parent) for names in inside.values() for name in names}
    paths = [*_folders(include), *sorted(folders)]
    manager = TaskManager(include_path=paths, include_defaults=False, model_name="vtc")
    if any(t not in manager.all_tasks for t in tasks):
        manager = TaskManager(include_path=paths, include_defaults=True, model_name="vtc")
    for task in tasks:
        if task not in manager.all_tasks:
            raise unknown("benchmark.tasks", task, catalogue.near(task, manager.all_tasks))
    return manager


def every_task(include: Sequence[str | Path] = ()) -> list[str]:
    """The names of all tasks and groups, as lmms-eval finds them."""
    import_harness()
    from lmms_eval.tasks import TaskManager

    return list(TaskManager(include_path=_folders(include), model_name="vtc").all_tasks)


def _folders(include: Sequence[str | Path]) -> list[str]:
    return [str(shipped.path("benchmarks/tasks")), *(str(Path(p).expanduser()) for p in include)]


def run_task(model: VtcModel, spec: TaskSpec, manager: TaskManager) -> TaskScores:
    """Score `model` on one task.

    Raises:
        UserError: its data can't be loaded.
    """
    from lmms_eval.evaluator import simple_evaluate

    task: Any = spec.scored_as
    if spec.dataset_kwargs is not None:
        task = {"task": spec.scored_as, "dataset_kwargs": dict(spec.dataset_kwargs)}
    about = spec.about
    model.bad, model.kept, model.shown, model.together = [], {}, {}, about.together
    # The task's own number of new tokens stands; this is for those that set none.
    longest = f"max_new_tokens={about.max_new_tokens}" if about.max_new_tokens else None
    with quiet(), alone(model.crew), tempfile.TemporaryDirectory(prefix="vtc-") as scratch, inside(spec.mirror):
        try:
            results = simple_evaluate(
                model=model,
                tasks=[task],
                task_manager=manager,
                batch_size=model.rows,
                limit=spec.limit,
                gen_kwargs=longest,  # type: ignore[arg-type]  # None is its default
                bootstrap_iters=0,
                log_samples=True,
                # Submission files of some tasks would land in the user's folder; images aren't needed for scoring.
                cli_args=SimpleNamespace(process_with_media=False, output_path=scratch),
                process_docs_parallel=1,
                random_seed=spec.seed,
                numpy_random_seed=spec.seed,
                torch_random_seed=spec.seed,
                fewshot_random_seed=spec.seed,
            )
        except Exception as error:
            cause = _cause(error)
            if cause is error:
                raise
            if isinstance(cause, UserError):
                raise cause from None
            raise UserError(
                f"benchmark.tasks={spec.name}: lmms-eval stopped ({type(cause).__name__}: {cause})"
            ) from error
    return scores_of(spec, results, model)


def _cause(error: Any) -> BaseException:
    """What is behind tenacity's RetryError, which hides it."""
    while getattr(error, "last_attempt", None) is not None:
        error = error.last_attempt.exception()
    return error


# The judge ---------------------------------------------------------------------------------------------------------


def ask_the_judge(tasks: Sequence[str]) -> None:
    """One small question to the judge, so that a key that doesn't work is known before the run and not by its scores.

    Raises:
        UserError: no answer.
    """
    from lmms_eval.llm_judge import Request, ServerConfig, get_server

    kind = os.environ.get("API_TYPE", "openai").lower()
    model = os.environ.get("MODEL_VERSION", "gpt-4o-2024-11-20")  # as upstream's tasks read it
    try:
        server = get_server(server_name=kind, config=ServerConfig(model_name=model, max_tokens=16, num_retries=1))
        answer = server.evaluate(Request(messages=[{"role": "user", "content": "Answer with the word yes."}]))
        if not (answer.content or "").strip():
            raise ValueError("an empty answer")
    except Exception as error:  # whatever the provider's client raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"benchmark.tasks={','.join(tasks)}: the judge ({kind}, MODEL_VERSION={model}) does not answer: {reason}"
        ) from None
