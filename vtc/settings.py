"""A configuration as types: a dataclass for each section, each field with its default, what it may hold and what it
decides. `vtc.configuration.resolve` fills them from the command line; nothing behind it sees anything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.allowed import BOOLEAN, Allowed, one_of, text, whole
from vtc.errors import unknown
from vtc.identity import COSTS, NOTHING, NUMBERS, SCORES, WEIGHTS, setting

DTYPES = ("float32", "bfloat16", "float16", "auto")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUANTIZATIONS = ("none", "4bit", "8bit")
ACTIONS = ("evaluate", "train", "ablate", "profile", "report")


def _is_device(value: Any) -> bool:
    name, _, index = str(value).partition(":")
    return name in ("auto", "cpu", "mps", "cuda") and (not index or (index.isdigit() and name == "cuda"))


DEVICE = Allowed("auto, cpu, mps, cuda, cuda:<n>", _is_device)
DEVICE_MAP = Allowed(
    ", ".join((*DEVICE_MAPS, "null", "{module: device}")),
    lambda value: value in DEVICE_MAPS or isinstance(value, Mapping),
    optional=True,
)


def from_mapping(cls: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass of settings from plain values, each checked by its field.

    Args:
        where: the section's name in errors; empty for keys of the top level.

    Raises:
        UserError: an unknown key, or a value that its field may not hold.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in values.items():
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
        pretrained: other weights of the same family; None: the released ones.
        sizes: what the released checkpoint's config.json says, as far as sizes go, so that nobody must be asked; None:
            the file is read.
        dtype: of the weights in memory.
        device, device_map: where they go.
        attention: the implementation.
        quantization: of the decoder's weights.
        trust_remote_code: whether code from the hub may run.
        frames: of a video.
        image_size: side in pixels of the square that every picture is resized to first; None: as the processor has it.
        tiles: whether pictures are cut into tiles; None: as the checkpoint has it.
    """

    name: str = setting("pocket")
    family: str = setting("llava")
    released: str | None = setting(None, NOTHING)  # of what is read there, the content counts
    pretrained: str | None = setting(None, WEIGHTS, text("a transformers folder or a hub id").or_null())
    sizes: Mapping[str, Any] | None = setting(None, NOTHING)
    dtype: str = setting("float32", NUMBERS, one_of(*DTYPES, *SHORT_DTYPES))
    device: str = setting("auto", NUMBERS, DEVICE)
    attention: str = setting("sdpa", NUMBERS, one_of(*ATTENTIONS))
    device_map: str | Mapping[str, Any] | None = setting(None, COSTS, DEVICE_MAP)
    quantization: str = setting("none", NUMBERS, one_of(*QUANTIZATIONS))
    trust_remote_code: bool = setting(False, NOTHING, BOOLEAN)
    frames: int | None = setting(None, NUMBERS, whole(1).or_null())
    image_size: int | None = setting(None)  # a family says which sizes it can have
    tiles: bool | None = setting(None)

    @property
    def source(self) -> str:
        """Where the weights come from: the user's folder or hub id, else the released ones."""
        if self.pretrained:
            given = str(self.pretrained)
            return str(Path(given).expanduser()) if given.startswith("~") else given
        from vtc import shipped

        folder = shipped.root() / str(self.released)
        return str(folder) if folder.is_dir() else str(self.released)

    @property
    def is_released(self) -> bool:
        """Whether these are the released weights, of which `sizes` speaks."""
        return not self.pretrained or self.pretrained == self.released


@dataclass(frozen=True)
class MethodSettings:
    """A method and its options, the defaults among them; of methods put together with +, those of each part by its
    key."""

    name: str = setting("none")
    options: Mapping[str, Any] = setting({})


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is scored. What a task's data hold counts in the identity of the task (`vtc.evaluation.sources`).

    Attributes:
        name: of the suite.
        tasks: of the harness, by name.
        limit: samples a task; None: all.
        data: where its data are: a folder, a file or an id, as the kind of benchmark has it.
        include: folders with task files of the user's own.
        about: task → what the suite says of it.
        metric, prompt, subset, split, columns: of the user's own questions.
    """

    name: str = setting("pocket", SCORES)
    tasks: tuple[str, ...] = setting((), SCORES)
    limit: int | None = setting(None, SCORES, whole(1).or_null())
    data: str | None = setting(None, NOTHING)
    include: tuple[str, ...] = setting((), NOTHING)
    about: Mapping[str, Mapping[str, Any]] = setting({}, NOTHING)
    metric: str | None = setting(None, SCORES)
    prompt: str | None = setting(None, SCORES)
    subset: str | None = setting(None, SCORES)
    split: str | None = setting(None, SCORES)
    columns: Mapping[str, Any] | None = setting(None, SCORES)

    def __post_init__(self) -> None:
        """Lists, as configurations have them, become tuples."""
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "include", tuple(self.include))


@dataclass(frozen=True)
class ProfileSettings:
    """How costs are measured: the protocol of Victor's paper (section 5.1).

    Attributes:
        batch_size: rows of a throughput measurement.
        prompt_tokens: text tokens of each prompt.
        new_tokens: how many are generated, never fewer: `</s>` doesn't end it.
        repeats: turns of each model; the medians are reported.
        first_token_repeats: turns of a prefill of one row.
    """

    batch_size: int = setting(16, COSTS, whole(1))
    prompt_tokens: int = setting(64, COSTS, whole(1))
    new_tokens: tuple[int, int] = setting((2, 128), COSTS)
    repeats: int = setting(5, COSTS, whole(1))
    first_token_repeats: int = setting(20, COSTS, whole(1))

    def __post_init__(self) -> None:
        object.__setattr__(self, "new_tokens", tuple(self.new_tokens))


@dataclass(frozen=True)
class ReportSettings:
    """What a report reads and where it is written; None: `output_dir`, and `output_dir/report`."""

    inputs: tuple[str, ...] | None = setting(None, NOTHING)
    output: str | None = setting(None, NOTHING)
    title: str = setting("Visual-token compression", NOTHING)

    def __post_init__(self) -> None:
        if self.inputs is not None:
            folders = (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
            object.__setattr__(self, "inputs", folders)


@dataclass(frozen=True)
class AblationSettings:
    """Which part of a paper's ablation is run.

    Attributes:
        name: of the experiment; variants: names of some; None: all.
        seeds: of the trainings; trained: folders in which to look for finished trainings too.
        overrides: settings that every variant gets too, as typed.
    """

    name: str = setting("", NOTHING)
    variants: tuple[str, ...] | None = setting(None, NOTHING)
    seeds: tuple[int, ...] = setting((0,), NOTHING)
    trained: tuple[str, ...] = setting((), NOTHING)
    overrides: tuple[str, ...] = setting((), NOTHING)
