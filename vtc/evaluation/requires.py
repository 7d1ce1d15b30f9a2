"""What must be there before a benchmark is run: said in one line, before lmms-eval is imported or a model loaded.

Without Java a caption task fails after all its inference, without a key a judged one scores at random or zero, and data
that can't be had shows as a RetryError after ten seconds a task. None of that may happen to a user in silence.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.errors import UserError, unknown
from vtc.evaluation import catalogue, suite
from vtc.evaluation.suite import About

Entries = Mapping[str, About]
KEYS = {"openai": "OPENAI_API_KEY", "async_openai": "OPENAI_API_KEY",
        "azure": "AZURE_API_KEY", "async_azure": "AZURE_API_KEY"}  # fmt: skip
DOCS = "docs/evaluate.md"


def check(settings: Mapping[str, Any], tasks: Sequence[str] | None = None, network: bool = True) -> None:
    """Everything that `tasks` (None: all of the benchmark) need, the quick looks first, the network last.

    Args:
        network: whether to ask the hub for what is not here.

    Raises:
        UserError: a task that nobody has, or the first thing that is missing, with what to do about it.
    """
    benchmark = settings["benchmark"]
    if benchmark["name"] in suite.OWN:
        return
    tasks = list(benchmark["tasks"]) if tasks is None else list(tasks)
    known = names(tasks, benchmark.get("include") or ())
    entries = {task: suite.about(benchmark, task) for name in tasks for task in known[name]}
    for look in (_metrics, _whole, _java, _judge, _web, _spacy, _video, _folder):
        look(entries, settings)
    _data(entries, settings, network)


def missing(settings: Mapping[str, Any]) -> str | None:
    """The line that `check` would end with, the network left alone; None where nothing is missing that can be told."""
    try:
        check(settings, network=False)
    except UserError as error:
        return str(error)
    return None


def names(tasks: Iterable[str], include: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Task or group → the tasks that it is.

    Raises:
        UserError: a name that nobody has. lmms-eval is asked where its files don't say.
    """
    known = catalogue.files(include)
    found = {name: catalogue.members(name, known) for name in tasks}
    for name in [n for n, inside in found.items() if not inside]:
        from vtc.evaluation import harness

        everything = harness.every_task(include)
        if name not in everything:
            raise unknown("benchmark.tasks", name, near(name, [*everything, *known]))
        found[name] = [name]
    return found


def near(task: str, allowed: Iterable[str]) -> list[str]:
    """The names worth listing in an error: two thousand are not."""
    import difflib

    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(task, allowed, n=5, cutoff=0.4)
    return close or [n for n in allowed if n.startswith("pocket_")]


# One look each -------------------------------------------------------------------------------------------------------


def _needing(entries: Entries, need: str) -> list[str]:
    return [task for task, entry in entries.items() if need in entry.requires]


def _refusal(tasks: Sequence[str], entries: Entries, why: str, remedy: str) -> UserError:
    """`benchmark.tasks=a,b: why; remedy, or take … instead | leave them out`."""
    instead = [entries[task].instead for task in tasks]
    rest = [task for task in entries if task not in tasks]
    if all(instead):
        other = f", or take benchmark.tasks=[{','.join(str(i) for i in instead)}]"
    elif rest:
        other = f", or leave {'it' if len(tasks) == 1 else 'them'} out: benchmark.tasks=[{','.join(rest)}]"
    else:
        other = ""
    return UserError(f"benchmark.tasks={','.join(tasks)}: {why}; {remedy}{other}")


def _metrics(entries: Entries, settings: Mapping[str, Any]) -> None:
    """The headline metric is one that the task gives: after hours of inference is too late to see."""
    known = catalogue.files(settings["benchmark"].get("include") or ())
    for task, entry in entries.items():
        if entry.metric is None or task not in known:
            continue
        listed = catalogue.settings(known[task]).get("metric_list") or []
        given = [str(m["metric"]) for m in listed if isinstance(m, Mapping) and "metric" in m]
        if given and entry.metric not in given:
            raise unknown(f"benchmark.about.{task}.metric", entry.metric, given)


