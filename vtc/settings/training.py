"""Settings of a training: what it reads, its stages, the recipe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtc.allowed import BOOLEAN, TEXT, Allowed, mapping, number, one_of, several, text, whole
from vtc.errors import UserError
from vtc.identity import NOTHING, WEIGHTS, setting
from vtc.settings.run import FILES, FOLDER, NAMES, NOT_NEGATIVE, SECTION, ZERO_TO_ONE, fill, from_mapping

POSITIVE = number("a number above 0", above=0)
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
        group_by_length: samples of like length together.
        max_length: tokens of a sample, the image's among them.
        max_skipped: share of the samples, or a count, that may be unreadable.
        cache: the folder of indexes; None: the user's cache.
        questions, weights, twins: of a picture that is drawn: how many it is asked, of which kinds, and whether every
            other picture is its neighbour with the colours dealt out anew.
        worlds: what is drawn, scenes, dense scenes and videos: how many steps each has in turn.
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
    worlds: Mapping[str, int] = setting(
        {"scenes": 1}, WEIGHTS, mapping("numbers of steps in turn, by world", whole(0, limit=100))
    )
    tower_batch_size: int = setting(32, WEIGHTS, ROWS)
    instruct_questions: int = setting(12, WEIGHTS, whole(1, limit=1000))
    first_kinds: tuple[str, ...] = setting((), WEIGHTS, NAMES)
    first_share: float = setting(0.0, WEIGHTS, ZERO_TO_ONE)

    def __post_init__(self) -> None:
        fill(self, first_kinds=tuple(self.first_kinds))
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
        fill(self, train=tuple(self.train), data=dict(self.data or {}), betas=tuple(map(float, self.betas)))
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
