"""From `key=value` overrides to a resolved configuration, with Hydra's errors in plain words."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vtc import plugins, shipped
from vtc.budget import BUDGETS
from vtc.configuration.choices import GROUPS, choices, unconfigured
from vtc.configuration.methods import method_node, store_methods
from vtc.configuration.overrides import (
    OWN_SUITES,
    SHORT,
    is_listed,
    plugin_files,
    quoted,
    read,
    short_dtype,
    spelled_out,
    typed,
    values,
)
from vtc.configuration.resolve import resolve
from vtc.configuration.unconfigured import NODES
from vtc.errors import UserError, nearest, unknown
from vtc.job import Job
from vtc.registry import PART_BUDGETS, methods, parts
from vtc.settings import BackboneSettings, from_mapping

CONFIG = "config"


def config_dir() -> Path:
    """The folder of the configuration files, in the checkout or in the wheel."""
    return shipped.path("conf")


def parse(overrides: Sequence[str] = ()) -> Job:
    """The job that `python -m vtc <overrides>` would run, for notebooks, tests and lmms-eval.

    Raises:
        UserError: an unknown key or choice, or a value that can't be read.
    """
    words = spelled_out(overrides)
    prepare(words)
    try:
        with hydra_at_rest():
            config = hydra_compose(CONFIG, overrides=words)
    except Exception as error:  # of what a user may type much ends in Hydra as a bare ValueError or TypeError
        raise explained(error, words) from None
    return job_of(config, words)


def job_of(config: DictConfig, overrides: Sequence[str]) -> Job:
    """The job of a configuration that Hydra composed from these overrides.

    Raises:
        UserError: as `resolve`.
    """
    try:
        settle(config)
        return resolve(config, [typed(override) for override in overrides])
    except (OmegaConfBaseException, RecursionError) as error:  # interpolations, which are followed when they are read
        key = getattr(error, "full_key", None) or "configuration"
        why = "it is made of itself" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise UserError(f"{key}: {why}") from None


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


def prepare(words: Sequence[str], sweeping: bool = False) -> list[Override]:
    """Checks what Hydra would let pass or explain badly, and gives plug-ins a configuration; to call before Hydra.

    A method's configuration is its name and the options that its class declares. Only plug-ins that are named are
    imported.

    Args:
        words: spelled out.
        sweeping: whether a key may have several values.

    Raises:
        UserError: an unknown choice, several in one run, a plug-in that can't be imported.
    """
    overrides = [read(word) for word in words]
    plugins.load_all(plugin_files(overrides))
    store_methods()
    for word, override in zip(words, overrides, strict=True):
        key = override.key_or_group
        if override.is_sweep_override() and not sweeping:
            meant = f"several values are a sweep: python -m vtc -m …; a text with commas is quoted: {quoted(word)}"
            raise UserError(f"{word}: {meant}")
        if not is_listed(override):
            raise UserError(f"{word}: allowed in a sweep: values with commas between them, choice(…), range(…)")
        group, _, rest = key.partition(".")
        if rest == "name" and group in GROUPS:
            raise UserError(f"{word}: a choice has its own name; write {group}=…")
        if _is_group(key):
            _prepare_choice(word, key, values(override))
    check_additions(overrides)
    return overrides


def _prepare_choice(word: str, group: str, names: Sequence[Any]) -> None:
    """Checks the choices of a group, and makes those that have no file.

    Raises:
        UserError: as `prepare`.
    """
    allowed = choices(group)
    for name in names:
        if name == [] or isinstance(name, dict):
            raise UserError(f"{word}: allowed: at least one {group}, by its name")
        if isinstance(name, list):
            many = ",".join(map(str, name))
            raise UserError(f"{word}: one {group} a run; several are a sweep: python -m vtc -m {group}={many}")
        if group == "benchmark" and name in OWN_SUITES:
            store_suite(name)
        elif group == "method" and "+" in str(name):
            store_composition(str(name))
        elif str(name) not in allowed:
            raise unknown(group, "null" if name is None else name, allowed)
        elif name in unconfigured(group):
            ConfigStore.instance().store(group=group, name=name, node=NODES[group](name), provider="plug-in")


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


def check_additions(overrides: Sequence[Override]) -> None:
    """`+key=…` and `++key=…` name a key that exists.

    Hydra adds anything that is asked for with a plus, and a misspelt budget would be ignored in silence.
    """
    added = [o for o in overrides if o.is_add() or o.is_force_add()]
    added = [o for o in added if not _is_group(o.key_or_group) and not o.key_or_group.startswith("hydra")]
    if added:
        _check_keys(_base(overrides), added)


def backbone_settings(name: str, **changes: Any) -> BackboneSettings:
    """What `backbone=<name>` comes to, for whoever needs a backbone and no run.

    Args:
        changes: settings that the user would type.

    Raises:
        UserError: an unknown name, an unknown setting, or a value that it may not hold.
    """
    return from_mapping(BackboneSettings, vars(parse([f"backbone={name}"]).backbone) | changes, "backbone")


def explained(error: Exception, words: Sequence[str]) -> UserError:
    """Hydra's or OmegaConf's error in one line: the key, its value, what is allowed, the nearest match."""
    overrides = [read(word) for word in words]
    try:
        own = [o for o in overrides if not (o.is_add() or o.key_or_group.startswith("hydra"))]
        _check_keys(_base(overrides), own)
    except UserError as refusal:
        return refusal
    except Exception as deeper:  # the chosen groups alone fail as well
        error = deeper
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return unknown(group, name, error.options)
    for frame in traceback.extract_tb(error.__traceback__):
        if "hydra_plugins" in Path(frame.filename).parts[:-1] and "hydra" not in Path(frame.filename).parts:
            return UserError(f"{frame.filename}: a plug-in of Hydra that can't be imported ({error}); uninstall it")
    causes = (str(error), str(error.__cause__ or ""))
    lines = [line.strip() for text in causes for line in text.splitlines() if line.strip()]
    return UserError(" ".join(lines[:2]) or type(error).__name__)


def _check_keys(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Raises `UserError` for the first dotted key that the configuration doesn't have."""
    for override in overrides:
        if not _is_group(override.key_or_group):
            _check_key(config, override.key_or_group, override.input_line or override.key_or_group)


