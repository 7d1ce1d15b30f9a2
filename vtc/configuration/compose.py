"""From `key=value` overrides to a resolved configuration, with Hydra's errors in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vtc import shipped
from vtc.budget import BUDGETS
from vtc.configuration.choices import choices, configured, unconfigured
from vtc.configuration.methods import method_node, store_methods
from vtc.configuration.resolve import resolve
from vtc.configuration.unconfigured import NODES
from vtc.errors import UserError, nearest, unknown
from vtc.job import Job
from vtc.registry import PART_BUDGETS, methods, parts
from vtc.settings import SHORT_DTYPES, BackboneSettings, from_mapping

CONFIG = "config"
ERRORS = (HydraException, OmegaConfBaseException)
NEEDED = ("action", "backbone", "method", "benchmark", "training")


def config_dir() -> Path:
    """The folder of the configuration files, in the checkout or in the wheel."""
    return shipped.path("conf")


def parse(overrides: Sequence[str] = ()) -> Job:
    """The job that `python -m vtc <overrides>` would run, for notebooks, tests and lmms-eval.

    Raises:
        UserError: an unknown key or choice, or a value that can't be read.
    """
    overrides = spelled_out(overrides)
    prepare(overrides)
    try:
        with hydra_at_rest():
            config = hydra_compose(CONFIG, overrides=list(overrides))
    except ERRORS as error:
        raise explained(error, overrides) from None
    return job_of(config, overrides)


def job_of(config: DictConfig, overrides: Sequence[str]) -> Job:
    """The job of a configuration that Hydra composed from these overrides.

    Raises:
        UserError: as `resolve`.
    """
    settle(config)
    return resolve(config, [typed(override) for override in overrides])


@contextmanager
def hydra_at_rest() -> Iterator[None]:
    """Hydra initialised with our `conf/`; a caller that is itself a Hydra application gets its state back."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def parsed(overrides: Sequence[str]) -> list[Override]:
    """The overrides that can be parsed; sweeps (`tokens=4,16`) are one override."""
    parser = OverridesParser.create()
    out = []
    for text in overrides:
        try:
            out.append(parser.parse_override(text))
        except ERRORS:
            continue
    return out


def values(override: Override) -> list[Any]:
    """The values that an override takes: one, or those of its sweep."""
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def joined(text: str) -> str:
    """`method=[visionzip,fastv]` as `method=visionzip+fastv`, one choice for Hydra; the file of a suite,
    `benchmark=my/suite.yaml`, as `benchmark=suite`; any other word as it is.

    Raises:
        UserError: a suite that is called as a shipped one is.
    """
    for override in parsed([text]):
        if override.key_or_group == "benchmark" and not override.is_sweep_override():
            file = str(override.value())
            if file.endswith(".yaml"):
                name = Path(file).stem
                if name in configured("benchmark"):
                    raise UserError(f"{text}: {name} is a shipped benchmark; give the file another name")
                OWN_SUITES[name] = file
                return f"benchmark={name}"
        if override.key_or_group == "method" and any(isinstance(value, list) and value for value in values(override)):
            names = ["+".join(map(str, v)) if isinstance(v, list) else str(v) for v in values(override)]
            return f"{text.partition('=')[0]}={','.join(names)}"
    return text


def spelled_out(words: Sequence[str]) -> list[str]:
    """The command line as Hydra reads it: `dtype=bf16` as `backbone.dtype=bf16` (every key of `SHORT`), a list
    of methods as one choice; any other word as it is.

    Raises:
        UserError: a key given both ways, with different values.
    """
    out = []
    by_key = {override.key_or_group: override for override in parsed(words)}
    for word in map(joined, words):
        override = next(iter(parsed([word])), None)
        key = "" if override is None else override.key_or_group
        if override is None or key not in SHORT:
            out.append(word)
        elif (long := by_key.get(f"backbone.{key}")) is None:
            head, equals, tail = word.partition("=")
            out.append(f"{head.removesuffix(key)}backbone.{key}{equals}{tail}")
        elif [short_dtype(v) for v in values(override)] != [short_dtype(v) for v in values(long)]:
            raise UserError(f"{word}, {long.input_line}: one key, two values; give one of the two")
    return out


def short_dtype(value: Any) -> Any:
    """`bf16` as bfloat16; anything else as it is."""
    return SHORT_DTYPES.get(value, value) if isinstance(value, str) else value


def settle(config: DictConfig) -> None:
    """What can be said in several ways is said in one, so that the run is the same: budgets of a composition's parts
    (`share_out`), dtypes, no quantisation.

    Raises:
        UserError: as `share_out`.
    """
    share_out(config)
    for key, same in {"dtype": short_dtype, "quantization": lambda value: "none" if value is None else value}.items():
        if key in config.backbone:
            config.backbone[key] = same(config.backbone[key])


OWN_SUITES: dict[str, str] = {}  # name → the file that `benchmark=` was given