def _whole(entries: Entries, settings: Mapping[str, Any]) -> None:
    limit = settings["benchmark"].get("limit")
    for task, entry in entries.items():
        if limit is not None and int(limit) % entry.together:
            raise UserError(
                f"benchmark.limit={limit}: {task} scores {entry.together} questions as one; "
                f"allowed: a multiple of {entry.together}"
            )


def _java(entries: Entries, settings: Mapping[str, Any]) -> None:
    tasks = _needing(entries, "java")
    if tasks and shutil.which("java") is None:
        why = "scoring needs Java (PTBTokenizer, METEOR), and there is no java on the PATH"
        raise _refusal(tasks, entries, why, "install a Java runtime")


def _judge(entries: Entries, settings: Mapping[str, Any]) -> None:
    tasks = _needing(entries, "judge")
    key = KEYS.get(os.environ.get("API_TYPE", "openai").lower())
    if tasks and key and not os.environ.get(key):
        raise _refusal(tasks, entries, f"scored by a judge, and {key} is not set", f"set {key}")


def _web(entries: Entries, settings: Mapping[str, Any]) -> None:
    tasks = _needing(entries, "web")
    if tasks and _offline():
        raise _refusal(tasks, entries, "fetches every image from the web, and HF_HUB_OFFLINE is set", "unset it")


def _spacy(entries: Entries, settings: Mapping[str, Any]) -> None:
    from importlib.util import find_spec

    tasks = _needing(entries, "spacy")
    if tasks and (find_spec("spacy") is None or find_spec("nltk") is None):
        raise _refusal(tasks, entries, "scoring needs spaCy and NLTK with their models", "install them")


def _video(entries: Entries, settings: Mapping[str, Any]) -> None:
    from vtc.registry import families

    tasks = _needing(entries, "video")
    name = settings["backbone"]["name"]
    if tasks and families.get(settings["backbone"]["family"]).video_text is None:
        why = f"asks about videos, and backbone={name} reads none"
        raise UserError(f"benchmark.tasks={','.join(tasks)}: {why}; take a backbone that does (docs/backbones.md)")


def _folder(entries: Entries, settings: Mapping[str, Any]) -> None:
    """Data that is on no hub: folders inside `benchmark.data`."""
    data = settings["benchmark"].get("data")
    for task in _needing(entries, "folder"):
        entry = entries[task]
        content = f"{entry.data}/{{{','.join(entry.files)}}}"
        if not data:
            raise UserError(f"benchmark.tasks={task}: give benchmark.data=<a folder with {content}>; see {DOCS}")
        for file in entry.files:
            if not (Path(str(data)).expanduser() / str(entry.data) / file).exists():
                raise UserError(
                    f"benchmark.tasks={task}: benchmark.data={data} has no {entry.data}/{file}; needed: {content}; "
                    f"see {DOCS}"
                )


def _data(entries: Entries, settings: Mapping[str, Any], network: bool) -> None:
    """The data sets: in the folder that was given, in the cache, or on the hub."""
    benchmark = settings["benchmark"]
    known = catalogue.files(benchmark.get("include") or ())
    for task, entry in entries.items():
        own = catalogue.settings(known[task]) if task in known else {}
        name = str(own.get("dataset_path") or entry.data or "")
        if "folder" in entry.requires or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            continue  # a folder of its own, a builder such as parquet or json, or the tasks of a group
        if folder := benchmark.get("data"):
            if not (Path(str(folder)).expanduser() / name).is_dir():
                fetch = f"hf download {name} --repo-type dataset --local-dir {folder}/{name}"
                raise UserError(f"benchmark.tasks={task}: benchmark.data={folder} has no {name}; get it with: {fetch}")
        elif network:
            _on_the_hub(task, name, bool((own.get("dataset_kwargs") or {}).get("token")))


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
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=10)
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
    wanted = (_letters(owner), _letters(rest))
    return home.is_dir() and any(tuple(map(_letters, f.name.split("___", 1))) == wanted for f in home.iterdir())


def _letters(text: str) -> str:
    """`datasets` writes VizWiz-VQA as viz_wiz-vqa."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


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
