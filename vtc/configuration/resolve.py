"""From a composed configuration to a `Job`: the one place where OmegaConf's types become ours."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vtc import plugins, shipped
from vtc.allowed import one_of
from vtc.backbones.random_weights import narrowed
from vtc.budget import BUDGETS, EACH, Budget
from vtc.configuration import validation
from vtc.configuration.methods import with_files
from vtc.errors import UserError
from vtc.job import Job
from vtc.settings import (
    FOLDER,
    AblationSettings,
    BackboneSettings,
    BenchmarkSettings,
    CalibrateSettings,
    CompareSettings,
    DemoSettings,
    MethodSettings,
    NewMethodSettings,
    ProfileSettings,
    ReportSettings,
    TrainingSettings,
    TuneSettings,
    VisualizeSettings,
    from_mapping,
)
from vtc.settings.run import several_of
from vtc.settings.store import ACTIONS, StoreSettings

GENERAL = (
    "action",
    "checkpoint",
    "costs",
    "retry",
    "seed",
    "batch_size",
    "workers",
    "tower_cache",
    "resume",
    "dry_run",
)  # of the top level, as a job has them
LAYER_SCALES = one_of("auto", "none")
PLUGINS = Job.__dataclass_fields__["plugins"].metadata["allowed"]


def resolve(config: DictConfig, overrides: Sequence[str] | None = None) -> Job:
    """The job that a configuration asks for.

    Args:
        config: composed and settled (`vtc.configuration.compose`).
        overrides: as typed.

    Raises:
        UserError: a key that is missing or unknown, a value that isn't allowed, a file that isn't there.
    """
    values: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
    )
    missing = sorted(OmegaConf.missing_keys(config))
    if values["action"] == "train" and (absent := [key for key in missing if key.startswith("training")]):
        key = re.sub(r"\[(\d+)\]", r".\1", absent[0])
        raise UserError(f"{absent[0]}: the recipe needs it; give {key}=…")
    FOLDER.check("output_dir", values["output_dir"])
    PLUGINS.check("plugins", values["plugins"])
    plugins.load_all(values["plugins"])  # once more where a launcher's worker has the configuration alone
    method = dict(values["method"])
    name = method.pop("name")
    profile = from_mapping(ProfileSettings, values["profile"], "profile") if values.get("profile") else None
    job = from_mapping(
        Job,
        {key: values[key] for key in GENERAL}
        | {
            "plugins": tuple(values["plugins"]),
            "log": several_of(values["log"]) or (),
            "backbone": _backbone(values, profile),
            "method": MethodSettings(name, with_files(method, name, values["backbone"]["name"])),
            "budget": Budget(**{key: values.get(key) for key in BUDGETS}, spread=values.get("budget", EACH)),
            "benchmark": from_mapping(BenchmarkSettings, values["benchmark"], "benchmark"),
            "profile": profile,
            "training": _training(values),
            "report": from_mapping(ReportSettings, values.get("report") or {}, "report"),
            "compare": from_mapping(CompareSettings, values.get("compare") or {}, "compare"),
            "visualize": from_mapping(VisualizeSettings, values.get("visualize") or {}, "visualize"),
            "demo": from_mapping(DemoSettings, values.get("demo") or {}, "demo"),
            "tune": from_mapping(TuneSettings, values.get("tune") or {}, "tune"),
            "calibrate": from_mapping(CalibrateSettings, values.get("calibrate") or {}, "calibrate"),
            "ablation": _ablation(values, overrides),
            "new_method": _new_method(values),
            "store": _store(values),
            "output_dir": Path(os.path.expanduser(str(values["output_dir"]))),
            "overrides": None if overrides is None else tuple(overrides),
        },
    )
    LAYER_SCALES.check("layer_scale", values["layer_scale"])
    validation.check(job, values)
    return job


def _backbone(values: dict[str, Any], profile: ProfileSettings | None) -> BackboneSettings:
    """The backbone, as narrow as `profile.width` has it."""
    backbone = from_mapping(BackboneSettings, values["backbone"], "backbone")
    if profile is None or profile.width == 1:
        return backbone
    if profile.weights != "random":
        raise UserError(f"profile.width={profile.width}: stored weights have the width they have; give weights=random")
    if not backbone.is_released or backbone.sizes is None:
        raise UserError(
            f"profile.width={profile.width}: backbone={backbone.name} states no sizes; allowed: the choices in "
            "conf/backbone that do, with their released weights"
        )
    return dataclasses.replace(backbone, sizes=narrowed(backbone.sizes, profile.width, backbone.name))


def _training(values: dict[str, Any]) -> TrainingSettings | None:
    """The recipe: the method's own, or, of a method without one (a plug-in, say), the default one."""
    if values["action"] not in ("train", "ablate"):
        return None
    recipe = values.get("training")
    if not recipe:
        recipe = yaml.safe_load(shipped.path("conf/training/default.yaml").read_text(encoding="utf-8"))
    return TrainingSettings.of(recipe)


def _new_method(values: dict[str, Any]) -> NewMethodSettings | None:
    if values["action"] != "new_method":
        return None
    return from_mapping(NewMethodSettings, {key: values[key] for key in ("name", "kind")})


def _store(values: dict[str, Any]) -> StoreSettings | None:
    if values["action"] not in ACTIONS:
        return None
    known = {field.name for field in dataclasses.fields(StoreSettings)}
    settings = from_mapping(StoreSettings, {key: value for key, value in values.items() if key in known})
    settings.check(values["action"])
    return settings


def _ablation(values: dict[str, Any], overrides: Sequence[str] | None) -> AblationSettings | None:
    if not values.get("ablation"):
        return None
    return AblationSettings(
        name=str(values["ablation"]["name"]),
        variants=values.get("variants"),
        seeds=values.get("seeds", (0,)),
        trained=values.get("trained", ()),
        overrides=tuple(overrides or ()),
    )