def typed(override: str) -> str:
    """An override as the user typed it: a suite by its file again."""
    key, _, value = override.partition("=")
    return f"{key}={OWN_SUITES[value]}" if key == "benchmark" and value in OWN_SUITES else override


def store_suite(name: str) -> None:
    """A suite of the user's own as a choice of `benchmark`: what its file says, over the keys that suites have.

    Raises:
        UserError: no such file, no YAML, no tasks, a key that suites don't have.
    """
    override = f"benchmark={OWN_SUITES[name]}"
    file = Path(OWN_SUITES[name]).expanduser()
    if not file.is_file():
        raise UserError(f"{override}: no such file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{override}: no YAML ({' '.join(str(error).split())})") from None
    node: dict[str, Any] = {"name": name, "tasks": None, "limit": None, "data": None, "include": [], "about": {}}
    if not isinstance(content, dict):
        raise UserError(f"{override}: allowed: a mapping with {', '.join(node)}")
    for key in content:
        if key not in node:
            raise UserError(f"{override}: {key}: unknown; allowed: {', '.join(node)}{nearest(str(key), node)}")
    node |= content | {"name": name}
    node["tasks"] = node["tasks"] or [*(node["about"] or {})]
    node["include"] = [str((file.parent / Path(folder).expanduser()).resolve()) for folder in node["include"] or []]
    if not node["tasks"]:
        raise UserError(f"{override}: names no tasks; needed: tasks, or about with an entry a task")
    ConfigStore.instance().store(group="benchmark", name=name, node=node, provider="own suite")


def share_out(config: DictConfig) -> None:
    """A budget for each part of a composition, `tokens=[36,16]`, goes where it is kept: the last one to `tokens`, the
    others to `method.<part>.tokens`.

    Raises:
        UserError: a list for a single method, of another length, or beside other budgets of the parts.
    """
    for key in BUDGETS:
        value = config[key]
        if not isinstance(value, ListConfig):
            continue
        name, budgets = config.method.name, f"{key}=[{','.join('null' if v is None else str(v) for v in value)}]"
        members = [*parts(name)]
        if len(members) == 1:
            raise UserError(f"{budgets}: a list is a budget for each of several methods; {name} is one")
        if key not in ("tokens", "ratio"):
            raise UserError(
                f"{budgets}: allowed: one number, for the whole of {name}; a budget each is tokens= or ratio="
            )
        if len(value) != len(members):
            raise UserError(f"{budgets}: {name} has {len(members)} parts; allowed: a budget each, or one for the end")
        for member, own in zip(members[:-1], value[:-1], strict=True):
            taken = next((f"method.{member}.{k}={config.method[member][k]}" for k in ("tokens", "ratio")
                          if config.method[member][k] is not None), None)  # fmt: skip
            if taken:
                raise UserError(f"{budgets}, {taken}: give only one of the two")
            config.method[member][key] = own
        config[key] = value[-1]


def swept(overrides: Sequence[str]) -> dict[str, int]:
    """The keys that `-m` varies, with how many values each."""
    discrete = [o for o in parsed(overrides) if o.is_sweep_override() and o.is_discrete_sweep()]
    return {override.key_or_group: len(values(override)) for override in discrete}


def prepare(overrides: Sequence[str]) -> None:
    """Checks what Hydra would let pass or explain badly, and gives plug-ins a configuration; to call before Hydra.

    A method's configuration is its name and the options that its class declares. Only plug-ins that are named are
    imported.

    Raises:
        UserError: an unknown choice, several in one run, a key that is removed, a plug-in that can't be imported.
    """
    store_methods()
    for override in parsed(overrides):
        group = override.key_or_group
        if override.is_delete():
            raise UserError(
                f"{override.input_line}: keys can't be removed; where a key may be empty, write {group}=null"
            )
        if not _is_group(group):
            continue
        allowed = choices(group)
        for value in values(override):
            if value == []:
                raise UserError(f"{override.input_line}: allowed: at least one {group}")
            if isinstance(value, list):
                many = ",".join(map(str, value))
                raise UserError(
                    f"{override.input_line}: one {group} a run; several are a sweep: python -m vtc -m {group}={many}"
                )
            if group == "benchmark" and value in OWN_SUITES:
                store_suite(value)
                continue
            if group == "method" and "+" in str(value):
                store_composition(str(value))
                continue
            if str(value) not in allowed and (value is not None or group in NEEDED):
                raise unknown(group, "null" if value is None else value, allowed)
            if value in unconfigured(group):
                node = NODES[group](value)
                ConfigStore.instance().store(group=group, name=value, node=node, provider="plug-in")
    check_additions(overrides)


