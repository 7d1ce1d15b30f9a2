"""The words of a command line: read one by one, and spelled out as Hydra takes them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vtc import plugins, shipped
from vtc.budget import BUDGETS
from vtc.configuration.choices import configured
from vtc.errors import UserError
from vtc.settings import SHORT_DTYPES, SIDE_BY_SIDE

ERRORS = (HydraException, OmegaConfBaseException)
PARSER = OverridesParser.create()
UNSET = ("schedule", "experiment")  # groups of which none is chosen where nothing is said
TUNE = "tune"  # the action to which several values of a key are what it may choose
OWN_SUITES: dict[str, str] = {}  # name → the file that `benchmark=` names

# Settings of a section that are keys of their own too, with the words of --help; of the backbone, or as `SECTION` says.
SECTION = {"weights": "profile"}
SHORT = {
    "pretrained": "a transformers folder or hub id of the backbone's architecture",
    "dtype": "bf16, fp16, fp32, or auto: as the weights are stored",
    "device": "auto, cpu, cuda, cuda:<n>, mps",
    "device_map": "auto: spread over the GPUs there are; balanced, balanced_low_0, sequential",
    "attention": "sdpa, flash_attention_2, eager",
    "quantization": "4bit, 8bit: the decoder's weights (pip install 'vtc[quant]'); none",
    "weights": "of action=profile: random, of the backbone's sizes and without a download; stored",
}
# Keys whose value is a text whatever it looks like: a folder may be called 1e3.
TEXTS = {"output_dir", "data", "checkpoint", "pretrained", "backbone.pretrained", "benchmark.data", "report.output",
         "report.title", "training.folder", "training.start", "training.pretrained", "a", "b", "compare.a", "compare.b",
         "compare.output", "visualize.image", "visualize.question", "visualize.output", "store", "images", "image",
         "query", "question", "html", "method.recipe", "calibrate.path", "calibrate.images",
         "calibrate.output"}  # fmt: skip


def read(word: str) -> Override:
    """A word of the command line as Hydra reads it.

    Raises:
        UserError: it can't be read, removes a key, names a package, leaves the value open or names a home that isn't.
    """
    try:
        override = PARSER.parse_override(word)
    except ERRORS:
        raise _unreadable(word) from None
    if override.is_delete():
        key = override.key_or_group
        raise UserError(f"{word}: keys can't be removed; where a key may be empty, write {key}=null")
    if override.package is not None:
        raise UserError(f"{word}: a key has no @; settings are written key=value")
    for value in values(override) if is_listed(override) else ():
        for text in value if isinstance(value, list) else [value]:
            if str(text) == "???":
                raise UserError(f"{word}: a value is needed")
            if str(text).startswith("~") and os.path.expanduser(str(text)).startswith("~"):
                raise UserError(f"{word}: {str(text).partition('/')[0]} is nobody's home folder")
    return override


def _unreadable(word: str) -> UserError:
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"\+{0,2}[\w./]+", key, re.ASCII):
        return UserError(f"{word}: settings are written key=value, for example method=fastv; see --help")
    closed = "; what opens with a bracket or a quote is closed" if value[:1] in tuple("[{('\"") else ""
    return UserError(f"{word}: can't be read as key=value; a text is quoted: {quoted(word)}{closed}")


def quoted(word: str) -> str:
    """The word with its value in quotes, as one types it in a shell."""
    return shlex.quote(_with_quotes(word))


def _with_quotes(word: str) -> str:
    """In quotes a backslash before a quote or at the end is doubled, a quote and an interpolation have one before."""
    key, _, value = word.partition("=")
    text = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return f'{key}="{text.replace("${", chr(92) + "${")}"'


def values(override: Override) -> list[Any]:
    """The values that an override takes: one, or those of its sweep."""
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def spelled_out(words: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: `dtype=bf16` as `backbone.dtype=bf16` (every key of `SHORT`), a list
    of methods as one choice, a method in a file as its name with the file among `plugins`, the file of a suite as its
    name, a text as a text. Of a key that stands twice the last value counts, as it does for Hydra.

    Raises:
        UserError: a word that can't be read, or a key that is given by both of its names with different values.
    """
    typed_words = words
    words, drawn = gathered(words)
    out: dict[str, tuple[str, str, list[str], str]] = {}  # key → the one that was typed, its word and values, for Hydra
    for word in words:
        override = read(word)
        key = override.key_or_group
        long = f"{SECTION.get(key, 'backbone')}.{key}" if key in SHORT else key
        listed = [short_dtype(value) for value in values(override)] if is_listed(override) else [override.value()]
        means = [*map(repr, listed)]
        typed_key, earlier, meant, _ = out.pop(long, (key, word, means, ""))
        if typed_key != key and meant != means:
            raise UserError(f"{earlier}, {word}: one key, two values; give one of the two")
        if key not in UNSET or listed != [None]:
            out[long] = key, word, means, _spelled_out(word, override, long)
    written = [*(text for *_, text in out.values()), *drawn]
    files = plugin_files([read(word) for word in typed_words])
    if not files:
        return written
    names = ",".join(
        file if re.fullmatch(r"[\w./-]+", file, re.ASCII) else _with_quotes(f"={file}")[1:] for file in files
    )
    return [*(word for word in written if word.lstrip("+").partition("=")[0] != "plugins"), f"plugins=[{names}]"]