def _check_key(config: DictConfig, key: str, word: str) -> None:
    node: Any = config
    path = key.split(".")
    for depth, part in enumerate(path):
        prefix = ".".join(path[:depth])
        if isinstance(node, ListConfig):
            if not (part.isdecimal() and int(part) < len(node)):
                raise UserError(f"{word}: {prefix} is a list of {len(node)}; allowed: {prefix}=[…], {prefix}.0, …")
            if word.startswith("+"):  # an entry says what differs from its defaults, whose names `vtc.settings` knows
                return
        if isinstance(node, DictConfig) and part not in node:
            allowed = [str(k) for k in node if k not in ("hydra", "name")]
            if not prefix:
                allowed = sorted({*allowed, *SHORT, *(d.name for d in config_dir().iterdir() if d.is_dir())})
            close = nearest(part, allowed)
            if not prefix and (inside := " or ".join(f"'{name}.{part}'" for name in _sections_with(config, part))):
                close = f"; did you mean {inside}?"
            elif not prefix and not close:
                close = "; `python -m vtc --help` lists every key"
            name = f"method={config.method.get('name')}" if prefix == "method" else prefix
            where = f"; {name} has {', '.join(allowed) or 'no options'}" if prefix else ""
            raise UserError(f"{word}: unknown key '{key}'{where}{close}")
        if not isinstance(node, (DictConfig, ListConfig)):
            return
        inner: Any = int(part) if isinstance(node, ListConfig) else part
        if OmegaConf.is_interpolation(node, inner) or OmegaConf.is_missing(node, inner):
            return
        node = node[inner]


def _sections_with(config: DictConfig, key: str) -> list[str]:
    """The sections of the configuration that have this key."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    sections = {name: section for name, section in content.items() if name != "hydra" and isinstance(section, dict)}
    return [name for name, section in sections.items() if key in section]


def _is_group(key: str) -> bool:
    return not key.startswith("hydra") and (config_dir() / key).is_dir()  # Hydra's own groups have plug-ins' choices


def _base(overrides: Sequence[Override]) -> DictConfig:
    """The configuration with the chosen groups alone (the first of a sweep's)."""
    picks = []
    for override in overrides:
        if _is_group(override.key_or_group):
            first = values(override)[0]
            picks.append(f"{override.key_or_group}={'null' if first is None else first}")
    with hydra_at_rest():
        return hydra_compose(CONFIG, overrides=picks)
