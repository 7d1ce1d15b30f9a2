"""Names → classes: of methods, of families of models by their `model_type`, of sources of tasks, of recipes.

Built-ins are a table of import paths, so that listing names imports nothing heavy; third parties add theirs through the
entry points `vtc.methods`, `vtc.families` and `vtc.sources`, in a file (`vtc.plugins`), or with the `register`
decorator. The registry holds classes, never instances.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from typing import Any, TypeVar

from vtc import declarations
from vtc.errors import UserError, unknown

C = TypeVar("C", bound=type)
PART_BUDGETS = ("tokens", "ratio")  # that an earlier part of a composition may have, beside its method's options


def parts(name: str) -> dict[str, str]:
    """The methods that `name` puts together with +, by the key of their options: the method's name, numbered where it
    comes more than once. `fastv+fastv+avgpool` → {fastv1: fastv, fastv2: fastv, avgpool: avgpool}."""
    names = name.split("+")
    return {n if names.count(n) == 1 else f"{n}{names[: i + 1].count(n)}": n for i, n in enumerate(names)}


BROKEN: set[str] = set()  # plug-ins that were left out, and why, in words
UNREADABLE: set[str] = set()  # of other packages, those whose entry points nobody can read, torch neither


@dataclass(frozen=True)
class FromFile:
    """A class that a file of the user's brings (`vtc.plugins`).

    Attributes:
        file: as the user wrote it.
        content: hash of what is in the file.
    """

    cls: type
    file: str
    content: str


def check_packages() -> None:
    """Refuses an environment in which torch can't be imported, because it reads every package's entry points.

    Raises:
        UserError: it names the package that is in the way.
    """
    if UNREADABLE:
        raise UserError(f"{sorted(UNREADABLE)[0]}; torch can't be imported beside it: mend that file or uninstall it")


def entry_points(group: str) -> list[EntryPoint]:
    """The plug-ins of a group that other packages bring. What can't be read is left out, and named in `BROKEN`."""
    entries: dict[tuple[str, str], EntryPoint] = {}
    for package in distributions():
        where = getattr(package, "_path", package)
        try:
            all_of_them = package.entry_points
        except Exception as error:  # whatever its file may hold
            UNREADABLE.add(f"{where}: its entry points can't be read ({type(error).__name__}: {error})")
            BROKEN.add(f"plug-ins of {where}: left out ({type(error).__name__}: {error})")
            continue
        try:
            for entry in all_of_them:
                if entry.group == group:
                    if not re.fullmatch(r"[\w.-]+", entry.name) or not re.fullmatch(r"[\w.]+:[\w.]+", entry.value):
                        raise ValueError(f"{entry.name} = {entry.value}: a name of letters and digits = module:class")
                    entries.setdefault(
                        (package.metadata["Name"], entry.name), entry
                    )  # the first one on the path is the one imported
        except Exception as error:  # whatever its files may hold
            BROKEN.add(f"plug-ins of {where}: left out ({type(error).__name__}: {error})")
    return list(entries.values())


