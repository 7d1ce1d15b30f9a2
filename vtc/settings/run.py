"""Settings of a run: backbone, method, benchmark, costs, report, ablation; and how each is filled and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.allowed import BOOLEAN, SEED, TEXT, Allowed, anything, brief, mapping, number, one_of, several, text, whole
from vtc.errors import UserError, unknown
from vtc.identity import COSTS, NOTHING, NUMBERS, SCORES, WEIGHTS, setting

METHOD_KINDS = ("pruner", "merger", "tower", "resampler", "self")  # with which a new method may begin
DTYPES = ("float32", "bfloat16", "float16", "auto")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def _is_device(value: Any) -> bool:
    name, _, index = str(value).partition(":")
    return name in ("auto", "cpu", "mps", "cuda") and (not index or (index.isdigit() and name == "cuda"))


FOLDER = Allowed("a folder", lambda v: whole(0).accepts(v) or text().accepts(v))  # which may be called 3
SECTION = mapping("keys with values, such as {one: 1, two: 2}")
PICTURES = ("own", "grey", "other")
NAMES = several("a list of names, such as [one,two]", text())
FILES = Allowed("a file, or a list of files", lambda value: TEXT.accepts(value) or NAMES.accepts(value), optional=True)
NOT_NEGATIVE = number("a number from 0 on", least=0)
ZERO_TO_ONE = number("0 to 1", least=0, most=1)
RISING = Allowed("two rising whole numbers from 1 on", lambda v: several("", whole(1), 2).accepts(v) and v[0] < v[1])
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
        picture: which picture each question is asked about: its own; `grey`: one of its size without content;
            `other`: another sample's. What a score owes to the picture is what the latter two take away.
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
    picture: str = setting("own", SCORES, one_of(*PICTURES), later=True)

    def __post_init__(self) -> None:
        fill(self, tasks=tuple(self.tasks), include=tuple(self.include))  # configurations have lists


@dataclass(frozen=True)
class ProfileSettings:
    """How costs are measured: the protocol of Victor's paper (section 5.1).

    Attributes:
        batch_size: rows of a throughput measurement.
        prompt_tokens: text tokens of each prompt.
        new_tokens: how many are generated, never fewer: `</s>` doesn't end it.
        repeats: turns of each model; the medians are reported; 0: no throughput.
        first_token_repeats: turns of a prefill of one row; 0: no times at all, FLOPs are counted all the same.
        weights, width: `stored`, or `random` of the backbone's sizes (no download) with all widths divided by `width`.
        compiled: whether decoding is one compiled step where it can be (`vtc.engine.decoding`).
    """

    batch_size: int = setting(16, COSTS, whole(1))
    prompt_tokens: int = setting(64, COSTS, whole(1))
    new_tokens: tuple[int, int] = setting((2, 128), COSTS, RISING)
    repeats: int = setting(5, COSTS, whole(0))
    first_token_repeats: int = setting(20, COSTS, whole(0))
    weights: str = setting("stored", COSTS, one_of("stored", "random"))
    width: int = setting(1, COSTS, whole(1))
    compiled: bool = setting(False, COSTS, BOOLEAN)

    def __post_init__(self) -> None:
        fill(self, new_tokens=tuple(self.new_tokens))


FIGURES = ("png", "svg", "pdf")


@dataclass(frozen=True)
class ReportSettings:
    """What a report reads and where it is written; None: `output_dir`, and `output_dir/report`.

    Attributes:
        reference: a table of the papers (`vtc.report.paper`) that is printed with ours beside it.
        samples: how many questions the page shows with their pictures and answers, the most telling first.
        figures: kinds of files that static figures are written as; none: the page alone has figures.
    """

    inputs: tuple[str, ...] | None = setting(None, NOTHING, FILES)
    output: str | None = setting(None, NOTHING, FOLDER.or_null())
    title: str = setting("Visual-token compression", NOTHING, text())
    reference: str | None = setting(None, NOTHING, TEXT)
    samples: int = setting(300, NOTHING, whole(0, 10_000))
    figures: tuple[str, ...] = setting(("png",), NOTHING, several("a list of png, svg, pdf", one_of(*FIGURES)))

    def __post_init__(self) -> None:
        fill(self, inputs=several_of(self.inputs), figures=several_of(self.figures) or ())


@dataclass(frozen=True)
class CompareSettings:
    """Which two runs are compared, and where that is written; None: `output_dir/compare`.

    Attributes:
        a, b: a run's folder, its result file, or its id below `output_dir`.
        samples: how many questions the page shows, those that flipped first.
    """

    a: str | None = setting(None, NOTHING, FOLDER.or_null())
    b: str | None = setting(None, NOTHING, FOLDER.or_null())
    output: str | None = setting(None, NOTHING, FOLDER.or_null())
    samples: int = setting(300, NOTHING, whole(0, 10_000))


@dataclass(frozen=True)
class NewMethodSettings:
    """What `action=new_method` writes: a method of this name, beginning with the base class of this kind."""

    name: str | None = setting(None, NOTHING, TEXT)
    kind: str = setting("pruner", NOTHING, one_of(*METHOD_KINDS))


@dataclass(frozen=True)
class AblationSettings:
    """Which part of a paper's ablation is run.

    Attributes:
        name: of the experiment; variants: names of some; None: all; seeds: of the trainings.
        trained: folders in which to look for finished trainings too.
        overrides: settings that every variant gets too, as typed.
    """

    name: str = setting("", NOTHING, text())
    variants: tuple[str, ...] | None = setting(None, NOTHING, anything())  # these two are checked together
    seeds: tuple[int, ...] = setting((0,), NOTHING, anything())
    trained: tuple[str, ...] = setting((), NOTHING, FILES)
    overrides: tuple[str, ...] = setting((), NOTHING, several("overrides", text()))

    def __post_init__(self) -> None:
        """One name or number may stand for a list of one."""
        variants, seeds = several_of(self.variants), several_of(self.seeds)
        if variants == () or not seeds or not all(map(SEED.accepts, seeds)):
            shown = ["null" if v is None else brief(f"[{','.join(map(str, v))}]") for v in (variants, seeds)]
            raise UserError(f"variants={shown[0]}, seeds={shown[1]}: allowed: names in a list, whole numbers in a list")
        fill(self, variants=variants, seeds=seeds, trained=several_of(self.trained) or ())


def fill(settings: Any, **values: Any) -> None:
    """Fields of frozen settings, while they are made."""
    for key, value in values.items():
        object.__setattr__(settings, key, value)


def several_of(value: Any) -> tuple[Any, ...] | None:
    """A list as a tuple, a single value as a tuple of one; None as it is."""
    return value if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
