"""What must be there before a benchmark is run: said in one line, before lmms-eval is imported or a model loaded.

Without Java a caption task fails after all its inference, without a key a judged one scores at random or zero, and data
that can't be had shows as a RetryError after ten seconds a task. None of that may happen to a user in silence.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vtc import hub
from vtc.errors import UserError, unknown
from vtc.evaluation.spec import About
from vtc.job import Job

KEYS = {"openai": "OPENAI_API_KEY", "async_openai": "OPENAI_API_KEY",
        "azure": "AZURE_API_KEY", "async_azure": "AZURE_API_KEY"}  # fmt: skip
DOCS = "docs/evaluate.md"


@dataclass(frozen=True)
class Needs:
    """What is looked at before a run.

    Attributes:
        job: the run.
        entries: what is known of each task that is to be scored, those of groups among them.
        contents: what the file of each of them says; empty where it has none.
    """

    job: Job
    entries: Mapping[str, About]
    contents: Mapping[str, Mapping[str, Any]]

    def requiring(self, need: str) -> list[str]:
        """The tasks that require one of `vtc.evaluation.suite.NEEDS`."""
        return [task for task, entry in self.entries.items() if need in entry.requires]


def check(needs: Needs, network: bool = True) -> None:
    """Everything that tasks of lmms-eval need, the quick looks first, the network last.

    Args:
        network: whether to ask the hub for what is not here.

    Raises:
        UserError: the first thing that is missing, with what to do about it.
    """
    for look in (_metrics, _whole, _surroundings, _video, _folder):
        look(needs)
    _data(needs, network)


# One look each -------------------------------------------------------------------------------------------------------


def _refusal(tasks: Sequence[str], entries: Mapping[str, About], why: str, remedy: str) -> UserError:
    """`benchmark.tasks=a,b: why; remedy, or take … instead | leave them out`."""
    instead = [entries[task].instead for task in tasks]
    rest = [task for task in entries if task not in tasks]
    other = ""
    if all(instead):
        other = f", or take benchmark.tasks=[{','.join(map(str, instead))}]"
    elif rest:
        other = f", or leave {'it' if len(tasks) == 1 else 'them'} out: benchmark.tasks=[{','.join(rest)}]"
    return UserError(f"benchmark.tasks={','.join(tasks)}: {why}; {remedy}{other}")


def _metrics(needs: Needs) -> None:
    """The headline metric is one that the task gives: after hours of inference is too late to see."""
    for task, entry in needs.entries.items():
        if entry.metric is None:
            continue
        listed = needs.contents[task].get("metric_list") or []
        metrics = [str(m["metric"]) for m in listed if isinstance(m, Mapping) and "metric" in m]
        if metrics and entry.metric not in metrics:
            raise unknown(f"benchmark.about.{task}.metric", entry.metric, metrics)


def _whole(needs: Needs) -> None:
    limit = needs.job.benchmark.limit
    for task, entry in needs.entries.items():
        if limit is not None and limit % entry.together:
            raise UserError(
                f"benchmark.limit={limit}: {task} scores {entry.together} questions as one; "
                f"allowed: a multiple of {entry.together}"
            )


def _surroundings(needs: Needs) -> None:
    """Programs, packages and keys."""
    key = KEYS.get(os.environ.get("API_TYPE", "openai").lower())
    java = "scoring needs Java (PTBTokenizer, METEOR), and there is no java on the PATH"
    spacy = "scoring needs spaCy and NLTK with their models"
    for need, lacks, why, remedy in (
        ("java", shutil.which("java") is None, java, "install a Java runtime"),
        ("judge", key and not os.environ.get(key), f"scored by a judge, and {key} is not set", f"set {key}"),
        ("web", _offline(), "fetches every image from the web, and HF_HUB_OFFLINE is set", "unset it"),
        ("spacy", find_spec("spacy") is None or find_spec("nltk") is None, spacy, "install them"),
    ):
        if lacks and (tasks := needs.requiring(need)):
            raise _refusal(tasks, needs.entries, why, remedy)


def _video(needs: Needs) -> None:
    tasks = needs.requiring("video")
    if tasks and getattr(needs.job.family, "video_text", None) is None:
        why = f"asks about videos, and backbone={needs.job.backbone.name} reads none"
        raise UserError(f"benchmark.tasks={','.join(tasks)}: {why}; take a backbone that does (docs/backbones.md)")


def _folder(needs: Needs) -> None:
    """Data that is on no hub: folders inside `benchmark.data`."""
    data = needs.job.benchmark.data
    for task in needs.requiring("folder"):
        entry = needs.entries[task]
        content = f"{entry.data}/{{{','.join(entry.files)}}}"
        if not data:
            raise UserError(f"benchmark.tasks={task}: give benchmark.data=<a folder with {content}>; see {DOCS}")
        for file in entry.files:
            if not (Path(data).expanduser() / str(entry.data) / file).exists():
                raise UserError(
                    f"benchmark.tasks={task}: benchmark.data={data} has no {entry.data}/{file}; needed: {content}; "
                    f"see {DOCS}"
                )


def _data(needs: Needs, network: bool) -> None:
    """The data sets: in the folder that was given, in the cache, or on the hub."""
    for task, entry in needs.entries.items():
        content = needs.contents[task]
        name = str(content.get("dataset_path") or entry.data or "")
        if "folder" in entry.requires or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            continue  # a folder of its own, a builder such as parquet or json, or the tasks of a group
        token = bool((content.get("dataset_kwargs") or {}).get("token"))
        data = needs.job.benchmark.data
        check_data_set(task, name, data, network, token)
        videos = video_folder(content)
        if data and videos and not (Path(data).expanduser() / videos).is_dir():
            raise UserError(
                f"benchmark.tasks={task}: benchmark.data={data} has no {videos}, the folder of its videos; "
                f"needed: what the archives of {name} unpack to; see {DOCS}"
            )


def video_folder(content: Mapping[str, Any]) -> str | None:
    """Where a task of lmms-eval has its videos, below HF_HOME or in a mirror of the hub; None: it has none."""
    kwargs = content.get("dataset_kwargs") or {}
    return str(kwargs["cache_dir"]) if kwargs.get("video") and kwargs.get("cache_dir") else None


def check_data_set(task: str, name: str, folder: str | None, network: bool = True, token: bool = False) -> None:
    """Refuses a task whose data set can't be loaded by its id.

    Args:
        folder: a mirror of the hub, where one was given: it must be in there.
        network: whether to ask the hub for what is not in the cache.
        token: see `_on_the_hub`.

    Raises:
        UserError: it isn't there, with what to do about it.
    """
    if folder:
        if not (Path(folder).expanduser() / name).is_dir():
            fetch = f"hf download {name} --repo-type dataset --local-dir {folder}/{name}"
            raise UserError(f"benchmark.tasks={task}: benchmark.data={folder} has no {name}; get it with: {fetch}")
    elif network:
        _on_the_hub(task, name, token)


def _on_the_hub(task: str, name: str, token: bool) -> None:
    """Whether a data set can be loaded by its id.

    Args:
        token: its task asks for it with the user's token, which there must be even where the data set is public.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    where = f"benchmark.tasks={task}: its data {name}"
    if _offline():
        if not cached(name):
            raise UserError(
                f"{where} is not in the cache, and HF_HUB_OFFLINE is set; give benchmark.data=<a folder with {name}>"
            )
        return
    if token and huggingface_hub.get_token() is None:
        raise UserError(
            f"{where} is asked for with a Hugging Face token, and there is none; run `hf auth login` or set HF_TOKEN "
            "(HF_HUB_OFFLINE=1 takes what is in the cache without one)"
        )
    if cached(name):
        hub.answers()  # else `datasets` would ask again and again before it looks into the cache
        return
    try:
        hub.within(lambda: huggingface_hub.HfApi().dataset_info(name, timeout=hub.PATIENCE))
    except GatedRepoError:
        raise UserError(f"{where} is gated; accept its terms at https://huggingface.co/datasets/{name}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{where} is not on the hub, or not for your token to see") from None
    except Exception as error:  # each way in which a network can fail has its own exception
        raise UserError(
            f"{where} is not in the cache, and the hub can't be reached ({type(error).__name__}); "
            f"give benchmark.data=<a folder with {name}>, see {DOCS}"
        ) from None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached(name: str) -> bool:
    """Whether something of a data set is in the cache of the hub or of `datasets`."""
    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
    if (Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "snapshots").is_dir():
        return True
    owner, _, rest = name.partition("/")
    letters = (_letters(owner), _letters(rest))
    return home.is_dir() and any(tuple(map(_letters, f.name.split("___", 1))) == letters for f in home.iterdir())


def _letters(text: str) -> str:
    """`datasets` writes VizWiz-VQA as viz_wiz-vqa."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
