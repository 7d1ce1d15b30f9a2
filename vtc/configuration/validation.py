"""Checks of a configuration that need neither torch nor weights: what every key may hold.

What depends on a method and a backbone (which budgets, which layers, which checkpoint) is `vtc.assemble.plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vtc import shipped
from vtc.backbones.loading import ATTENTIONS, DEVICE_MAPS, QUANTIZATIONS, SHORT_DTYPES
from vtc.budget import Budget
from vtc.errors import UserError, nearest, unknown
from vtc.registry import parts


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(least: int) -> tuple[str, Callable[[Any], bool]]:
    text = f"a whole number from {least} on"
    return text, lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least


def _one_of(*names: Any) -> tuple[str, Callable[[Any], bool]]:
    return ", ".join("null" if n is None else str(n).lower() if isinstance(n, bool) else str(n) for n in names), (
        lambda v: any(v is n or (v == n and type(v) is type(n)) for n in names)
    )


def _device(value: Any) -> bool:
    name, _, index = str(value).partition(":")
    return name in ("auto", "cpu", "mps", "cuda") and (not index or (index.isdigit() and name == "cuda"))


def _device_map(value: Any) -> bool:
    return value in DEVICE_MAPS or isinstance(value, DictConfig)


# key → (what is allowed, in words; whether a value is). `null` is allowed where `optional` says so.
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "tokens": _whole(1),
    "ratio": ("more than 0, at most 1", lambda v: _number(v) and 0 < v <= 1),
    "compression": ("a number from 1 on (5.57 is LLaVolta's 557 %)", lambda v: _number(v) and v >= 1),
    "flops": ("more than 0, at most 1", lambda v: _number(v) and 0 < v <= 1),
    "seed": _whole(0),
    "batch_size": _whole(1),
    "layer_scale": _one_of("auto", "none"),
    "resume": _one_of("auto", True, False),
    "dry_run": _one_of(True, False),
    "benchmark.limit": _whole(1),
    "backbone.dtype": _one_of("float32", "bfloat16", "float16", "auto", *SHORT_DTYPES),
    "backbone.device": ("auto, cpu, mps, cuda, cuda:<n>", _device),
    "backbone.attention": _one_of(*ATTENTIONS),
    "backbone.device_map": (", ".join((*DEVICE_MAPS, "null", "{module: device}")), _device_map),
    "backbone.quantization": _one_of(*QUANTIZATIONS),
    "backbone.frames": _whole(1),
    "backbone.trust_remote_code": _one_of(True, False),
}
OPTIONAL = {"tokens", "ratio", "compression", "flops", "benchmark.limit", "backbone.device_map"}


def check(config: DictConfig) -> None:
    """Every rule that the keys alone decide.

    Raises:
        UserError: the first key that holds what it may not, two budgets, an unknown task, a missing file.
    """
    try:
        OmegaConf.resolve(config.copy())
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from None
    if config.action == "train":
        missing = sorted(key for key in OmegaConf.missing_keys(config) if key.startswith("training"))
        if missing:
            raise UserError(
                f"{missing[0]}: the recipe needs it; give {missing[0].replace('[', '.').replace(']', '')}=…"
            )
    for key, (allowed, fits) in RULES.items():
        value = OmegaConf.select(config, key)
        if value is None and (key in OPTIONAL or not _has(config, key)):
            continue
        if not fits(value):
            given = "null" if value is None else value
            close = nearest(str(value), allowed.split(", ")) if isinstance(value, str) else ""
            raise UserError(f"{key}={given}: allowed: {allowed}{close}")
    Budget(config.tokens, config.ratio, config.compression, config.flops)
    _check_parts(config)
    _check_schedule(config)
    if config.action == "evaluate":
        _check_tasks(config)
    _check_files(config)


def _check_parts(config: DictConfig) -> None:
    """A composition's parts: at most one budget each; and it can't be trained."""
    members = [*parts(config.method.name)]
    if len(members) == 1:
        return
    if config.action == "train":
        raise UserError(
            f"method={config.method.name}: a composition is not trained; train its parts, one by one, with action=train"
        )
    for member in members[:-1]:
        given = {key: config.method[member][key] for key in ("tokens", "ratio")}
        given = {key: value for key, value in given.items() if value is not None}
        for key, value in given.items():
            allowed, fits = RULES[key]
            if not fits(value):
                raise UserError(f"method.{member}.{key}={value}: allowed: {allowed}")
        if len(given) > 1:
            text = ", ".join(f"method.{member}.{k}={v}" for k, v in given.items())
            raise UserError(f"{text}: give only one of the two")


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return node is not None and name in node


def _check_schedule(config: DictConfig) -> None:
    """Stages only for a method that has them, and said once."""
    stages = OmegaConf.select(config, "schedule.stages")
    if stages is None:
        return
    if "scheme" not in config.method:
        raise UserError(
            f"schedule={stages}: method={config.method.get('name')} is not trained in stages; "
            "allowed with method=llavolta"
        )
    if config.method.scheme != stages:
        raise UserError(f"schedule={stages}, method.scheme={config.method.scheme}: give one of the two")


def _check_tasks(config: DictConfig) -> None:
    """Task names of the built-in benchmark; those of others are lmms-eval's to know."""
    tasks = OmegaConf.select(config, "benchmark.tasks")
    if isinstance(tasks, str):
        raise UserError(f"benchmark.tasks={tasks}: a list, as in 'benchmark.tasks=[{tasks}]'")
    if tasks is None:
        return
    if not tasks:
        raise UserError("benchmark.tasks=[]: at least one task is needed")
    if config.benchmark.name == "pocket":
        # The names of the task files: vtc.pocket knows them too, but takes seconds to import.
        known = [f.stem for f in shipped.path("benchmarks/tasks").glob("pocket_*.yaml")]
        for task in tasks:
            if task not in known:
                raise unknown("benchmark.tasks", task, known)


def _check_files(config: DictConfig) -> None:
    checkpoint = config.checkpoint
    if checkpoint not in (None, "auto"):
        folder = Path(str(checkpoint)).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"checkpoint={checkpoint}: no such folder; allowed: auto, null, or a folder that training wrote"
            )
    _check_data(config)
    output = Path(str(config.output_dir)).expanduser()
    if output.exists() and not output.is_dir():
        raise UserError(f"output_dir={config.output_dir}: is a file, a folder is needed")


def _check_data(config: DictConfig) -> None:
    data = OmegaConf.select(config, "benchmark.data")
    if config.benchmark.name in ("jsonl", "hf"):
        if config.action == "evaluate":
            from vtc.evaluation import own

            own.check(OmegaConf.to_container(config.benchmark, resolve=True))  # type: ignore[arg-type]
        return
    if config.get("data") is not None:
        raise UserError(f"data={config.data}: for benchmark=jsonl or hf; others have benchmark.data")
    if data is not None and config.benchmark.name != "pocket" and not Path(str(data)).expanduser().exists():
        raise UserError(f"benchmark.data={data}: no such file or folder")
