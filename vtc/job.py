"""A run, resolved once: what is done with which backbone, method, budget and weights, and what identifies it.

Nothing here loads weights but `Job.load`. What can be refused without them `Job.check` refuses, in a second or two.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import shipped
from vtc.allowed import BOOLEAN, SEED, TEXT, Allowed, number, one_of, several, text, whole
from vtc.backbones.columns import by_columns
from vtc.budget import BUDGETS, Budget
from vtc.errors import UserError
from vtc.identity import COSTS, NOTHING, SCORES, WEIGHTS, Decides, deciding, setting
from vtc.registry import families, methods, parts
from vtc.settings import (
    AblationSettings,
    BackboneSettings,
    BenchmarkSettings,
    CalibrateSettings,
    CompareSettings,
    DemoSettings,
    LoraSettings,
    MethodSettings,
    NewMethodSettings,
    ProfileSettings,
    ReportSettings,
    StoreSettings,
    TrainingSettings,
    TuneSettings,
    VisualizeSettings,
    from_mapping,
)

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import BackboneShape, Compressor

AUTO = "auto"
# The folders of the weights that come with each edition of pocket, by the name of its backbone.
POCKET_WEIGHTS = {"pocket": "benchmarks/pocket/weights", "pocket2": "benchmarks/pocket/weights/pocket2"}
COST_LEVELS = ("none", "quick", "full")  # each measures what the one before does, and more
BATCH = Allowed("a whole number from 1 on, auto", lambda v: v == AUTO or whole(1).accepts(v))
TUNED = "tuned"  # the adapter of a method that brings none of its own


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        checkpoint: `auto`: the shipped weights of a method that needs some; a folder that training wrote; None: none.
        costs: how much is measured beside scores: `none`: FLOPs, which are counted; `quick`: the time to the first
            token too; `full`: throughput and decoding as well.
        seed: of whatever is random.
        batch_size: rows at a time; `auto`: as many as memory has room for (`vtc.evaluation.batches`).
        workers: threads that decode and preprocess pictures ahead of the device.
        tower_cache: gigabytes of the tower's outputs kept for runs over the same pictures (`vtc.evaluation.towers`).
        output_dir: where results, trainings and reports go.
        resume: False repeats what is finished.
        retry: which jobs of a sweep are run: `all` that aren't finished, those that `failed` last, or `none` of these.
        dry_run: say what would be done, and stop.
        plugins: files that bring methods and families of the user's own.
        log: trackers that are told of an evaluation's scores and costs.
        overrides: as typed, for the command that repeats it; None: it was not made by a command of vtc's.
    """

    action: str = setting("evaluate", NOTHING, text("the name of an action"))
    backbone: BackboneSettings = BackboneSettings()
    method: MethodSettings = MethodSettings()
    budget: Budget = Budget()
    benchmark: BenchmarkSettings = setting(BenchmarkSettings(), SCORES)
    profile: ProfileSettings | None = setting(None, COSTS)
    costs: str = setting("quick", COSTS, one_of(*COST_LEVELS), later=True)
    training: TrainingSettings | None = setting(None, WEIGHTS)
    report: ReportSettings = setting(ReportSettings(), NOTHING)
    compare: CompareSettings = setting(CompareSettings(), NOTHING)
    visualize: VisualizeSettings = setting(VisualizeSettings(), NOTHING)
    demo: DemoSettings = setting(DemoSettings(), NOTHING)
    tune: TuneSettings = setting(TuneSettings(), NOTHING)
    calibrate: CalibrateSettings = setting(CalibrateSettings(), NOTHING)
    ablation: AblationSettings | None = setting(None, NOTHING)
    new_method: NewMethodSettings | None = setting(None, NOTHING)
    store: StoreSettings | None = setting(None, NOTHING)
    checkpoint: str | None = setting("auto", NOTHING, TEXT)  # what is in it counts
    seed: int = setting(0, WEIGHTS | SCORES, SEED)
    batch_size: int | str = setting(32, SCORES, BATCH)
    workers: int = setting(2, NOTHING, whole(0, 64))
    tower_cache: float = setting(4.0, NOTHING, number("a number of gigabytes, 0 for none", least=0, most=10**6))
    output_dir: Path = setting(Path("outputs"), NOTHING, Allowed("a folder", lambda v: isinstance(v, Path)))
    resume: str | bool = setting("auto", NOTHING, one_of("auto", True, False))
    retry: str = setting("all", NOTHING, one_of("all", "failed", "none"))
    dry_run: bool = setting(False, NOTHING, BOOLEAN)
    plugins: tuple[str, ...] = setting((), NOTHING, several("a list of files, [./my_method.py]", text()))
    log: tuple[str, ...] = setting((), NOTHING, several("a list of trackers, such as [wandb]", text()))
    overrides: tuple[str, ...] | None = setting(None, NOTHING, several("overrides", text()).or_null())

    # -- what it comes to, without weights
    @property
    def family(self) -> type[Backbone]:
        """The class of the backbone."""
        return families.get(self.backbone.family)

    @cached_property
    def shape(self) -> BackboneShape:
        """Sizes of the backbone.

        Raises:
            UserError: they can't be read.
        """
        return self.family.shape_of(self.backbone)

    @cached_property
    def compressor(self) -> Compressor:
        """The method with its budget resolved, without weights.

        Raises:
            UserError: an unknown option, a budget that it can't meet, a layer that the decoder doesn't have.
        """
        from vtc.methods import make

        budget = None if self.budget.is_default else self.budget.resolve
        return make(self.method.name, budget, self.shape, **self.method.options)

    @cached_property
    def weights(self) -> Path | None:
        """The folder of the method's trained weights, the user's or the shipped ones (`auto`); None where there are
        none.

        Raises:
            UserError: weights for another backbone, method, budget or setting, or none for a method that needs some.
        """
        if self.has_random_weights:
            return None
        folder = weights_folder(self)
        if folder is not None:
            _check_manifest(folder, self)
            _check_quantized(folder, self)
        elif self.compressor.needs_training:
            raise UserError(_untrained(self))
        return folder

    @property
    def has_random_weights(self) -> bool:
        """Whether backbone and method are only there to be measured."""
        return self.profile is not None and self.profile.weights == "random"

    @property
    def is_baseline(self) -> bool:
        """Whether it is the uncompressed backbone with its own weights, shown the right pictures."""
        return self.method.name == "none" and self.checkpoint in (None, "auto") and self.benchmark.picture == "own"

    def baseline(self) -> Job:
        """The same run without compression, and with each question's own picture."""
        overrides = None if self.overrides is None else uncompressed(self.overrides)
        benchmark = dataclasses.replace(self.benchmark, picture="own")
        plain = dataclasses.replace(self, benchmark=benchmark, overrides=overrides)
        return dataclasses.replace(plain, method=MethodSettings(), budget=Budget(), checkpoint=None)

    def check(self, trained: bool = True) -> None:
        """Refuses whatever can be refused without loading weights.

        Args:
            trained: whether trained weights are needed; training itself needs none.

        Raises:
            UserError: as `shape`, `compressor`, `weights`; what the method lacks; how the backbone can't be loaded.
        """
        if (lacking := self.compressor.lacking()) and not self.has_random_weights:  # the method's errors come first
            raise UserError(lacking)
        if trained:
            self.weights  # noqa: B018
        (self.family.check_drawing if self.has_random_weights else self.family.check_loading)(self.backbone)

    def load(self, trained: bool = True) -> tuple[Backbone, Compressor]:
        """The backbone and the method in eval mode, trained weights loaded; it decodes greedily.

        Args:
            trained: False leaves the method untrained and looks at no checkpoint, to train it.

        Raises:
            UserError: as `check`; weights that can't be loaded.
        """
        self.check(trained)
        backbone = self.load_backbone(trained)
        return backbone, self.fit(backbone, trained)

    def load_backbone(self, trained: bool = True) -> Backbone:
        """The backbone alone, as every method finds it.

        Raises:
            UserError: weights that can't be loaded.
        """
        backbone = (self.family.draw if self.has_random_weights else self.family.load)(self.backbone)
        if trained:
            from vtc.backbones.greedy import decode_greedily

            backbone.decoding_set_aside = decode_greedily(backbone.model)
        backbone.model.eval()
        return backbone

    def fit(self, backbone: Backbone, trained: bool = True) -> Compressor:
        """The method in eval mode, on a backbone that `load_backbone` gave; trained weights are put into both.

        Raises:
            UserError: weights that can't be loaded.
        """
        method = self.compressor.build().to(backbone.device, backbone.dtype)
        method.attach(backbone)
        if trained and self.weights is not None:
            from vtc import checkpoint

            lora = checkpoint.read_manifest(self.weights).get("training", {}).get("lora")
            where = f"checkpoint={self.weights}: training.lora"
            add_lora(backbone, method, from_mapping(LoraSettings, lora, where) if lora else None)
            checkpoint.load(self.weights, backbone, method)
        if trained:
            by_columns(backbone.model, method)  # which may have adapters now
        backbone.model.eval()
        return method.eval()

    # -- what identifies it
    def deciding(self, what: Decides) -> dict[str, Any]:
        """Settings that decide `what`, and the versions of the components that compute it."""
        from vtc import engine

        versions = {
            "engine": engine.VERSION,
            "family": families.version(self.backbone.family),
            "methods": {name: methods.version(name) for name in parts(self.method.name).values()},
        }
        return deciding(self, what) | {"versions": versions}

    # -- words
    @property
    def label(self) -> str:
        """`fwd2bot tokens=16`; with another picture than the question's own, `fwd2bot tokens=16 picture=grey`."""
        picture = f" picture={shown}" if (shown := self.benchmark.picture) != "own" else ""
        return f"{self.method.name} {self.budget_in_words}".rstrip() + picture

    @property
    def budget_in_words(self) -> str:
        """`tokens=16`; with those of a composition's earlier parts, `tokens=36-16`; of a mean, `mean tokens=16`."""
        mean = "mean " if self.budget.is_mean else ""
        earlier = [self.method.options.get(key) or {} for key in [*parts(self.method.name)][:-1]]
        budgets = [
            next(((key, part[key]) for key in BUDGETS if part.get(key) is not None), None)
            for part in (*earlier, self.budget.requested)
        ]
        if not any(budgets[:-1]):
            budgets = budgets[-1:]
        keys = {budget[0] for budget in budgets if budget}
        if len(keys) == 1:
            return f"{mean}{keys.pop()}={'-'.join(str(budget[1]) if budget else 'auto' for budget in budgets)}"
        return "-".join(f"{b[0]}={b[1]}" if b else "auto" for b in budgets) if keys else mean.strip()

    @property
    def command(self) -> str:
        """What to type to do it again."""
        if self.overrides is None:
            return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        start = ["python"] if (n := launched()) == 1 else ["accelerate", "launch", "--num_processes", str(n)]
        return shlex.join([*start, "-m", "vtc", *self.overrides])

    def config(self) -> dict[str, Any]:
        """The configuration as plain values, in the words of the command line, for result files."""
        backbone = {k: v for k, v in dataclasses.asdict(self.backbone).items() if k not in ("sizes", "released")}
        return {
            "action": self.action,
            "backbone": backbone,
            "method": {"name": self.method.name, **self.method.options},
            "benchmark": {k: v for k, v in dataclasses.asdict(self.benchmark).items() if v is not None},
            **self.budget.config(),
            **({"profile": dataclasses.asdict(self.profile)} if self.profile else {}),
            **({"training": dataclasses.asdict(self.training)} if self.training else {}),
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


def launched() -> int:
    """How many processes `accelerate launch` or `torchrun` started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def uncompressed(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The same overrides without those that say how to compress."""
    dropped = ("method", "layer_scale", "checkpoint", "resume", "budget", *BUDGETS)
    keys = {o: o.lstrip("+~").split("=")[0] for o in overrides}
    kept = [o for o, key in keys.items() if key.split(".")[0] not in dropped and key != "benchmark.picture"]
    return (*kept, "method=none")


def written(key: str, value: object) -> str:
    """An override for the command line; quoted for Hydra where it holds more than plain characters."""
    text = str(value)
    if re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII):
        return f"{key}={text}"
    text = text.replace("${", r"\${")  # no interpolation
    quoted = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), text)  # a backslash is one elsewhere
    return f"{key}='{quoted}'"


