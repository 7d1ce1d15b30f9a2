"""The recipes behind ``action=train``: the pocket base model from nothing, and a method on a backbone.

Every stage keeps its own folder with a log and a resumable checkpoint; a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import distributed
from vtc.errors import UserError, unknown
from vtc.training import track

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

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
    _check_quantization(cfg)
    track.check(cfg["training"].get("log") or ())
    if cfg["training"].get("dry_run") or cfg.get("dry_run"):
        if recipe == "base":
            raise UserError("dry_run: the pocket model is small enough to be trained; it plans a method's stages")
        return _dry_run(cfg)
    distributed.begin(cpu=_device(cfg).type == "cpu")
    return _base(cfg) if recipe == "base" else _method(cfg)


def _check_quantization(cfg: Mapping[str, Any]) -> None:
    quantization = (cfg.get("backbone") or {}).get("quantization") or "none"
    if quantization != "none":
        raise UserError(
            f"backbone.quantization={quantization}: quantised weights are there to answer with, not to be trained; "
            "train with quantization=none and evaluate the checkpoint with it"
        )


def _dry_run(cfg: Mapping[str, Any]) -> Path:
    """Says what would be trained, and where its weights would be; trains nothing."""
    from vtc.training.plan import describe

    for line in describe(cfg):
        print(line, flush=True)
    return training_folder(cfg)


STAGE_KEYS = ("name", "train", "data", "epochs", "compress")  # of a stage, beside those of `vtc.training.loop.Plan`


def _plan(stage: Mapping[str, Any], config: Mapping[str, Any], size: int | None = None):
    """How a stage is trained; `epochs` become steps where the source has a `size`.

    Raises:
        UserError: a key that a stage doesn't have, both or neither of steps and epochs.
    """
    from dataclasses import fields

    from vtc.training.loop import Plan

    allowed = sorted({f.name for f in fields(Plan)} | set(STAGE_KEYS))
    for key in stage:
        if key not in allowed:
            raise unknown("training.stages[]", key, allowed)
    given = {key: stage[key] for key in stage if key not in STAGE_KEYS}
    epochs, where = stage.get("epochs"), f"training.stages: stage {stage.get('name')!r}"
    if (epochs is None) == (given.get("steps") is None):
        raise UserError(f"{where}: give steps= or epochs=, one of them")
    if epochs is not None:
        batch = int((config["data"] | dict(stage.get("data") or {}))["batch_size"])
        given["steps"] = max(1, math.ceil(float(epochs) * size / batch)) if size else 1
    for key in ("accumulate", "keep"):
        if config.get(key) is not None:
            given.setdefault(key, config[key])
    try:
        return Plan(**given)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def slow_bf16(stages: Sequence[Mapping[str, Any]], device: str) -> str | None:
    """A line for stages that ask for bfloat16 where the processor has no instructions for it, else None.

    On an AVX2 machine a product of matrices took 35 times as long as in float32, and nobody would see why.
    """
    import torch

    asked = [i for i, stage in enumerate(stages) if stage.get("bf16")]
    if not asked or device != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    instead = " ".join(f"training.stages.{i}.bf16=false" for i in asked)
    return f"bf16=true: this processor (AVX2) is many times slower in bfloat16 than in float32; quicker here: {instead}"


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
    """One log beside the weights: every stage's, each line naming its stage. The main process alone writes."""
    if not distributed.is_main():
        return
    with target.open("w") as out:
        for name in stages:
            for line in (folder / name / "log.jsonl").read_text().splitlines():
                out.write(json.dumps({"stage": name} | json.loads(line)) + "\n")


def _train(stage, cfg: Mapping[str, Any], config: Mapping[str, Any], folder: Path, size: int | None = None):
    from vtc.training.loop import train_stage

    plan = _plan(config, _plain(cfg["training"]), size)
    report = train_stage(
        stage,
        plan,
        folder / config["name"],
        resume=cfg.get("resume", "auto") is not False,
        seed=int(cfg["seed"]),
        config=_identity(cfg),
        log=cfg["training"].get("log") or (),
    )
    return {"name": config["name"], **report, "plan": {k: v for k, v in config.items() if k not in ("name",)}}


# What does not change the weights that a training ends with.
_NOT_IDENTITY = ("folder", "dry_run", "log", "workers", "keep", "recipe", "store", "checkpointing")


