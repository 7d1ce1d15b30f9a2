"""A paper's ablation in one command: every variant is trained where it must be, scored, and the claims are judged.

Each step is the job of a command that a user would type (`action=train`, `action=evaluate`). What is finished is not
done again: trainings are found by what decides them, in other experiments' folders too; results by their own names. So
the same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path

from vtc import results, shipped, terminal
from vtc.ablations import experiments, page
from vtc.ablations.experiments import SHIPPED, Experiment, Variant
from vtc.configuration import parse
from vtc.errors import UserError, unknown
from vtc.identity import WEIGHTS, deciding
from vtc.job import POCKET_WEIGHTS, Job, written

# Keys that the ablation sets itself for each of its runs, or that are of no concern to a single one.
OWN = ("action", "experiment", "variants", "seeds", "trained", "hydra")
FOLDER = "ablations"  # under output_dir: what the tables are made of, <experiment>/<variant>-s<seed>


def ablate(job: Job) -> Path:
    """Run `action=ablate`.

    Args:
        job: of an experiment that has variants; `job.ablation.overrides` are settings that every variant gets too.

    Returns:
        The folder of the variants' results, `<output_dir>/ablations/<experiment>`.

    Raises:
        UserError: no such variant, or nothing to vary; after all others are done, if a variant failed.
    """
    from rich.markdown import Markdown

    settings = job.ablation
    if settings is None:
        names = ", ".join(experiments.names())
        raise UserError(f"action=ablate: needs an experiment with variants; allowed: experiment={names}")
    experiment = experiments.load(settings.name)
    variants = [*experiment.variants] if settings.variants is None else [*settings.variants]
    for name in variants:
        if name not in experiment.variants:
            raise unknown("variants", name, experiment.variants)
    ablation = Ablation(experiment, job.output_dir, settings.trained, settings.overrides)
    console = terminal.console()
    failures: list[str] = []
    for seed in settings.seeds:
        for name in variants:
            console.print(f"\n[bold]{experiment.name} · {name}, seed {seed}[/]: {experiment.variants[name].about}")
            try:
                ablation.run(experiment.variants[name], seed)
            except Exception as error:  # one variant's error doesn't lose the others
                if not isinstance(error, UserError):
                    traceback.print_exc()
                failures.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
                console.print(f"failed: {error}", markup=False, style="red")
    if not job.dry_run:
        section = page.section(experiment, page.runs_of(ablation.folder), heading="#")
        results.write_text(ablation.folder / results.SUMMARY, section)
        console.print(Markdown(section))
        console.print(str(ablation.folder), markup=False, soft_wrap=True)
    if failures:
        count = len(variants) * len(settings.seeds)
        raise UserError(f"{len(failures)} of {count} variants failed: {'; '.join(failures)}")
    return ablation.folder


class Ablation:
    """The runs of one experiment.

    Args:
        output: where results and trainings go.
        trained: folders in which to look for finished trainings too.
        overrides: settings that every variant gets too, as typed.

    Attributes:
        folder: where each variant's result is kept for the table.

    Raises:
        UserError: an override of what the experiment says itself, or a folder that isn't there.
    """

    def __init__(
        self, experiment: Experiment, output: Path, trained: Sequence[str] = (), overrides: Sequence[str] = ()
    ) -> None:
        self.experiment = experiment
        keys = {override: override.lstrip("+~").split("=")[0].split(".")[0] for override in overrides}
        for override, key in keys.items():
            if key in ("seed", "checkpoint", "ablation"):
                raise UserError(f"{override}: an experiment's own; allowed: seeds=[…], variants=[…], trained=[…]")
        self.overrides = [override for override, key in keys.items() if key not in OWN]
        self.folder = output / FOLDER / experiment.name
        self.roots = [output / "training", *map(Path, trained)]
        for root in self.roots[1:]:
            if not root.is_dir():
                raise UserError(f"trained={root}: no such folder")

    def job(self, variant: Variant, action: str, seed: int) -> Job:
        """A variant's training or evaluation.

        Raises:
            UserError: a key or value that isn't allowed.
        """
        own = variant.train if action == "train" else variant.test
        # {weights}: the folder of the shipped ones, wherever vtc is installed.
        here = [o.replace("{weights}", str(shipped.root() / POCKET_WEIGHTS["pocket"])) for o in (*variant.both, *own)]
        job = parse([f"experiment={self.experiment.name}", f"action={action}", f"seed={seed}", *here, *self.overrides])
        return dataclasses.replace(job, ablation=None)  # the claims are no part of a run

    def run(self, variant: Variant, seed: int) -> None:
        """Train and score one variant, whose result is kept in a folder of its own; a dry run says what that takes."""
        from vtc.checkpoint import MANIFEST
        from vtc.evaluation import evaluate

        job, weights = self.job(variant, "evaluate", seed), self.weights(variant, seed)
        if weights is not None and not (weights / MANIFEST).is_file():  # of a dry run: they are only planned
            job.check(trained=False)
            print(f"evaluate · {job.label} · with the weights of this training", flush=True)
            return
        if weights is not None:
            checkpoint = os.fspath(weights)
            overrides = (*(job.overrides or ()), written("checkpoint", checkpoint))
            job = dataclasses.replace(job, checkpoint=checkpoint, overrides=overrides)
        job.check()
        print(f"evaluate · {job.label}", flush=True)
        result = evaluate(job)
        if not job.dry_run:
            keep(Path(result).parent, weights, self.folder / f"{variant.name}-s{seed}")

    def weights(self, variant: Variant, seed: int) -> Path | None:
        """The checkpoint of a variant, trained where it doesn't exist; None: whatever `checkpoint=auto` finds."""
        if variant.weights is None:
            return self.train(variant, seed)
        source, _, folder = variant.weights.partition("/")
        if source != SHIPPED:
            return self.train(self.experiment.variants[variant.weights], seed)
        return shipped.path(f"{POCKET_WEIGHTS['pocket']}/{folder}") if folder else None

    def train(self, variant: Variant, seed: int) -> Path:
        """The weights of a variant: those of a finished training, or trained to the end."""
        from vtc.checkpoint import FINISHED, MANIFEST
        from vtc.training import train
        from vtc.training.identity import training_folder

        job = self.job(variant, "train", seed)
        own = training_folder(job) / FINISHED
        elsewhere = None if job.resume is False or (own / MANIFEST).is_file() else self.elsewhere(job)
        if elsewhere is not None:
            print(f"trained already: {elsewhere}", flush=True)
            return elsewhere
        print(f"train · {job.label}", flush=True)
        return train(job)

    def elsewhere(self, job: Job) -> Path | None:
        """A finished training that is the same one in another folder, as its manifest says."""
        from vtc.checkpoint import MANIFEST, damage
        from vtc.identity import digest
        from vtc.training.identity import identity, identity_of_manifest

        # Of the backbone a manifest tells the name alone, so that it is of another one where more was changed.
        plain = parse([f"backbone={job.backbone.name}"]).backbone
        if deciding(job.backbone, WEIGHTS) != deciding(plain, WEIGHTS):
            return None
        same = digest(identity(job))
        for root in self.roots:
            for path in sorted(root.rglob(MANIFEST)):
                try:
                    manifest = json.loads(path.read_text(encoding="utf-8"))
                    if digest(identity_of_manifest(manifest, job)) == same and not damage(path.parent):
                        return path.parent
                except (ValueError, KeyError, TypeError, UserError):
                    continue  # of another version, or of no method
        return None


def keep(result: Path, weights: Path | None, target: Path) -> Path:
    """Puts together what the tables need of a run: `result.json`, scores of `samples.parquet`, `training.json`.

    Args:
        weights: the checkpoint that it was scored with; its manifest says how it was trained.
    """
    from vtc.checkpoint import MANIFEST
    from vtc.folders import replacing

    frame = results.samples(result, ["task", "id", "score", "cluster", "stratum", "tokens_in", "tokens_kept", "error"])
    with replacing(target) as fresh:
        shutil.copyfile(result / results.RESULT, fresh / results.RESULT)
        frame.to_parquet(fresh / results.SAMPLES, index=False)
        if weights is not None and (weights / MANIFEST).is_file():
            shutil.copyfile(weights / MANIFEST, fresh / "training.json")
    return target
