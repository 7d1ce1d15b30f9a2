"""A configuration as types: a dataclass for each section, each field with its default, what it may hold and what it
decides. `vtc.configuration.resolve` fills them from the command line; nothing behind it sees anything else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.allowed import BOOLEAN, SEED, TEXT, Allowed, anything, brief, mapping, number, one_of, several, text, whole
from vtc.errors import UserError, unknown
from vtc.identity import COSTS, NOTHING, NUMBERS, SCORES, WEIGHTS, setting

DTYPES = ("float32", "bfloat16", "float16", "auto")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def _is_device(value: Any) -> bool:
    name, _, index = str(value).partition(":")
    return name in ("auto", "cpu", "mps", "cuda") and (not index or (index.isdigit() and name == "cuda"))


FOLDER = Allowed("a folder", lambda v: whole(0).accepts(v) or text().accepts(v))  # which may be called 3
SECTION = mapping("keys with values, such as {one: 1, two: 2}")
NAMES = several("a list of names, such as [one,two]", text())
FILES = Allowed("a file, or a list of files", lambda value: TEXT.accepts(value) or NAMES.accepts(value), optional=True)
POSITIVE = number("a number above 0", above=0)
NOT_NEGATIVE = number("a number from 0 on", least=0)
ZERO_TO_ONE = number("0 to 1", least=0, most=1)
RISING = Allowed("two rising whole numbers from 1 on", lambda v: several("", whole(1), 2).accepts(v) and v[0] < v[1])
BETAS = several("two numbers from 0 on, below 1", Allowed("", lambda v: NOT_NEGATIVE.accepts(v) and v < 1), 2)
STAGE = re.compile(r"(?!weights$)[\w-]{1,99}")  # of its folder, beside that of the finished weights
STAGE_NAME = Allowed("a name of letters, digits, - and _", lambda v: isinstance(v, str) and bool(STAGE.fullmatch(v)))
OPTIMIZER = one_of("adamw", "muon")
DECAY = one_of("cosine", "linear", "constant")
LOSSES = one_of("both", "ar", "disc")
SOURCES = several("a list of {path, images, format, kind, captions}", SECTION).or_null()
STAGES = several("a list of stages, each with a name, lr and steps or epochs", SECTION, least=1)
ROWS = Allowed("a whole number of 1 or more", whole(1, 10**6).accepts)
SKIPPED = Allowed("a share of the samples below 1, or a count", lambda v: ZERO_TO_ONE.accepts(v) or whole(0).accepts(v))
DEVICE = Allowed("auto, cpu, mps, cuda, cuda:<n>", _is_device)
DEVICE_MAP = Allowed(
    ", ".join((*DEVICE_MAPS, "null", "{module: device}")), lambda v: isinstance(v, Mapping) or v in DEVICE_MAPS, True
)


def from_mapping(cls: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass of settings from plain values, each checked by its field.

    Args:
        where: the section's name in errors; empty for keys of the top level.

    Raises:
        UserError: no mapping, an unknown key, or a value that its field may not hold.
    """
    SECTION.check(where, values)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    required = [key for key, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    for key, value in (dict.fromkeys(required) | {**values}).items():
        if key not in fields:
            raise unknown(where, key, fields)
        if (allowed := fields[key].metadata.get("allowed")) is not None:
            allowed.check(f"{where}.{key}" if where else key, value)
    return cls(**values)


@dataclass(frozen=True)
class BackboneSettings:
    """A checkpoint of a family of models, and how it is loaded.

    Attributes:
        name: of the choice, as the user types it.
        family: the `model_type` under which its class is registered.
        released: where its weights are: a hub id, or a folder that comes with vtc.
        pretrained: other weights of the same family.
        sizes: what the released checkpoint's config.json says of sizes; None: the file is read.
        dtype, device, device_map: of the weights in memory; quantization: of the decoder's.
        attention: the implementation.
        trust_remote_code: whether code from the hub may run.
        frames: of a video.
        image_size: side in pixels of the square that every picture is resized to first; None: as the processor has it.
        tiles: whether pictures are cut into tiles; None: as the checkpoint has it.
    """

    name: str = setting("pocket", allowed=text())
    family: str = setting("llava", allowed=text())
    released: str | None = setting(None, NOTHING, TEXT)  # of what is read there, the content counts
    pretrained: str | None = setting(None, WEIGHTS, text("a transformers folder or a hub id").or_null())
    sizes: Mapping[str, Any] | None = setting(None, NOTHING, SECTION.or_null())
    dtype: str = setting("float32", NUMBERS, one_of(*DTYPES, *SHORT_DTYPES))
    device: str = setting("auto", NUMBERS, DEVICE)
    attention: str = setting("sdpa", NUMBERS, one_of("sdpa", "eager", "flash_attention_2"))
    device_map: str | Mapping[str, Any] | None = setting(None, COSTS, DEVICE_MAP)
    quantization: str = setting("none", NUMBERS, one_of("none", "4bit", "8bit"))
    trust_remote_code: bool = setting(False, NOTHING, BOOLEAN)
    frames: int | None = setting(None, NUMBERS, whole(1).or_null())
    image_size: int | None = setting(None, allowed=anything())  # a family says which sizes it can have
    tiles: bool | None = setting(None, allowed=BOOLEAN.or_null())

    @property
    def source(self) -> str:
        """Where the weights come from: the user's folder or hub id, else the released ones."""
        if self.pretrained:
            source = str(self.pretrained)
            return str(Path(source).expanduser()) if source.startswith("~") else source
        from vtc import shipped

        folder = shipped.root() / str(self.released)
        return str(folder) if folder.is_dir() else str(self.released)

    @property
    def is_released(self) -> bool:
        """Whether these are the released weights, of which `sizes` speaks."""
        return not self.pretrained or self.pretrained == self.released


@dataclass(frozen=True)
class MethodSettings:
    """A method and its options, defaults among them; of methods put together with +, those of each part by its key."""

    name: str = setting("none", allowed=text())
    options: Mapping[str, Any] = setting({}, allowed=SECTION)  # each is checked by its declaration


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is scored. What a task's data hold counts in the identity of the task (`vtc.evaluation.sources`).

    Attributes:
        name: of the suite; tasks: of the harness, by name.
        limit: samples a task; None: all.
        data: where its data are: a folder, a file or an id, as the kind of benchmark has it.
        include: folders with task files of the user's own.
        about: task → what the suite says of it.
        metric, prompt, subset, split, columns: of the user's own questions.
    """

    name: str = setting("pocket", SCORES, text())
    tasks: tuple[str, ...] = setting((), SCORES, NAMES)
    limit: int | None = setting(None, SCORES, whole(1).or_null())
    data: str | None = setting(None, NOTHING, TEXT)
    include: tuple[str, ...] = setting((), NOTHING, NAMES)
    about: Mapping[str, Mapping[str, Any]] = setting({}, NOTHING, SECTION)
    metric: str | None = setting(None, SCORES, TEXT)
    prompt: str | None = setting(None, SCORES, TEXT)
    subset: str | None = setting(None, SCORES, TEXT)
    split: str | None = setting(None, SCORES, TEXT)
    columns: Mapping[str, Any] | None = setting(None, SCORES, SECTION.or_null())

    def __post_init__(self) -> None:
        _set(self, tasks=tuple(self.tasks), include=tuple(self.include))  # configurations have lists


@dataclass(frozen=True)
class ProfileSettings:
    """How costs are measured: the protocol of Victor's paper (section 5.1).

    Attributes:
        batch_size: rows of a throughput measurement; prompt_tokens: text tokens of each prompt.
        new_tokens: how many are generated, never fewer: `</s>` doesn't end it.
        repeats: turns of each model, medians are reported; first_token_repeats: turns of a prefill of one row.
        weights, width: `stored`, or `random` of the backbone's sizes (no download) with all widths divided by `width`.
        compiled: whether decoding is one compiled step where it can be (`vtc.engine.decoding`).
    """

    batch_size: int = setting(16, COSTS, whole(1))
    prompt_tokens: int = setting(64, COSTS, whole(1))
    new_tokens: tuple[int, int] = setting((2, 128), COSTS, RISING)
    repeats: int = setting(5, COSTS, whole(1))
    first_token_repeats: int = setting(20, COSTS, whole(1))
    weights: str = setting("stored", COSTS, one_of("stored", "random"))
    width: int = setting(1, COSTS, whole(1))
    compiled: bool = setting(False, COSTS, BOOLEAN)

    def __post_init__(self) -> None:
        _set(self, new_tokens=tuple(self.new_tokens))


@dataclass(frozen=True)
class ReportSettings:
    """What a report reads and where it is written; None: `output_dir`, and `output_dir/report`."""

    inputs: tuple[str, ...] | None = setting(None, NOTHING, FILES)
    output: str | None = setting(None, NOTHING, FOLDER.or_null())
    title: str = setting("Visual-token compression", NOTHING, text())

    def __post_init__(self) -> None:
        _set(self, inputs=_several(self.inputs))


@dataclass(frozen=True)
class AblationSettings:
    """Which part of a paper's ablation is run.

    Attributes:
        name: of the experiment; variants: names of some; None: all; seeds: of the trainings.
        trained: folders with finished trainings too; overrides: settings that every variant gets too, as typed.
    """

    name: str = setting("", NOTHING, text())
    variants: tuple[str, ...] | None = setting(None, NOTHING, anything())  # these two are checked together
    seeds: tuple[int, ...] = setting((0,), NOTHING, anything())
    trained: tuple[str, ...] = setting((), NOTHING, FILES)
    overrides: tuple[str, ...] = setting((), NOTHING, several("overrides", text()))

    def __post_init__(self) -> None:
        """One name or number may stand for a list of one."""
        variants, seeds = _several(self.variants), _several(self.seeds)
        if variants == () or not seeds or not all(map(SEED.accepts, seeds)):
            shown = ["null" if v is None else brief(f"[{','.join(map(str, v))}]") for v in (variants, seeds)]
            raise UserError(f"variants={shown[0]}, seeds={shown[1]}: allowed: names in a list, whole numbers in a list")
        _set(self, variants=variants, seeds=seeds, trained=_several(self.trained) or ())


def _set(settings: Any, **values: Any) -> None:
    """Fields of frozen settings, while they are made."""
    for key, value in values.items():
        object.__setattr__(settings, key, value)


def _several(value: Any) -> tuple[Any, ...] | None:
    """A list as a tuple, a single value as a tuple of one; None as it is."""
    return value if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)


@dataclass(frozen=True)
class DataSettings:
    """What a training reads: files of the user's (`path` or `sources`), or scenes that are drawn.

    Attributes:
        batch_size: pictures or samples a step, over all processes and micro-batches.
        contrastive: weight of the contrastive loss of methods without one of their own.
        source: `files`, or the name of a set that draws its scenes (`vtc.registry.training_sources`); None: files where
            some are named, else the set that is called as the backbone is.
        path: one file or several, braces and globs expanded; images: the folder that image paths are relative to;
            None: the file's. format, kind: None: read off the file. captions: a second file of {image, caption}.
        sources: instead of `path`: a list of mappings with these five keys.
        mix: weights of conversation, caption and both steps; None: as many contrastive as autoregressive ones.
        plain: LLaVA's first stage: the image and its caption, no prompt.
        group_by_length: samples of like length together. cache: the folder of indexes; None: the user's cache.
        max_length: tokens of a sample, the image's among them.
        max_skipped: share of the samples, or a count, that may be unreadable.
        questions, weights, twins: of a picture that is drawn: how many it is asked, of which kinds, and whether every
            other picture is its neighbour with the colours dealt out anew.
        tower_batch_size, instruct_questions, first_kinds, first_share: of the recipe of pocket itself.
    """

    batch_size: int = setting(24, WEIGHTS, ROWS)
    contrastive: float = setting(0.0, WEIGHTS, NOT_NEGATIVE)
    source: str | None = setting(None, WEIGHTS, TEXT)
    path: Any = setting(None, WEIGHTS, FILES)
    images: str | None = setting(None, WEIGHTS, TEXT)
    format: str | None = setting(None, WEIGHTS, TEXT)
    kind: str | None = setting(None, WEIGHTS, TEXT)
    captions: str | None = setting(None, WEIGHTS, TEXT)
    sources: Any = setting(None, WEIGHTS, SOURCES)
    mix: Mapping[str, Any] | None = setting(
        None, WEIGHTS, mapping("weights from 0 on, by kind", NOT_NEGATIVE).or_null()
    )
    plain: bool = setting(False, WEIGHTS, BOOLEAN)
    group_by_length: bool = setting(False, WEIGHTS, BOOLEAN)
    max_length: int | None = setting(None, WEIGHTS, ROWS.or_null())
    max_skipped: float = setting(0.01, NOTHING, SKIPPED)
    cache: str | None = setting(None, NOTHING, TEXT)
    questions: int = setting(12, WEIGHTS, whole(1, limit=1000))
    weights: Mapping[str, float] = setting({}, WEIGHTS, mapping("weights from 0 on, by kind", NOT_NEGATIVE))
    twins: bool = setting(False, WEIGHTS, BOOLEAN)
    tower_batch_size: int = setting(32, WEIGHTS, ROWS)
    instruct_questions: int = setting(12, WEIGHTS, whole(1, limit=1000))
    first_kinds: tuple[str, ...] = setting((), WEIGHTS, NAMES)
    first_share: float = setting(0.0, WEIGHTS, ZERO_TO_ONE)

    def __post_init__(self) -> None:
        _set(self, first_kinds=tuple(self.first_kinds))
        for key, value in (("batch_size", self.batch_size), ("max_length", self.max_length)):
            if not ROWS.accepts(value) and (value is not None or key == "batch_size"):
                raise UserError(f"training.data.{key}={value}: {ROWS.words}")


@dataclass(frozen=True)
class StageSettings:
    """One stage of a training.

    Attributes:
        train: the parts that learn; data: what differs from the training's.
        steps, epochs: one of the two.
        lr, adam_lr: peak rates; `adam_lr` is AdamW's beside Muon.
        warmup, cooldown: shares of the steps.
        clip: largest norm of the gradient.
        bf16: whether it computes in bfloat16; `auto`: where that isn't many times slower.
        compress: False trains without compression.
        accumulate, keep: None: the training's.
    """

    name: str = setting(decides=WEIGHTS, allowed=STAGE_NAME)
    lr: float = setting(decides=WEIGHTS, allowed=POSITIVE)
    train: tuple[str, ...] = setting((), WEIGHTS, NAMES)
    data: Mapping[str, Any] = setting({}, WEIGHTS, SECTION.or_null())
    steps: int | None = setting(None, WEIGHTS, whole(1, 10**9).or_null())
    epochs: float | None = setting(None, WEIGHTS, number("above 0, at most 10,000", above=0, most=1e4).or_null())
    optimizer: str = setting("adamw", WEIGHTS, OPTIMIZER)
    adam_lr: float | None = setting(None, WEIGHTS, POSITIVE.or_null())
    weight_decay: float = setting(0.0, WEIGHTS, NOT_NEGATIVE)
    betas: tuple[float, float] = setting((0.9, 0.98), WEIGHTS, BETAS)
    warmup: float = setting(0.03, WEIGHTS, ZERO_TO_ONE)
    decay: str = setting("cosine", WEIGHTS, DECAY)
    cooldown: float = setting(0.25, WEIGHTS, ZERO_TO_ONE)
    clip: float = setting(1.0, WEIGHTS, POSITIVE)
    bf16: bool | str = setting(False, WEIGHTS, one_of("auto", True, False))
    compress: bool = setting(True, WEIGHTS, BOOLEAN)
    accumulate: int | None = setting(None, WEIGHTS, ROWS.or_null())  # negatives are those of a micro-batch
    keep: int | None = setting(None, NOTHING, whole(1).or_null())
    validate_every: int = setting(0, NOTHING, whole(0))
    checkpoint_every: int = setting(200, NOTHING, whole(1))
    log_every: int = setting(20, NOTHING, whole(1))

    def __post_init__(self) -> None:
        _set(self, train=tuple(self.train), data=dict(self.data or {}), betas=tuple(map(float, self.betas)))
        if (self.steps is None) == (self.epochs is None):
            raise UserError(f"training.stages: stage {self.name!r}: give steps= or epochs=, one of them")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the decoder, of a method that brings no adapters of its own; `alpha` of None: 2·rank."""

    rank: int = setting(decides=WEIGHTS, allowed=whole(1, limit=2**16))
    alpha: int | None = setting(None, WEIGHTS, whole(1, limit=2**16).or_null())
    dropout: float | None = setting(None, WEIGHTS, ZERO_TO_ONE.or_null())


@dataclass(frozen=True)
class TrainingSettings:
    """A recipe.

    Attributes:
        recipe: `method`: a method on a backbone; `base`: the pocket model from nothing; or one of `registry.recipes`.
        folder: where logs, states and weights go; None: one of its own by its id.
        pretrained: the backbone's weights to start from; `aligned`: pocket before it was instructed; None: its own.
        start: a checkpoint of the same method to start from, of any budget.
        store: type of the stored weights.
        losses: `ar`, `disc` or `both`, each where it applies.
        accumulate: micro-batches a step.
        checkpointing: gradient checkpointing: less memory, more time.
        workers: processes that load batches ahead; keep: resumable states that are kept.
        dry_run: say what each stage trains and the memory it takes, and stop.
        log: trackers beside log.jsonl.
    """

    recipe: str = setting("method", WEIGHTS, text())
    folder: str | None = setting(None, NOTHING, FOLDER.or_null())
    pretrained: str | None = setting(None, WEIGHTS, TEXT)
    start: str | None = setting(None, WEIGHTS, TEXT)
    store: str = setting("bfloat16", WEIGHTS, one_of("bfloat16", "float32"))
    losses: str = setting("both", WEIGHTS, LOSSES)
    lora: LoraSettings | None = setting(None, WEIGHTS)
    accumulate: int = setting(1, WEIGHTS, ROWS)
    checkpointing: bool = setting(False, NOTHING, BOOLEAN)
    workers: int = setting(0, NOTHING, whole(0, limit=1024))
    keep: int = setting(2, NOTHING, whole(1))
    dry_run: bool = setting(False, NOTHING, BOOLEAN)
    log: tuple[str, ...] = setting((), NOTHING, NAMES)
    data: DataSettings = setting(DataSettings(), WEIGHTS)
    stages: tuple[StageSettings, ...] = setting((), WEIGHTS)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """A recipe from plain values, as a configuration or a manifest has them.

        Raises:
            UserError: as `from_mapping`.
        """
        typed = {key: value for key, value in values.items() if value is not None or key not in ("data", "lora", "log")}
        typed["data"] = from_mapping(DataSettings, typed.get("data", {}), "training.data")
        if "lora" in typed:
            typed["lora"] = from_mapping(LoraSettings, typed["lora"], "training.lora")
        if "stages" in typed:
            STAGES.check("training.stages", typed["stages"])
            numbered = enumerate(typed["stages"])
            typed["stages"] = tuple(from_mapping(StageSettings, each, f"training.stages.{n}") for n, each in numbered)
        training = from_mapping(cls, typed, "training")
        if len({stage.name for stage in training.stages}) < len(training.stages):
            raise UserError("training.stages: two stages have one name; each needs a folder of its own")
        for stage in training.stages:
            training.data_of(stage)
        return training

    def data_of(self, stage: StageSettings) -> DataSettings:
        """The data of a stage.

        Raises:
            UserError: as `from_mapping`, in what it says of its own.
        """
        from_mapping(DataSettings, stage.data, f"training.stages: {stage.name}.data")
        return dataclasses.replace(self.data, **stage.data)
