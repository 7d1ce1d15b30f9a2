"""The recipes behind ``action=train``: the pocket base model from nothing, and a method on a backbone.

Every stage keeps its own folder with a log and a resumable checkpoint; a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtc.errors import UserError, unknown

RECIPES = ("base", "method")


def run(cfg: Mapping[str, Any]) -> Path:
    """Train what ``cfg`` asks for; see :func:`vtc.training.train`."""
    if not cfg.get("training"):  # a method without a recipe of its own: a plug-in, say
        from omegaconf import OmegaConf

        from vtc import shipped

        default = OmegaConf.load(shipped.path("conf/training/default.yaml"))
        cfg = {**_plain(cfg), "training": OmegaConf.to_container(default)}
    recipe = cfg["training"].get("recipe")
    if recipe not in RECIPES:
        raise unknown("training.recipe", recipe, RECIPES)
    return _base(cfg) if recipe == "base" else _method(cfg)


def _plan(stage: Mapping[str, Any]):
    from dataclasses import fields

    from vtc.training.loop import Plan

    allowed = {f.name for f in fields(Plan)}
    for key in stage:
        if key not in allowed | {"name", "train"}:
            raise unknown("training.stages[]", key, sorted(allowed | {"name", "train"}))
    try:
        return Plan(**{k: v for k, v in stage.items() if k in allowed})
    except TypeError as error:
        raise UserError(f"training.stages: stage {stage.get('name')!r}: {error}") from None


def _device(cfg: Mapping[str, Any]):
    import torch

    wanted = str((cfg.get("backbone") or {}).get("device", "auto"))
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def _provenance(cfg: Mapping[str, Any], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What made the weights: seeds, times, versions. Names no machine."""
    import torch
    import transformers

    from vtc import __version__

    return {
        "seed": cfg["seed"],
        "stages": reports,
        "seconds": round(sum(r["seconds"] for r in reports), 1),
        "hardware": {
            "device": torch.cuda.get_device_name() if _device(cfg).type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "vtc": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _logs(folder: Path, stages: list[str], target: Path) -> None:
    """One log beside the weights: every stage's, each line naming its stage."""
    with target.open("w") as out:
        for name in stages:
            for line in (folder / name / "log.jsonl").read_text().splitlines():
                out.write(json.dumps({"stage": name} | json.loads(line)) + "\n")


def _train(stage, cfg: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from vtc.training.loop import train_stage

    plan = _plan(config)
    report = train_stage(stage, plan, folder / config["name"], resume=cfg.get("resume", "auto") is not False)
    return {"name": config["name"], **report, "plan": {k: v for k, v in config.items() if k not in ("name",)}}


def _folder(cfg: Mapping[str, Any], name: str) -> Path:
    given = cfg["training"].get("folder")
    return Path(given) if given else Path(cfg["output_dir"]) / "training" / name


def _base(cfg: Mapping[str, Any]) -> Path:
    """The pocket model: tower, locate, language, align, instruct (:mod:`vtc.pocket.recipe`)."""
    import torch

    from vtc.pocket import recipe
    from vtc.pocket.model import build_model, build_processor

    if cfg["backbone"]["name"] != "pocket":
        raise UserError(f"training.recipe=base makes the pocket model; backbone={cfg['backbone']['name']} was given")
    config, seed = cfg["training"], int(cfg["seed"])
    stages = {s["name"]: s for s in config["stages"]}
    names = ("tower", "locate", "language", "align", "instruct")
    if tuple(stages) != names:
        given = ", ".join(stages)
        raise UserError(f"training.stages: the base recipe has {', '.join(names)}, in this order; got {given}")
    for stage in config["stages"]:
        _plan(stage)
    folder = _folder(cfg, "pocket")
    device = _device(cfg)
    model = build_model(seed).to(device)
    data = config["data"]

    def questions(count: int, first_share: float) -> tuple:
        kinds = tuple(data["first_kinds"]), first_share
        return model, seed, int(data["batch_size"]), count, dict(data["weights"]), *kinds

    tower = recipe.TowerStage(model, seed, int(data["tower_batch_size"]))
    language = recipe.LanguageStage(*questions(int(data["questions"]), float(data["first_share"])))
    makers: dict[str, Callable[[], Any]] = {
        "tower": lambda: tower,
        "locate": tower.locate,
        "language": lambda: language,
        "align": lambda: recipe.AlignStage(model, language.places, seed, int(data["tower_batch_size"])),
        "instruct": lambda: recipe.InstructStage(
            *questions(int(data["instruct_questions"]), 0.0), contrastive=float(data["contrastive"])
        ),
    }
    reports = []
    for name in names:
        stage = makers[name]()
        stage.to(device)
        reports.append(_train(stage, cfg, stages[name], folder))
        if name == "align":
            _save_model(model, folder / "aligned", build_processor())
    with torch.no_grad():
        target = _save_model(model, folder / "weights", build_processor())
    recipe_config = {k: v for k, v in _plain(config).items() if k != "folder"}
    provenance = {"backbone": "pocket", "recipe": recipe_config} | _provenance(cfg, reports)
    (target / "training.json").write_text(json.dumps(provenance, indent=2) + "\n")
    _logs(folder, list(names), target / "training.jsonl")
    return target


ALIGNED = "benchmarks/pocket/weights/aligned"


def _starting_from(cfg: Mapping[str, Any], pretrained: str | None) -> Any:
    """The configuration with the backbone's weights of before: ``aligned`` is pocket before it was instructed."""
    from omegaconf import OmegaConf

    from vtc import shipped

    if pretrained is None:
        return cfg
    if pretrained == "aligned":
        if cfg["backbone"]["name"] != "pocket":
            raise UserError("training.pretrained=aligned: pocket has such weights; give a folder or null")
        pretrained = str(shipped.path(ALIGNED))
    return OmegaConf.merge(OmegaConf.create(_plain(cfg)), {"backbone": {"pretrained": pretrained}})


def _plain(config: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else dict(config)


def _save_model(model, folder: Path, processor) -> Path:
    """An ordinary transformers folder, weights in bfloat16 (half the size; scores are those of the rounded weights)."""
    import copy

    import torch

    half = copy.deepcopy(model).to("cpu", torch.bfloat16)
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _method(cfg: Mapping[str, Any]) -> Path:
    """A compression method on a backbone: the stages that the configuration lists, one after the other."""
    from vtc.assemble import assemble
    from vtc.training import checkpoint
    from vtc.training.method_stage import PARTS, MethodStage

    config, seed = cfg["training"], int(cfg["seed"])
    for stage in config["stages"]:
        _plan(stage)
        for part in stage["train"]:
            if part not in PARTS:
                raise unknown("training.stages[].train", part, PARTS)
    start = config.get("start")
    if start and not os.path.isdir(start):
        raise UserError(f"training.start={start!r}: no such folder; give a checkpoint to start from, or null")
    backbone, method = assemble(_starting_from(cfg, config.get("pretrained")), trained=False)
    method.attach(backbone)
    if start:
        checkpoint.load(start, backbone, method, fit=False)
    budget = "" if method.tokens is None else f"-{method.tokens}"
    folder = _folder(cfg, f"{backbone.name}-{method.name}{budget}")
    reports, trained = [], set()
    for stage_config in config["stages"]:
        stage = MethodStage(stage_config["name"], backbone, method, stage_config["train"], config["data"], seed)
        stage.to(backbone.device)
        trained |= {n.removeprefix("backbone.") for n in stage.trained if n.startswith("backbone.")}
        reports.append(_train(stage, cfg, stage_config, folder))
    manifest = {
        "backbone": backbone.name,
        "method": method.name,
        "tokens": method.tokens,
        "options": _plain(cfg["method"]),
        "training": {k: v for k, v in _plain(config).items() if k != "folder"},
    } | _provenance(cfg, reports)
    import torch

    dtype = torch.bfloat16 if config.get("store", "bfloat16") == "bfloat16" else None
    target = checkpoint.save(folder / "weights", backbone, method, manifest, trained, dtype)
    _logs(folder, [s["name"] for s in config["stages"]], target / "training.jsonl")
    return target