def add_lora(backbone: Backbone, method: Compressor, lora: LoraSettings | None) -> None:
    """Puts LoRA on the decoder, under which `method` answers from then on; None: nothing.

    Raises:
        UserError: a method that has adapters of its own.
    """
    if lora is None:
        return
    if method.adapter is not None:
        raise UserError(f"training.lora: method={method.name} has adapters of its own; see method.rank")
    backbone.add_adapters((TUNED,), lora.rank, lora.alpha or 2 * lora.rank, float(lora.dropout or 0.0))
    method.adapter = TUNED


# Trained weights -----------------------------------------------------------------------------------------------------


def weights_folder(job: Job) -> Path | None:
    """Where trained weights would be, unchecked."""
    if job.checkpoint != "auto":
        from vtc import checkpoint

        return checkpoint.folder_of(job.checkpoint) if job.checkpoint else None
    if job.backbone.name not in POCKET_WEIGHTS or job.backbone.pretrained:
        return None
    try:
        return shipped.path(f"{POCKET_WEIGHTS[job.backbone.name]}/{_shipped_name(job.method.name, job.compressor)}")
    except FileNotFoundError:
        return None


def _shipped_name(name: str, method: Compressor) -> str:
    """Folder of a method's shipped weights: of one budget, of every one, or LLaVolta's, named after its stages."""
    if method.elastic:
        return f"{name}-elastic"
    return f"{name}-{method.trained_for}" if method.fixed_budget else f"{name}-four"


