"""A paper's ablation in one command: every variant is trained where it must be, scored, and the claims are judged.

Each step is the command that a user would type (`action=train`, `action=evaluate`), composed and checked by the same
code. What is finished is not done again: trainings are found by what decides them, in other experiments' folders too;
results by their own names. So the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results
from vtc.ablations import experiments
from vtc.ablations.experiments import SHIPPED, Experiment, Variant
from vtc.errors import UserError, unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Set by the ablation itself for each of its runs, or of no concern to a single one.
OWN = ("action", "experiment", "variants", "seeds", "trained", "hydra")
# Of a training and its stages: what does not change the weights that it ends with.
NEUTRAL = ("folder", "log", "workers", "keep", "checkpointing", "dry_run")
NEUTRAL_STAGE = ("validate_every", "checkpoint_every", "log_every")
WEIGHTS = "benchmarks/pocket/weights"
FOLDER = "ablations"  # under output_dir: what the tables are made of, <experiment>/<variant>-s<seed>


def ablate(config: Mapping[str, Any], overrides: Sequence[str] | None = None) -> Path:
    """Run `action=ablate`.

    Args:
        config: the resolved configuration of an experiment that has variants.
        overrides: settings that every variant gets too; those of the command line if not given.

    Returns:
        The folder of the variants' results, `<output_dir>/ablations/<experiment>`.

    Raises:
        UserError: no such variant, or nothing to vary; after all others are done, if a variant failed.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from vtc.ablations import page as ablations

    if not config.get("ablation"):
        names = ", ".join(experiments.names())
        raise UserError(f"action=ablate: needs an experiment with variants; allowed: experiment={names}")
    experiment = experiments.load(str(config["ablation"]["name"]))
    chosen, seeds = _chosen(config, experiment)
    ablation = Ablation(experiment, config, typed() if overrides is None else list(overrides))
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    failed: list[str] = []
    for seed in seeds:
        for name in chosen:
            console.print(f"\n[bold]{experiment.name} · {name}, seed {seed}[/]: {experiment.variants[name].about}")
            try:
                ablation.run(experiment.variants[name], seed)
            except Exception as error:  # one variant's error doesn't lose the others
                if not isinstance(error, UserError):
                    traceback.print_exc()
                failed.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
                console.print(f"failed: {error}", markup=False, style="red")
    section = ablations.section(experiment, ablations.runs_of(ablation.folder), heading="#")
    results.write_text(ablation.folder / results.SUMMARY, section)
    console.print(Markdown(section))
    console.print(str(ablation.folder), markup=False, soft_wrap=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen) * len(seeds)} variants failed: {'; '.join(failed)}")
    return ablation.folder


def _chosen(config: Mapping[str, Any], experiment: Experiment) -> tuple[list[str], list[int]]:
    variants, seeds = config.get("variants"), config.get("seeds")
    chosen = list(experiment.variants) if variants is None else [variants] if isinstance(variants, str) else variants
    for name in chosen:
        if name not in experiment.variants:
            raise unknown("variants", name, experiment.variants)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds or ())
    if not chosen or not seeds or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in seeds):
        raise UserError(f"variants={variants}, seeds={seeds}: allowed: names in a list, whole numbers in a list")
    return list(chosen), seeds