def store_composition(name: str) -> None:
    """A configuration for methods put together, `visionzip+fastv`: each part's own, under the part's key.

    Raises:
        UserError: an unknown part.
    """
    node: dict[str, Any] = {"name": name}
    members = parts(name)
    for key, part in members.items():
        if part not in methods.names():
            raise unknown("method", part, methods.names())
        budgets = {} if key == [*members][-1] else dict.fromkeys(PART_BUDGETS)
        node[key] = budgets | {k: v for k, v in method_node(part).items() if k != "name"}
    ConfigStore.instance().store(group="method", name=name, node=node, provider="composition")


def check_additions(overrides: Sequence[str]) -> None:
    """`+key=…` and `++key=…` name a key that exists.

    Hydra adds anything that is asked for with a plus, and a misspelt budget would be ignored in silence.
    """
    added = [o for o in parsed(overrides) if o.is_add() or o.is_force_add()]
    added = [o for o in added if not _is_group(o.key_or_group) and o.key_or_group.split(".")[0] != "hydra"]
    if added:
        base = _base(parsed(overrides))
        for override in added:
            if problem := unknown_key(base, override.key_or_group, override.input_line or ""):
                raise problem


# Options of the backbone that are keys of their own too, with the words of --help.
SHORT = {
    "pretrained": "a transformers folder or hub id of the backbone's architecture",
    "dtype": "bf16, fp16, fp32, or auto: as the weights are stored",
    "device": "auto, cpu, cuda, cuda:<n>, mps",
    "device_map": "auto: spread over the GPUs there are; balanced, balanced_low_0, sequential",
    "attention": "sdpa, flash_attention_2, eager",
    "quantization": "4bit, 8bit: the decoder's weights (pip install 'vtc[quant]'); none",
}


def backbone_settings(name: str, **changes: Any) -> BackboneSettings:
    """What `backbone=<name>` comes to, for whoever needs a backbone and no run.

    Args:
        changes: settings that the user would type.

    Raises:
        UserError: an unknown name, an unknown setting, or a value that it may not hold.
    """
    return from_mapping(BackboneSettings, vars(parse([f"backbone={name}"]).backbone) | changes, "backbone")


def explained(error: Exception, overrides: Sequence[str]) -> UserError:
    """Hydra's or OmegaConf's error in one line: the key, what was given, what is allowed, the nearest match."""
    parser = OverridesParser.create()
    good: list[Override] = []
    for text in overrides:
        try:
            good.append(parser.parse_override(text))
        except ERRORS:
            if "=" not in text:
                return UserError(f"{text}: settings are written key=value, for example method=fastv; see --help")
            return UserError(
                f"{text}: can't be read as key=value; quote what holds spaces, commas or brackets: 'key=\"a, b\"'"
            )

    try:
        base = _base(good)
    except ERRORS as deeper:
        return UserError(" ".join(str(deeper).split()))
    for override in good:
        key = override.key_or_group
        if _is_group(key) or override.is_add() or key.split(".")[0] == "hydra":
            continue
        if problem := unknown_key(base, key, override.input_line or key):
            return problem
    cause = error.__cause__
    lines = [line for text in (str(error), str(cause) if cause else "") for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("Ambiguous value"):
        sweep = next((o.input_line for o in good if o.is_sweep_override()), "")
        return UserError(f"{sweep}: several values are a sweep: python -m vtc -m …")
    return UserError(" ".join(line.strip() for line in lines[:2]))


def unknown_key(config: DictConfig, key: str, override: str) -> UserError | None:
    """The error for a dotted key that the configuration doesn't have; None where it has it."""
    node: Any = config
    path = key.split(".")
    for depth, part in enumerate(path):
        if not isinstance(node, DictConfig):
            return None
        if part not in node:
            prefix = ".".join(path[:depth])
            allowed = [str(k) for k in node if k not in ("hydra", "name")]
            if not prefix:
                allowed = sorted({*allowed, *SHORT, *(d.name for d in config_dir().iterdir() if d.is_dir())})
            close = nearest(part, allowed)
            if not close and not prefix:
                close = "; `python -m vtc --help` lists every key"
            where = f"{prefix} has {', '.join(allowed) or 'no options'}" if prefix else ""
            if prefix == "method":
                where = f"method={config.method.get('name')} has {', '.join(allowed) or 'no options'}"
            return UserError(f"{override}: unknown key '{key}'" + (f"; {where}" if where else "") + close)
        if OmegaConf.is_interpolation(node, part) or OmegaConf.is_missing(node, part):
            return None
        node = node[part]
    return None


def _is_group(key: str) -> bool:
    return (config_dir() / key).is_dir()


def _base(overrides: Sequence[Override]) -> DictConfig:
    """The configuration with the chosen groups alone (the first of a sweep's)."""
    picks = []
    for override in overrides:
        if _is_group(override.key_or_group):
            first = values(override)[0]
            picks.append(f"{override.key_or_group}={'null' if first is None else first}")
    with hydra_at_rest():
        return hydra_compose(CONFIG, overrides=picks)