class Registry:
    """Names → classes for one kind of thing (`kind` is the config key that a user sets, e.g. "method").

    Lookup order: registered at run time, of a file, built in, installed plug-ins (entry points of `group`); then, of a
    kind that can be put together, several names with + between them, which `composed` (an import path) makes a class
    of. A plug-in must have the attributes `needed`; one in a file says its name in the attribute `named`.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: dict[str, str],
        composed: str | None = None,
        needed: tuple[str, ...] = (),
        named: str = "name",
    ) -> None:
        self.kind, self.group, self._composed, self._needed = kind, group, composed, needed
        self._builtin, self.named = dict(builtin), named
        self._registered: dict[str, type] = {}
        self._files: dict[str, FromFile] = {}
        self._entries: dict[str, EntryPoint] | None = None
        self._every: list[tuple[str, str]] = []

    def _plugins(self) -> dict[str, EntryPoint]:
        if self._entries is None:
            entries = entry_points(group=self.group)
            self._entries = {entry.name: entry for entry in entries}
            self._every = [(entry.name, _origin(entry)) for entry in entries]
        return self._entries

    def _check_alone(self, name: str) -> None:
        """Raises `UserError` where several packages, or one and vtc, have something of this name."""
        self._plugins()
        origins = self._origins(name)
        if len(origins) > 1:
            raise UserError(f"{self.kind}={name}: {' and '.join(origins)} have this name; uninstall all but one")

    def _origins(self, name: str) -> list[str]:
        """Who has something of this name, in words; files of the user's and what is registered in the process aside."""
        self._plugins()
        origins = [f"vtc's {self._builtin[name]}"] if name in self._builtin else []
        return origins + [origin for other, origin in self._every if other == name]

    def names(self) -> list[str]:
        """All names, sorted. Imports no method."""
        return sorted({*self._builtin, *self._registered, *self._files, *self._plugins()})

    def external(self) -> list[str]:
        """The names that are not built in, sorted: plug-ins', and those registered in this process."""
        return sorted({*self._registered, *self._files, *self._plugins()} - set(self._builtin))

    def takes(self, cls: type) -> bool:
        """Whether a class has what this kind of thing needs."""
        return all(hasattr(cls, attribute) for attribute in self._needed)

    def check_free(self, name: str, plugin: FromFile) -> None:
        """Refuses a class of a file whose name is taken, but by what the same file brought before.

        Raises:
            UserError: another file, a package, this process or vtc itself has something of this name: both are named.
        """
        origins = self._origins(name)
        if name in self._registered:
            origins.append(f"{self._registered[name].__qualname__}, registered in this process,")
        other = self._files.get(name)
        if other is not None and other.cls.__module__ != plugin.cls.__module__:
            origins.append(f"{other.cls.__name__} of {other.file}")
        if origins:
            mine = f"{plugin.cls.__name__} of {plugin.file}"
            raise UserError(f"{self.kind}={name}: {' and '.join([*origins, mine])} have this name; rename one")

    def add_file(self, name: str, plugin: FromFile) -> None:
        """Makes a class of a file known."""
        self._files[name] = plugin

    def forget_file(self, cls: type) -> None:
        """Takes a class of a file back."""
        self._files = {name: plugin for name, plugin in self._files.items() if plugin.cls is not cls}

    @contextmanager
    def taken_back(self) -> Iterator[dict[str, type]]:
        """What is registered inside is in the mapping behind it, and registered no more."""
        before, inside = dict(self._registered), dict[str, type]()
        try:
            yield inside
        finally:
            inside |= {name: cls for name, cls in self._registered.items() if before.get(name) is not cls}
            self._registered = before

    def version(self, name: str) -> int | str:
        """By what results of this class are known: the version that it declares, or, of one in a file of the user's
        that declares none of its own, the file's content.

        Raises:
            UserError: as `get`.
        """
        cls, plugin = self.get(name), self._files.get(name)
        return cls.version if plugin is None or "version" in vars(cls) else plugin.content[:16]

    def get(self, name: str) -> Any:
        """The class of `name`.

        Raises:
            UserError: no such name (with the nearest match), or a plug-in that can't be imported.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._files:
            return self._files[name].cls
        self._check_alone(name)
        if name in self._builtin:
            return imported(self._builtin[name])
        if name in self._plugins():
            entry = self._plugins()[name]
            try:
                plugin = entry.load()
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{self.kind}={name}: its plug-in {entry.value} can't be imported ({type(error).__name__}: {error})"
                ) from error
            if absent := [attribute for attribute in self._needed if not hasattr(plugin, attribute)]:
                raise UserError(
                    f"{self.kind}={name}: its plug-in {entry.value} has no {absent[0]}; see CONTRIBUTING.md"
                )
            return plugin
        if self._composed and "+" in name:
            return imported(self._composed)(name)
        raise unknown(self.kind, name, self.names())

    def register(self, name: str) -> Callable[[C], C]:
        """Decorator: `@methods.register("mine")` makes a class known under `name` in this process. One that was
        registered before under the same name is replaced, as a notebook's cell is that runs again.

        Raises:
            UserError: vtc itself or a package has something of this name: both are named.
        """

        def add(cls: C) -> C:
            if origins := self._origins(name):
                raise UserError(f"{self.kind}={name}: {origins[0]} and {cls.__qualname__} have this name; rename one")
            self._registered[name] = cls
            return cls

        return add

    def path(self, name: str) -> str | None:
        """The import path of a built-in class; None where `name` isn't built in."""
        return self._builtin.get(name)

    def describe(self, name: str) -> str:
        """One line about `name`, without importing it unless it was registered in this process."""
        if path := self.path(name):
            return declarations.read(path).about
        if name in self._registered:
            return declarations.line_of(self._registered[name])
        if name in self._files:
            return f"{declarations.line_of(self._files[name].cls)} ({self._files[name].file})".lstrip()
        if name in self._plugins():
            return _origin(self._plugins()[name])
        raise unknown(self.kind, name, self.names())


def _origin(entry: EntryPoint) -> str:
    """What a plug-in is, and whose."""
    return f"plug-in {entry.value}" + (f" of {entry.dist.name}" if entry.dist else "")


def imported(path: str) -> Any:
    """What an import path `module:attribute` names."""
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