def gathered(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of an action to which several values are one job.

    `action=visualize method=[a,b] tokens=[64,16]` is no composition with a budget for each part, but each method at
    each budget; `action=tune method=a,b tokens=16,64` is no sweep, but what may be chosen.

    Returns:
        The words with one method and budget alone, and words for all of them, spelled out.

    Raises:
        UserError: a method in a file that has no such method; a sweep where a list is meant.
    """
    overrides = [read(word) for word in words]
    action = next((str(o.value()) for o in reversed(overrides) if o.key_or_group == "action"), "")
    if action == TUNE:
        return _choices(words, overrides)
    if action not in SIDE_BY_SIDE:
        return [*words], []
    kept, out = [], dict[str, str]()
    for word, override in zip(words, overrides, strict=True):
        key = override.key_or_group
        if key not in ("method", *BUDGETS) or (value := override.value()) is None or value == []:
            kept.append(word)
            continue
        if override.is_sweep_override():
            raise UserError(f"{word}: side by side is a list, {key}=[{','.join(map(str, values(override)))}]")
        several = value if isinstance(value, list) else [value]
        if key == "method":
            out["methods"] = f"{action}.methods=[{','.join(_by_name(name) for name in several)}]"
        else:
            out["budgets"] = f"{action}.budgets=[" + ",".join(f"'{key}={share}'" for share in several) + "]"
        kept.append(f"{key}={several[0]}")
    return kept, [*out.values()]


def _choices(words: Sequence[str], overrides: Sequence[Override]) -> tuple[list[str], list[str]]:
    """As `gathered`, of `action=tune`; an option of a method that is among the choices may be unknown to the first."""
    kept, space = [], []
    for word, override in zip(words, overrides, strict=True):
        if not override.is_sweep_override() or not is_listed(override):
            kept.append(word)
            continue
        key, listed = override.key_or_group, values(override)
        if key == "method":
            listed = ["+".join(map(_by_name, v)) if isinstance(v, list) else _by_name(v) for v in listed]
            kept.append(f"{key}={listed[0]}")
        space.append(f"{key}={','.join('null' if value is None else str(value) for value in listed)}")
    return kept, ["tune.space=[" + ",".join(f"'{word}'" for word in space) + "]"] if space else []


def plugin_files(overrides: Sequence[Override]) -> list[str]:
    """The files of `plugins=[…]`, and those of methods that are named by their file, in order.

    Raises:
        UserError: `plugins` is no list.
    """
    files: list[str] = []
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key == "plugins":
            if not isinstance(value, list) or override.is_sweep_override():
                raise UserError(f"{override.input_line}: allowed: a list of files, plugins=[./my_method.py]")
            files = [*map(str, value), *files]
        elif key == "method" and is_listed(override):
            files += [file for part in _parts(override) if (named := plugins.split(part)) for file in named[:1]]
    return [*dict.fromkeys(files)]


def _parts(override: Override) -> list[str]:
    """Each method that `method=…` names, those of a composition and of a sweep one by one."""
    flat = (part for value in values(override) for part in (value if isinstance(value, list) else [value]))
    return [name for part in flat for name in str(part).split("+")]


def _by_name(method: Any) -> str:
    """A method as it is chosen: by its name, of one in a file that of its class; parts with + between them.

    Raises:
        UserError: a file that has no such method.
    """
    names = str(method).split("+")
    return "+".join(plugins.method_of(*named) if (named := plugins.split(name)) else name for name in names)


def is_listed(override: Override) -> bool:
    """Whether its values can be told."""
    return override.value_type not in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP)


def _spelled_out(word: str, override: Override, long: str) -> str:
    """One word; see `spelled_out`.

    Raises:
        UserError: a suite that is called as a shipped one is.
    """
    key = override.key_or_group
    head, _, raw = word.partition("=")
    if key == "benchmark" and str(override.value()).endswith(".yaml") and not override.is_sweep_override():
        file = str(override.value())
        name = Path(file).stem
        if name in configured("benchmark"):
            raise UserError(f"{word}: {name} is a shipped benchmark; give the file another name")
        OWN_SUITES[name] = file
        return f"benchmark={name}"
    listed = key == "method" and is_listed(override)
    if listed and (
        any(map(plugins.split, _parts(override))) or any(isinstance(v, list) and v for v in values(override))
    ):
        names = ["+".join(map(_by_name, v)) if isinstance(v, list) else _by_name(v) for v in values(override)]
        return f"{head}={','.join(names)}"
    plain = not override.is_sweep_override() and isinstance(override.value(), (str, int, float))
    if key in TEXTS and plain and raw[:1] not in ("'", '"') and "\\" not in raw and override.value() != raw:
        word = _with_quotes(word)
    return f"{head.removesuffix(key)}{long}{word[len(head) :]}"


def short_dtype(value: Any) -> Any:
    """`bf16` as bfloat16; anything else as it is."""
    return SHORT_DTYPES.get(value, value) if isinstance(value, str) else value


def typed(override: str) -> str:
    """An override as the user typed it: a suite by its file again."""
    key, _, value = override.partition("=")
    return f"{key}={OWN_SUITES[value]}" if key == "benchmark" and value in OWN_SUITES else override


def swept_by_experiment(words: Sequence[str]) -> list[str]:
    """The words of the sweep that the chosen experiment is (`hydra.sweeper.params` of its file), but for keys that the
    command line has itself; empty where it is none."""
    typed_keys = {(override := read(word)).key_or_group: override for word in words}
    chosen = typed_keys.get("experiment")
    if chosen is None or chosen.is_sweep_override() or str(chosen.value()) not in configured("experiment"):
        return []
    file = shipped.path(f"conf/experiment/{chosen.value()}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    params = ((content.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    return [f"{key}={value}" for key, value in params.items() if key not in typed_keys]


def swept(overrides: Sequence[Override]) -> dict[str, int]:
    """The keys that `-m` varies, with how many values each."""
    return {override.key_or_group: len(values(override)) for override in overrides if override.is_sweep_override()}
