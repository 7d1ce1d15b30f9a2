"""What can be chosen: the groups of `conf/` and of installed plug-ins, each with one line about it."""

from __future__ import annotations

from pathlib import Path

from vtc import registry, shipped

GROUPS = {
    "action": "what to do",
    "backbone": "the model whose visual tokens are compressed",
    "method": "the compression method",
    "benchmark": "what it is scored on",
    "training": "how it is trained (action=train)",
    "schedule": "training stages of a method that has them (LLaVolta)",
    "experiment": "complete presets: every setting of one experiment",
}

REGISTRIES = {"method": registry.methods, "backbone": registry.families, "benchmark": registry.sources}


def first_comment(file: Path) -> str:
    """The first comment line of a configuration file, Hydra's `# @package` directive aside."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""


def configured(group: str) -> dict[str, Path]:
    """The configuration files of a group by choice, without those that choices have in common (`_checkpoint.yaml`);
    empty where there is no such group.
    """
    folder = shipped.path("conf") / group
    return {f.stem: f for f in sorted(folder.glob("[!_]*.yaml"))} if folder.is_dir() else {}


def unconfigured(group: str) -> list[str]:
    """Names of a group with a class but no file in `conf/`: all methods, sources of tasks, families of plug-ins."""
    if group == "method":
        return registry.methods.names()
    named = {"backbone": registry.families.external, "benchmark": registry.sources.names}
    return sorted(set(named[group]()) - set(configured(group))) if group in named else []


def choices(group: str) -> dict[str, str]:
    """Every choice of a group with its line."""
    lines = {name: first_comment(file) for name, file in configured(group).items()}
    lines.update((name, REGISTRIES[group].describe(name)) for name in unconfigured(group))
    return lines