methods = Registry(
    "method",
    "vtc.methods",
    {
        "avgpool": "vtc.methods.avgpool:AveragePooling",
        "cdpruner": "vtc.methods.cdpruner:CDPruner",
        "dart": "vtc.methods.dart:DART",
        "divprune": "vtc.methods.divprune:DivPrune",
        "downsample": "vtc.methods.downsample:Downsample",
        "dycoke": "vtc.methods.dycoke:DyCoke",
        "evs": "vtc.methods.evs:EVS",
        "fastervlm": "vtc.methods.fastervlm:FasterVLM",
        "fastv": "vtc.methods.fastv:FastV",
        "fastvid": "vtc.methods.fastvid:FastVID",
        "fitprune": "vtc.methods.fitprune:FitPrune",
        "fwd2bot": "vtc.methods.fwd2bot:Fwd2Bot",
        "hiprune": "vtc.methods.hiprune:HiPrune",
        "holitom": "vtc.methods.holitom:HoliTom",
        "holov": "vtc.methods.holov:HoloV",
        "kmeans": "vtc.methods.kmeans:KMeans",
        "llavolta": "vtc.methods.llavolta:LLaVolta",
        "m3": "vtc.methods.m3:M3",
        "mmtok": "vtc.methods.mmtok:MMTok",
        "mqt": "vtc.methods.mqt:MQT",
        "none": "vtc.methods.none:NoCompression",
        "pact": "vtc.methods.pact:PACT",
        "perceiver": "vtc.methods.perceiver:Perceiver",
        "ppe": "vtc.methods.ppe:PPE",
        "prumerge": "vtc.methods.prumerge:PruMerge",
        "prunesid": "vtc.methods.prunesid:PruneSID",
        "prunevid": "vtc.methods.prunevid:PruneVid",
        "pyramiddrop": "vtc.methods.pyramiddrop:PyramidDrop",
        "qformer": "vtc.methods.qformer:QFormer",
        "quecc": "vtc.methods.quecc:QueCC",
        "random": "vtc.methods.random:RandomDropping",
        "scope": "vtc.methods.scope:SCOPE",
        "single_forward": "vtc.methods.single_forward:SingleForward",
        "sparsevlm": "vtc.methods.sparsevlm:SparseVLM",
        "tokenpacker": "vtc.methods.tokenpacker:TokenPacker",
        "tome": "vtc.methods.tome:ToMe",
        "vcc": "vtc.methods.vcc:VCC",
        "victor": "vtc.methods.victor:Victor",
        "vidcom2": "vtc.methods.vidcom2:VidCom2",
        "visionzip": "vtc.methods.visionzip:VisionZip",
        "vispruner": "vtc.methods.vispruner:VisPruner",
        "voco": "vtc.methods.voco:VoCo",
        "vscan": "vtc.methods.vscan:VScan",
        "vtw": "vtc.methods.vtw:VTW",
    },
    composed="vtc.methods.chain:chain",
    needed=("declared_options", "reduce", "version"),
)

families = Registry(
    "backbone.family",
    "vtc.families",
    {
        "gemma3": "vtc.backbones.gemma3:Gemma3",
        "idefics3": "vtc.backbones.idefics3:Idefics3",
        "internvl": "vtc.backbones.internvl:InternVL",
        "llava": "vtc.backbones.llava:Llava",
        "llava_next": "vtc.backbones.llava_next:LlavaNext",
        "llava_onevision": "vtc.backbones.llava_onevision:LlavaOnevision",
        "qwen2_5_vl": "vtc.backbones.qwen_vl:Qwen2_5VL",
        "qwen2_vl": "vtc.backbones.qwen_vl:Qwen2VL",
        "qwen3_5": "vtc.backbones.qwen3_5:Qwen3_5",
        "qwen3_vl": "vtc.backbones.qwen_vl:Qwen3VL",
        "qwen3_vl_moe": "vtc.backbones.qwen_vl:Qwen3VLMoe",
        "smolvlm": "vtc.backbones.idefics3:SmolVLM",
        "video_llava": "vtc.backbones.video_llava:VideoLlava",
    },
    needed=("shape_of", "load", "version"),
    named="model_type",
)

# Not classes but functions of a job: how a training goes. `training.recipe=<name>`.
recipes = Registry(
    "training.recipe",
    "vtc.recipes",
    {
        "method": "vtc.training.recipes:train_method",
        "base": "vtc.pocket.base:train_base",
    },
)

# What batches are read from or drawn by (`vtc.data.training.source.TrainingSource`). `training.data.source=<name>`.
training_sources = Registry(
    "training.data.source",
    "vtc.training_sources",
    {
        "files": "vtc.data.training.source:FileSource",
        "pocket": "vtc.pocket.source:PocketSource",
        "pocket2": "vtc.pocket.source:PocketSource",
    },
)

sources = Registry(
    "benchmark",
    "vtc.sources",
    {
        "pocket": "vtc.pocket.tasks:PocketTasks",
        "pocket1": "vtc.pocket.tasks:PocketTasks",
        "pocket2_dense": "vtc.pocket.tasks:PocketTasks",
        "pocket2_video": "vtc.pocket.tasks:PocketTasks",
        "jsonl": "vtc.evaluation.sources.user_data:JsonlTasks",
        "hf": "vtc.evaluation.sources.user_data:HubTasks",
        "retrieval": "vtc.evaluation.sources.retrieval:RetrievalTasks",
        "mteb": "vtc.evaluation.sources.mteb:MtebTasks",
    },
    needed=("tasks", "specs"),
)