def typed() -> list[str]:
    """The overrides of the command line."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return []
    return list(OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))  # type: ignore[arg-type]


class Ablation:
    """The runs of one experiment.

    Attributes:
        folder: where each variant's result is kept for the table.
    """

    def __init__(self, experiment: Experiment, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        self.experiment = experiment
        keys = {o: o.lstrip("+~").split("=")[0].split(".")[0] for o in overrides}
        for override, key in keys.items():
            if key in ("seed", "checkpoint", "ablation"):
                raise UserError(f"{override}: an experiment's own; allowed: seeds=[…], variants=[…], trained=[…]")
        self.overrides = [override for override, key in keys.items() if key not in OWN]
        self.output = Path(str(config["output_dir"]))
        self.folder = self.output / FOLDER / experiment.name
        trained = config.get("trained") or []
        self.roots = [self.output / "training", *map(Path, [trained] if isinstance(trained, str) else trained)]
        for root in self.roots[1:]:
            if not root.is_dir():
                raise UserError(f"trained={root}: no such folder")

    def config(self, variant: Variant, action: str, seed: int) -> DictConfig:
        """The configuration of a variant's training or evaluation.

        Raises:
            UserError: a key or value that isn't allowed.
        """
        from omegaconf import open_dict

        from vtc import shipped
        from vtc.configuration.compose import compose

        own = variant.train if action == "train" else variant.test
        # {weights}: the folder of the shipped ones, wherever vtc is installed.
        here = [o.replace("{weights}", str(shipped.root() / WEIGHTS)) for o in (*variant.both, *own)]
        given = [f"experiment={self.experiment.name}", f"action={action}", f"seed={seed}", *here, *self.overrides]
        config = compose(given)
        with open_dict(config):
            config.pop("ablation")  # the claims are no part of a run
        return config

    def run(self, variant: Variant, seed: int) -> Path:
        """Train and score one variant; returns the folder of its result."""
        from omegaconf import OmegaConf

        config = self.config(variant, "evaluate", seed)
        weights = self.weights(variant, seed)
        if weights is not None:
            OmegaConf.update(config, "checkpoint", os.fspath(weights))
        result = Path(perform(config)).parent
        return keep(result, weights, self.folder / f"{variant.name}-s{seed}")

    def weights(self, variant: Variant, seed: int) -> Path | None:
        """The checkpoint of a variant, trained where it doesn't exist; None: whatever `checkpoint=auto` finds."""
        from vtc import shipped

        if variant.weights is None:
            return self.train(variant, seed)
        source, _, folder = variant.weights.partition("/")
        if source != SHIPPED:
            return self.train(self.experiment.variants[variant.weights], seed)
        return shipped.path(f"{WEIGHTS}/{folder}") if folder else None

    def train(self, variant: Variant, seed: int) -> Path:
        """The weights of a variant: found, or trained to the end."""
        from vtc.training.recipes import training_folder

        config = self.config(variant, "train", seed)
        folder = training_folder(config)
        with locked(folder):
            found = None if config.resume is False else self.finished(config, folder / "weights")
            if found is not None:
                print(f"trained already: {found}", flush=True)
                return found
            return Path(perform(config))

    def finished(self, config: DictConfig, own: Path) -> Path | None:
        """A finished training that is the same one: in its own folder, or any whose manifest says so."""
        from vtc.checkpoint import MANIFEST

        if (own / MANIFEST).is_file():
            return own
        wanted = identity_of(config)
        for root in self.roots:
            for path in sorted(root.rglob(MANIFEST)):
                try:
                    manifest = json.loads(path.read_text(encoding="utf-8"))
                    if identity(**_told(manifest)) == wanted:
                        return path.parent
                except (ValueError, KeyError, TypeError, UserError):
                    continue  # of another version, or of no method
        return None


def perform(config: DictConfig) -> Path:
    """Check a configuration and run its action, as the command line does."""
    from vtc.cli import actions
    from vtc.configuration import validation

    validation.check(config)
    print(actions.headline(config), flush=True)
    return actions.perform(config)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time trains into a folder: experiments that run side by side share trainings."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        yield


# Which training is the same ------------------------------------------------------------------------------------------


def identity_of(config: Mapping[str, Any]) -> str | None:
    """What decides the weights that a configuration's training ends with; None where a manifest can't tell."""
    from omegaconf import OmegaConf

    from vtc.assemble import plan

    made = plan(config, trained=False)
    if config["backbone"].get("pretrained"):
        return None
    training = OmegaConf.to_container(config["training"], resolve=True)
    return identity(
        config["backbone"]["name"], made.method.name, made.method.tokens, made.options, training, config["seed"]
    )


def _told(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `identity` from a manifest."""
    return {key: manifest[key] for key in ("backbone", "method", "tokens", "options", "training", "seed")}


def identity(
    backbone: str, method: str, tokens: int | None, options: Mapping[str, Any], training: Any, seed: int
) -> str:
    """A canonical text: what isn't said is at its default, a named scheme is its stages, and what only says how to log
    is left out."""
    from omegaconf import OmegaConf

    from vtc import shipped
    from vtc.methods import options_of
    from vtc.methods.stages import parse_stages

    said = options_of(method) | {k: v for k, v in options.items() if k != "name"}
    if "scheme" in said:
        said["scheme"] = [(s.layer, s.stride, round(s.share or 0, 6)) for s in parse_stages(said["scheme"])]
    default = OmegaConf.load(shipped.path("conf/training/default.yaml"))
    merged: Any = OmegaConf.to_container(OmegaConf.merge(default, training), resolve=True)
    recipe = {k: v for k, v in merged.items() if k not in NEUTRAL}
    recipe["stages"] = [{k: v for k, v in s.items() if k not in NEUTRAL_STAGE} for s in recipe["stages"]]
    whole = {"backbone": backbone, "method": method, "tokens": tokens, "options": said, "training": recipe}
    return json.dumps(results.plain(whole | {"seed": seed}), sort_keys=True)


# What is kept --------------------------------------------------------------------------------------------------------


def keep(result: Path, weights: Path | None, target: Path) -> Path:
    """Puts together what the tables need of a run: `result.json`, scores of `samples.parquet`, `training.json`.

    Args:
        weights: the checkpoint that it was scored with; its manifest says how it was trained.
    """
    from vtc.checkpoint import MANIFEST
    from vtc.folders import replacing

    frame = results.samples(result).drop(columns=["prediction", "target"])
    with replacing(target) as fresh:
        shutil.copyfile(result / results.RESULT, fresh / results.RESULT)
        frame.to_parquet(fresh / results.SAMPLES, index=False)
        if weights is not None and (weights / MANIFEST).is_file():
            shutil.copyfile(weights / MANIFEST, fresh / "training.json")
    return target