def _identity(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on: backbone, method, budget, data, stages, seed."""
    config = _plain(cfg)
    own = {k: v for k, v in config["training"].items() if k not in _NOT_IDENTITY}
    backbone = {k: config["backbone"].get(k) for k in ("name", "pretrained")}
    keys = ("method", "tokens", "ratio", "compression", "flops", "layer_scale", "seed")
    return {"recipe": own, "backbone": backbone} | {k: config.get(k) for k in keys}


def training_id(cfg: Mapping[str, Any]) -> str:
    """Eight hex digits that name a training: of the same backbone, method, budget, data, stages and seed, the same."""
    from vtc.results import hash_config

    return hash_config(_identity(cfg))[:8]


def training_folder(cfg: Mapping[str, Any], name: str | None = None) -> Path:
    """Where a training keeps its states, logs and weights: `training.folder`, else a folder of its own by its id."""
    given = cfg["training"].get("folder")
    if given:
        return Path(given)
    if name is None:
        method = cfg["method"] if isinstance(cfg["method"], str) else cfg["method"]["name"]
        budget = "" if cfg.get("tokens") is None else f"-{cfg['tokens']}"
        name = f"{cfg['backbone']['name']}-{method}{budget}"
    return Path(cfg["output_dir"]) / "training" / f"{name}-{training_id(cfg)}"


def _base(cfg: Mapping[str, Any]) -> Path:
    """The pocket model: tower, locate, language, align, instruct (:mod:`vtc.pocket.recipe`)."""
    import torch

    from vtc.backbones import wrap
    from vtc.methods import build
    from vtc.pocket import recipe
    from vtc.pocket.model import build_model, build_processor
    from vtc.pocket.source import PocketSource
    from vtc.training.method_stage import MethodStage

    if cfg["backbone"]["name"] != "pocket":
        raise UserError(f"training.recipe=base makes the pocket model; backbone={cfg['backbone']['name']} was given")
    config, seed = cfg["training"], int(cfg["seed"])
    stages = {s["name"]: s for s in config["stages"]}
    names = ("tower", "locate", "language", "align", "instruct")
    if tuple(stages) != names:
        given = ", ".join(stages)
        raise UserError(f"training.stages: the base recipe has {', '.join(names)}, in this order; got {given}")
    for stage in config["stages"]:
        _plan(stage, config)
    folder = training_folder(cfg, "pocket")
    device = _device(cfg)
    model = build_model(seed).to(device)
    data = config["data"]
    tower = recipe.TowerStage(model, seed, int(data["tower_batch_size"]))
    language = recipe.LanguageStage(model, data, seed)

    def instruct() -> MethodStage:
        """LLaVA's second stage, of the uncompressed model; half of its pictures are recoloured neighbours."""
        backbone = wrap(model, build_processor())
        asked = {**data, "questions": data["instruct_questions"], "twins": True}
        source = PocketSource("instruct", asked, seed, embed=True)
        none, parts = build("none", None, backbone.shape), ("projector", "decoder")
        return MethodStage("instruct", backbone, none, parts, source, contrastive=float(data["contrastive"]))

    makers: dict[str, Callable[[], Any]] = {
        "tower": lambda: tower,
        "locate": tower.locate,
        "language": lambda: language,
        "align": lambda: recipe.AlignStage(model, language.places, seed, int(data["tower_batch_size"])),
        "instruct": instruct,
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
    if distributed.is_main():
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

    if distributed.is_main():
        half = copy.deepcopy(model).to("cpu", torch.bfloat16)
        half.save_pretrained(folder)
        processor.save_pretrained(folder)
    distributed.barrier()
    return folder


def _source(name: str, data: Mapping[str, Any], backbone: Backbone, method: Compressor, seed: int) -> Any:
    """Files where the configuration names some, else pocket's own scenes."""
    if data.get("path") or data.get("sources"):
        from vtc.data.training import Source

        return Source(data, backbone, seed)
    if backbone.name != "pocket":
        raise UserError(
            f"training.data: backbone={backbone.name} needs data.path=<file>; only pocket draws scenes of its own"
        )
    from vtc.interface import SelfCompressor
    from vtc.pocket.source import PocketSource

    embed = float(data.get("contrastive", 0.0)) > 0 and not isinstance(method, SelfCompressor)
    return PocketSource(name, data, seed, embed)


def _method(cfg: Mapping[str, Any]) -> Path:
    """A compression method on a backbone: the stages that the configuration lists, one after the other."""
    import torch

    from vtc import checkpoint
    from vtc.assemble import assemble, tune
    from vtc.training.method_stage import LOSSES, MethodStage
    from vtc.training.parts import PARTS

    config, seed = _plain(cfg["training"]), int(cfg["seed"])
    for stage in config["stages"]:
        _plan(stage, config)
        for part in stage["train"]:
            if part not in PARTS:
                raise unknown("training.stages[].train", part, PARTS)
    losses = config.get("losses", "both")
    if losses not in LOSSES:
        raise unknown("training.losses", losses, LOSSES)
    start = config.get("start")
    if start and not os.path.isdir(start):
        raise UserError(f"training.start={start!r}: no such folder; give a checkpoint to start from, or null")
    folder = training_folder(cfg)
    target = folder / "weights"
    if cfg.get("resume", "auto") is not False and (target / checkpoint.MANIFEST).is_file():
        return target
    if (slow := slow_bf16(config["stages"], _device(cfg).type)) and distributed.is_main():
        print(slow, flush=True)
    torch.manual_seed(seed)  # of what starts at random: registers, summary tokens, adapters; the same in every process
    backbone, method = assemble(_starting_from(cfg, config.get("pretrained")), trained=False)
    method.attach(backbone)
    tune(backbone, method, config.get("lora"))
    if start:
        checkpoint.load(start, backbone, method, fit=False)
    reports, trained = [], set()
    for stage_config in config["stages"]:
        name, data = stage_config["name"], config["data"] | dict(stage_config.get("data") or {})
        source = _source(name, data, backbone, method, seed)
        stage = MethodStage(
            name,
            backbone,
            method,
            stage_config["train"],
            source,
            losses=losses,
            contrastive=float(data.get("contrastive", 0.0)),
            checkpointing=bool(config.get("checkpointing", False)),
            compress=bool(stage_config.get("compress", True)),
            workers=int(config.get("workers") or 0),
            seed=seed,
        )
        stage.to(backbone.device)
        trained |= {n.removeprefix("backbone.") for n in stage.trained if n.startswith("backbone.")}
        reports.append(_train(stage, cfg, stage_config, folder, len(source) if hasattr(source, "__len__") else None))
    manifest = {
        "backbone": backbone.name,
        "method": method.name,
        "tokens": None if method.elastic else method.tokens,
        "options": _plain(cfg["method"]),
        "training": {k: v for k, v in config.items() if k != "folder"},
    } | _provenance(cfg, reports)
    dtype = torch.bfloat16 if config.get("store", "bfloat16") == "bfloat16" else None
    checkpoint.save(target, backbone, method, manifest, trained, dtype)
    _logs(folder, [s["name"] for s in config["stages"]], target / "training.jsonl")
    return target
