"""The recipe `training.recipe=base`: the pocket model, by the stages of :mod:`vtc.pocket.recipe`.

From nothing, or from the aligned weights of an earlier one (`training.pretrained`), which then learns what is new.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vtc import distributed, shipped
from vtc.backbones import wrap
from vtc.errors import UserError
from vtc.folders import replacing
from vtc.job import POCKET_WEIGHTS, Job
from vtc.methods import build
from vtc.pocket.model import build_model, build_processor, continued
from vtc.pocket.recipe import AlignStage, LanguageStage, TowerStage
from vtc.pocket.source import PocketSource
from vtc.training.identity import recipe, training_folder
from vtc.training.log import LOG, gathered_logs, provenance
from vtc.training.method_stage import MethodStage
from vtc.training.recipes import run_stage, tell, written_recipe
from vtc.training.stage import Stage

STAGES = ("tower", "locate", "language", "align", "instruct")
LATER = STAGES[1:]  # of a model that sees already


def train_base(job: Job) -> Path:
    """Trains the model of a job; the folder of its weights.

    Raises:
        UserError: another backbone, or other stages than `STAGES`, or `LATER` with weights to start from.
    """
    if job.backbone.name not in POCKET_WEIGHTS:
        raise UserError(f"training.recipe=base makes the pocket model; backbone={job.backbone.name} was given")
    training, seed = recipe(job), job.seed
    stages = {settings.name: settings for settings in training.stages}
    needed = LATER if training.pretrained else STAGES
    if tuple(stages) != needed:
        raise UserError(
            f"training.stages: the base recipe has {', '.join(needed)}, in this order; got {', '.join(stages)}"
        )
    data_of = {name: training.data_of(settings) for name, settings in stages.items()}
    for data in data_of.values():
        PocketSource.check(data)
    folder = training_folder(job, job.backbone.name)
    device = distributed.device(job.backbone.device)
    model: Any = continued(_start(training.pretrained), seed) if training.pretrained else build_model(seed)
    model.to(device)
    seen = data_of[needed[0]]
    tower, language = (
        TowerStage(model, seed, seen.tower_batch_size, seen.worlds),
        LanguageStage(model, data_of["language"], seed),
    )
    if training.pretrained:
        language.places.read_off(model)

    def locate() -> TowerStage:
        tower.worlds = data_of["locate"].worlds
        return tower.locate()

    def align() -> AlignStage:
        data = data_of["align"]
        return AlignStage(model, language.places, seed, data.tower_batch_size, data.worlds)

    def instruct() -> MethodStage:
        """LLaVA's second stage, of the uncompressed model; half of its pictures are recoloured neighbours."""
        backbone, data = wrap(model, build_processor()), data_of["instruct"]
        questions = dataclasses.replace(data, questions=data.instruct_questions, twins=True)
        source = PocketSource("instruct", questions, seed, embed=True)
        none, parts = build("none", None, backbone.shape), ("projector", "decoder")
        return MethodStage("instruct", backbone, none, parts, source, contrastive=float(data.contrastive))

    makers: dict[str, Callable[[], Stage]] = {
        "tower": lambda: tower,
        "locate": locate,
        "language": lambda: language,
        "align": align,
        "instruct": instruct,
    }
    reports = []
    for name in needed:
        stage = makers[name]()
        stage.to(device)
        reports.append(run_stage(stage, job, stages[name], folder))
        if name == "align":
            _save(model, folder / "aligned", {})
    origin = {"backbone": job.backbone.name, "recipe": written_recipe(job)} | provenance(job, reports)
    target, files = folder / "weights", {"training.json": json.dumps(origin, indent=2) + "\n"}
    _save(model, target, files | {LOG: gathered_logs(folder, needed) if distributed.is_main() else ""})
    tell(job, target)
    return target


def _start(pretrained: str) -> Path:
    """The folder of weights to start from: the user's, or one that comes with vtc.

    Raises:
        UserError: there is none.
    """
    folder = Path(pretrained) if Path(pretrained).is_dir() else shipped.path(pretrained)
    if not (folder / "config.json").is_file():
        raise UserError(f"training.pretrained={pretrained}: no weights there; give a folder with a config.json")
    return folder


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
