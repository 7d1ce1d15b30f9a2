"""The recipe `training.recipe=base`: the pocket model from nothing, by the stages of :mod:`vtc.pocket.recipe`."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vtc import distributed
from vtc.backbones import wrap
from vtc.errors import UserError
from vtc.folders import replacing
from vtc.job import Job
from vtc.methods import build
from vtc.pocket.model import build_model, build_processor
from vtc.pocket.recipe import AlignStage, LanguageStage, TowerStage
from vtc.pocket.source import PocketSource
from vtc.training.identity import recipe, training_folder
from vtc.training.log import LOG, gathered_logs, provenance
from vtc.training.method_stage import MethodStage
from vtc.training.recipes import run_stage, tell, written_recipe
from vtc.training.stage import Stage

STAGES = ("tower", "locate", "language", "align", "instruct")


def train_base(job: Job) -> Path:
    """Trains the model of a job from nothing; the folder of its weights.

    Raises:
        UserError: another backbone, or other stages than `STAGES`.
    """
    if job.backbone.name != "pocket":
        raise UserError(f"training.recipe=base makes the pocket model; backbone={job.backbone.name} was given")
    training, seed = recipe(job), job.seed
    stages = {settings.name: settings for settings in training.stages}
    if tuple(stages) != STAGES:
        raise UserError(
            f"training.stages: the base recipe has {', '.join(STAGES)}, in this order; got {', '.join(stages)}"
        )
    PocketSource.check(training.data)
    folder = training_folder(job, "pocket")
    device = distributed.device(job.backbone.device)
    model: Any = build_model(seed)
    data = training.data
    model.to(device)
    tower, language = TowerStage(model, seed, data.tower_batch_size, data.worlds), LanguageStage(model, data, seed)

    def instruct() -> MethodStage:
        """LLaVA's second stage, of the uncompressed model; half of its pictures are recoloured neighbours."""
        backbone = wrap(model, build_processor())
        questions = dataclasses.replace(data, questions=data.instruct_questions, twins=True)
        source = PocketSource("instruct", questions, seed, embed=True)
        none, parts = build("none", None, backbone.shape), ("projector", "decoder")
        return MethodStage("instruct", backbone, none, parts, source, contrastive=float(data.contrastive))

    makers: dict[str, Callable[[], Stage]] = {
        "tower": lambda: tower,
        "locate": tower.locate,
        "language": lambda: language,
        "align": lambda: AlignStage(model, language.places, seed, data.tower_batch_size, data.worlds),
        "instruct": instruct,
    }
    reports = []
    for name in STAGES:
        stage = makers[name]()
        stage.to(device)
        reports.append(run_stage(stage, job, stages[name], folder))
        if name == "align":
            _save(model, folder / "aligned", {})
    origin = {"backbone": "pocket", "recipe": written_recipe(job)} | provenance(job, reports)
    target, files = folder / "weights", {"training.json": json.dumps(origin, indent=2) + "\n"}
    _save(model, target, files | {LOG: gathered_logs(folder, STAGES) if distributed.is_main() else ""})
    tell(job, target)
    return target


@torch.no_grad()
def _save(model: Any, folder: Path, files: Mapping[str, str]) -> None:
    """An ordinary transformers folder, weights in bfloat16 (half the size; scores are those of the rounded weights)."""
    if distributed.is_main():
        half = copy.deepcopy(model).to("cpu", torch.bfloat16)
        with replacing(folder) as fresh:
            half.save_pretrained(fresh)
            build_processor().save_pretrained(fresh)
            for name, text in files.items():
                (fresh / name).write_text(text, encoding="utf-8")
    distributed.barrier()