def _check_manifest(folder: Path, job: Job) -> None:
    from vtc import checkpoint
    from vtc.methods import options_of

    method = job.compressor
    tokens = method.trained_for if method.fixed_budget else None
    manifest = checkpoint.check_manifest(folder, job.backbone.name, job.method.name, tokens)
    defaults = options_of(job.method.name)
    before: Mapping[str, Any] = defaults | dict(manifest.get("options") or {})
    now: Mapping[str, Any] = defaults | dict(job.method.options)
    for key in method.trained_options:
        if before.get(key) != now.get(key):
            raise UserError(
                f"checkpoint={folder}: was trained for method.{key}={before.get(key)}, not method.{key}={now.get(key)}"
            )


def _check_quantized(folder: Path, job: Job) -> None:
    """Weights that replace the decoder's own can't be put in where those are held in 4 or 8 bit; LoRA stands beside."""
    from vtc import checkpoint

    names, quantization = checkpoint.names_in(folder), job.backbone.quantization
    own = {n for n in names if n.startswith("backbone.") and ".lora_" not in n}
    if quantization == "none" or not own:
        return
    skeleton = job.family.skeleton(job.backbone)
    inside = {id(parameter) for parameter in skeleton.decoder.parameters()}
    replaced = [n for n, p in skeleton.model.named_parameters() if id(p) in inside and f"backbone.{n}" in own]
    if replaced:
        raise UserError(
            f"checkpoint={folder}: holds the decoder's own weights ({replaced[0]} first), and "
            f"backbone.quantization={quantization} has no place for them; allowed: none"
        )


def _untrained(job: Job) -> str:
    method, name, backbone = job.compressor, job.method.name, job.backbone.name
    tokens = "" if method.tokens is None else f" tokens={method.tokens}"
    there = ""
    if backbone in POCKET_WEIGHTS:
        folders = shipped.root().glob(f"{POCKET_WEIGHTS[backbone]}/{name}-*")
        ends = [folder.name.rpartition("-")[2] for folder in folders]
        budgets = sorted(int(end) for end in ends if end.isdigit())
        there = f" (shipped: tokens={', '.join(map(str, budgets))})" if budgets else ""
    return (
        f"method={name}{tokens}: it needs training, and there are no weights for it{there}; "
        f"train them (python -m vtc action=train backbone={backbone} method={name}{tokens}) or give checkpoint=<folder>"
    )
