"""`action=calibrate`: FitPrune's recipe, fitted to attention on training samples, as a file for `method.recipe=`.

Pictures and questions come from where a training reads them, never from a benchmark. A file that is there already keeps
its recipes for other budgets.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from vtc import __version__, folders, results, shipped, terminal
from vtc.budget import PROMPT
from vtc.declarations import json_of
from vtc.errors import UserError
from vtc.job import AUTO, Job, written
from vtc.registry import training_sources
from vtc.settings import DataSettings, TrainingSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.data.training.batch import Batch
    from vtc.interface import BackboneShape
    from vtc.methods.fitting import Counts, Fit, Fitting

METHODS = ("fitprune",)  # that have something to fit
OWN_KEYS = ("action", "calibrate", "method", "output_dir", "dry_run", "batch_size", "hydra")  # not of a run with it
STAGE = "calibration"  # draws other scenes than the stages of a training do
ROWS = 8  # pictures at a time where `batch_size=auto`


def calibrate(job: Job) -> Path:
    """Fits the recipe and writes it; returns the file.

    Raises:
        UserError: a method without a recipe, no budget or one that can't be met, no training data, a file that holds
            something else.
    """
    file, data = check(job)
    if job.dry_run:
        print(f"would fit {job.label} to {job.calibrate.samples} training samples, and write {file}")
        return file
    fit = fit_to(job, data)
    recipes = [one for one in recipes_in(file, job) if one.get("budget") != job.budget_in_words]
    settings = {"samples": job.calibrate.samples, "data": job.calibrate.path, "seed": job.seed, "version": __version__}
    recipes.append({"budget": job.budget_in_words, **rounded(fit), **settings})
    about = {"about": "FitPrune's recipes: the share of all drops that is done before each decoder layer."}
    of = {"backbone": job.backbone.name, "pretrained": job.backbone.pretrained, "depth": job.shape.depth}
    results.write_json(file, {**about, **of, "recipes": sorted(recipes, key=lambda recipe: recipe["left"])})
    show(job, fit, file)
    return file


def check(job: Job) -> tuple[Path, DataSettings]:
    """Refuses whatever can be refused before anything is loaded; the file that is written, and what is read.

    Raises:
        UserError: as `calibrate`.
    """
    if job.method.name not in METHODS:
        raise UserError(f"action=calibrate method={job.method.name}: allowed: {', '.join(METHODS)}")
    recipe = job.method.options.get("recipe")
    if recipe is not None and not (isinstance(recipe, Mapping) and recipe.get("file") == job.backbone.name):
        raise UserError("method.recipe: action=calibrate makes one; leave it out")
    if not job.budget.requested:
        raise UserError("action=calibrate: a recipe is for a budget; give tokens=, ratio=, compression= or flops=")
    shape, budget = job.shape, job.budget_in_words
    if full := shape.visual_tokens:
        met = budget_of(job, shape)
        if met([[full] * shape.depth]):
            raise UserError(f"{budget}: is met by all {full} visual tokens of {shape.name}; nothing is to be dropped")
        if not met([[full, *[1] * (shape.depth - 1)]]):
            raise UserError(f"{budget}: isn't met by one of {full} visual tokens behind the first layer; give more")
    file = Path(os.path.expanduser(job.calibrate.output or str(default_output(job)))).absolute()
    recipes_in(file, job)
    folders.check_writable(file.parent, "give calibrate.output=<another file>")
    data = data_of(job)
    job.family.check_loading(job.backbone)
    return file, data


def default_output(job: Job) -> Path:
    return job.output_dir / "recipes" / f"{job.method.name}-{job.backbone.name}.json"


def recipes_in(file: Path, job: Job) -> list[dict[str, Any]]:
    """The recipes that a file has already; none where there is none.

    Raises:
        UserError: it holds something else, or recipes of other weights.
    """
    from vtc.methods.recipes import is_recipe

    if not os.path.lexists(file):
        return []
    key = f"calibrate.output={file}"
    found = json_of("calibrate.output", str(file))
    entries = found.get("recipes") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(map(is_recipe, entries)):
        raise UserError(f"{key}: is there, and has no recipes; give another file")
    of = [found.get(name) for name in ("backbone", "pretrained", "depth")]
    if of != [job.backbone.name, job.backbone.pretrained, job.shape.depth]:
        weights = f" pretrained={of[1]}" if of[1] else ""
        raise UserError(f"{key}: has recipes of backbone={of[0]}{weights}; give another file")
    return entries


def data_of(job: Job) -> DataSettings:
    """What is read, as a training with the default recipe reads it, a question a picture.

    Raises:
        UserError: files that can't be read, or none for a backbone that draws no scenes.
    """
    settings, name = job.calibrate, job.backbone.name
    if settings.path is None and name not in training_sources.names():
        raise UserError(
            f"calibrate.path=null: backbone={name} needs training data; give calibrate.path=<LLaVA's JSON, JSON lines "
            "or shards>"
        )
    most = ROWS if job.batch_size == AUTO else int(job.batch_size)
    rows = max(n for n in range(1, min(most, settings.samples) + 1) if settings.samples % n == 0)
    recipe = yaml.safe_load(shipped.path("conf/training/default.yaml").read_text(encoding="utf-8"))
    data = dataclasses.replace(
        TrainingSettings.of(recipe).data,
        batch_size=rows, questions=1, twins=False, contrastive=0.0, path=settings.path, images=settings.images,
    )  # fmt: skip
    source = training_sources.get("files" if settings.path else name)
    try:
        if looks := getattr(source, "check", None):
            looks(data)
    except UserError as error:
        raise UserError(str(error).replace("training.data.", "calibrate.")) from None
    return data


def budget_of(job: Job, shape: BackboneShape) -> Callable[[Counts], bool]:
    """Whether counts of tokens, image by image and layer by layer, are within the budget, on average over the images.

    `flops` are those of the decoder, with 64 text tokens.
    """
    from vtc.interface import flops

    (key, value), depth = next(iter(job.budget.requested.items())), shape.depth

    @functools.cache
    def layer(tokens: int) -> float:
        return flops.layer(shape, tokens + PROMPT)

    def relative(row: Sequence[int]) -> float:
        head = flops.head(shape)
        return (sum(map(layer, row)) + head) / (depth * layer(row[0]) + head)

    def is_met(counts: Counts) -> bool:
        if key == "tokens":
            return fmean(row[-1] for row in counts) <= value
        if key == "ratio":
            return fmean(row[-1] / row[0] for row in counts) <= value
        if key == "compression":
            return sum(depth * row[0] for row in counts) >= value * sum(map(sum, counts))
        return fmean(map(relative, counts)) <= value

    return is_met


# ---------------------------------------------------------------------- the fit
def fit_to(job: Job, data: DataSettings) -> Fit:
    """The recipe of the least strength that meets the budget on the samples.

    Raises:
        UserError: there is no picture among them, or the budget can't be met.
    """
    from vtc.methods.fitting import Fitting, fitted

    backbone = job.load_backbone()
    shape, met, budget = backbone.shape, budget_of(job, backbone.shape), job.budget_in_words
    batches = read(job, data, backbone)
    whole = [one_pass(backbone, Fitting(shape), batch) for batch in batches]
    counts = [row for fitting in whole for row in fitting.tokens_seen()]
    if not counts:
        raise UserError(f"calibrate.path={job.calibrate.path}: none of {job.calibrate.samples} samples has a picture")
    if met(counts):
        raise UserError(f"{budget}: is met by all visual tokens of the samples' pictures; nothing is to be dropped")

    def run(alpha: float) -> list[list[int]]:
        pairs = [(batch, first) for batch, first in zip(batches, whole, strict=True) if first.left]
        passes = [one_pass(backbone, Fitting(shape, alpha, first.unpruned), batch) for batch, first in pairs]
        return [row for fitting in passes for row in fitting.tokens_seen()]

    def tell(alpha: float, counts: Counts, is_met: bool) -> None:
        before, after = (fmean(row[at] for row in counts) for at in (0, -1))
        print(f"alpha={alpha:.4f}: {after:.1f} of {before:.1f} tokens left{'' if is_met else ', too many'}", flush=True)

    fit = fitted(run, met, tell)
    if fit is None:
        raise UserError(f"{budget}: isn't met on the samples' pictures, whatever is dropped; give more")
    return fit


def read(job: Job, data: DataSettings, backbone: Backbone) -> list[Batch]:
    """The samples, in batches.

    Raises:
        UserError: too many of them can't be used.
    """
    source = training_sources.get("files" if data.path else job.backbone.name)
    source = source.of_stage(STAGE, data, backbone, job.seed, False)
    return [source.batch(step) for step in range(job.calibrate.samples // data.batch_size)]


def one_pass(backbone: Backbone, fitting: Fitting, batch: Batch) -> Fitting:
    """A pass of the model over a batch under a `Fitting`, which it returns."""
    import torch

    from vtc.engine import compressing
    from vtc.training.method_stage import laid_out

    batch = batch.to(backbone.device)
    inputs = {
        name: value.to(backbone.dtype) if value.is_floating_point() else value for name, value in batch.inputs.items()
    }
    with torch.inference_mode(), compressing(backbone, fitting.eval()) as engine, laid_out(engine, batch):
        backbone.core(**inputs, use_cache=False)
    return fitting


# ---------------------------------------------------------------------- what is said of it
def rounded(fit: Fit) -> dict[str, Any]:
    """A fit as its file has it."""
    return {
        "left": round(fit.left, 6),
        "alpha": round(fit.alpha, 6),
        "shares": [round(share, 6) for share in fit.shares],
        "layer_tokens": [round(tokens, 2) for tokens in fit.layer_tokens],
    }


def show(job: Job, fit: Fit, file: Path) -> None:
    """The recipe on the screen, and the command that uses it."""
    rows = [[str(n), f"{share:.1%}", f"{seen:.1f}"]
            for n, (share, seen) in enumerate(zip(fit.shares, fit.layer_tokens, strict=True))]  # fmt: skip
    console = terminal.console()
    title = f"{job.label} on {job.backbone.name}, alpha={fit.alpha:.4f}, {job.calibrate.samples} training samples"
    console.print(terminal.table(title, ["before layer", "of all drops", "tokens it sees"], rows, console.width))
    words = [word for word in job.overrides or () if word.lstrip("+").partition("=")[0].split(".")[0] not in OWN_KEYS]
    words = [written("method", job.method.name), *words, written("method.recipe", file)]
    console.print(f"use it: {shlex.join(['python', '-m', 'vtc', *words])}", markup=False, soft_wrap=True)
    print(file)
