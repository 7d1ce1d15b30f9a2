"""Where a training's batches come from, and the source that reads files: their kinds, the order of samples, and what
could not be read."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from braceexpand import braceexpand

from vtc.backbones.base import Backbone
from vtc.data.training import formats
from vtc.data.training.batch import WHOLE, Batch, Part
from vtc.data.training.collate import Encoder, Row
from vtc.data.training.formats import FORMATS, KINDS, BadSample
from vtc.data.training.index import DataFile
from vtc.data.training.order import Mix, shuffled
from vtc.distributed import gather_objects
from vtc.errors import UserError, unknown
from vtc.settings import DataSettings
from vtc.shipped import cache_folder

FIELDS = ("path", "images", "format", "kind", "captions")  # of one of data.sources
RULES = {f.name: f.metadata["allowed"] for f in dataclasses.fields(DataSettings)}
WINDOW = 32  # batches among which samples are sorted by length
PROBED = 8  # images that are looked for before anything begins
NAMED = 5  # samples that an error names

# What a validation needs of a model: a batch → (logits [B, L, V], embeddings of pictures and captions or None).
Answers = Callable[[Any], tuple[torch.Tensor, "tuple[torch.Tensor, torch.Tensor] | None"]]


class TrainingSource(Protocol):
    """Batches as a function of the seed, the step and the part alone.

    One that is registered (`vtc.registry.training_sources`, or the entry point `vtc.training_sources`) can be chosen
    by `training.data.source=<name>`; somebody's own set of drawn pictures is a class of this kind.

    Attributes:
        batch_size: rows of the global batch of a step.

    A source that can say how well a model does has `validate(answers: Answers, device) -> dict[str, float]` too, one of
    a known size `__len__`, so that a stage may be counted in epochs, and one that can refuse its settings before a
    backbone is loaded a class method `check(data)`.
    """

    batch_size: int

    @classmethod
    def of_stage(cls, name: str, data: DataSettings, backbone: Backbone, seed: int, embed: bool) -> TrainingSource:
        """The source of a stage.

        Args:
            name: of the stage.
            embed: whether a contrastive loss reads an embedding of each picture.
        """
        ...

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        """A part of the global batch of a step."""
        ...


@dataclass
class Skipped:
    """The distinct samples that were met and could not be used.

    In one process, with any number of loading workers, the count after a step is that of all steps up to it. Several
    processes each meet their own part: `synchronise` gives all of them the union, so that a sample that two of them met
    counts once.

    Attributes:
        limit: how many are allowed.
        total: samples of the data.
        setting: what `max_skipped` says.
        reasons: (kind, number) → file, place, id and reason.
    """

    limit: int
    total: int
    setting: Any
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reasons)

    def update(self, reasons: Mapping[tuple[str, int], str]) -> None:
        """Counts samples, those known already not again.

        Raises:
            UserError: they are more than the limit; names the first few.
        """
        self.reasons.update((sample, why) for sample, why in reasons.items() if sample not in self.reasons)
        if len(self.reasons) > self.limit:
            first = "; ".join(list(self.reasons.values())[:NAMED])
            raise UserError(
                f"training.data.max_skipped={self.setting}: {len(self.reasons)} of {self.total} samples can't be used, "
                f"more than the {self.limit} allowed: {first}{'; …' if len(self.reasons) > NAMED else ''}"
            )

    def synchronise(self) -> None:
        """The union over all processes of torch.distributed; nothing where there is one. Every process must call it.

        Raises:
            UserError: in all of them, when they are more than the limit together.
        """
        self.update({sample: why for reasons in gather_objects(self.reasons) for sample, why in reasons.items()})


class FileSource:
    """Conversations and caption pairs from files, as batches that are a function of (seed, step, part).

    A step is of one kind (see `Mix.of`). Each kind has its own permutation per epoch, and its steps read on where its
    last one ended, over the end of an epoch into the next. A sample that can't be used is replaced by the one in its
    place in the kind's next batch: that depends on neither other samples nor other processes.

    Args:
        data: what is read. Of `group_by_length`: samples are sorted among 32 batches, text without images apart.
        backbone: its processor, prompts and dtype are used.
        seed: of the order.

    Raises:
        UserError: a value that isn't allowed, a file that isn't there or is damaged, or images that aren't where
            `images` says.
    """

    def __init__(self, data: DataSettings, backbone: Backbone, seed: int) -> None:
        self.seed, self.batch_size, self.grouped = seed, data.batch_size, data.group_by_length
        self.encoder = Encoder(backbone, data.plain, data.max_length)
        share = _skippable(data.max_skipped)
        self.files, self.ends, self.counts, self.mix = _opened(data)
        self.skipped = Skipped(int(share * len(self)) if share < 1 else int(share), len(self), data.max_skipped)
        self._window: tuple[tuple[str, int], np.ndarray] | None = None

    @classmethod
    def of_stage(cls, name: str, data: DataSettings, backbone: Backbone, seed: int, embed: bool) -> FileSource:
        """See `TrainingSource.of_stage`. The order of the samples is the same in every stage."""
        return cls(data, backbone, seed)

    @classmethod
    def check(cls, data: DataSettings) -> None:
        """Refuses what can be refused without a backbone; the files are read and their indexes made."""
        _skippable(data.max_skipped)
        _opened(data)

    def __len__(self) -> int:
        """Samples, of all kinds."""
        return sum(self.counts.values())

    def kind(self, step: int) -> str:
        """conversation, caption or both: what all rows of a step are."""
        return self.mix.at(step)[0]

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        """A part of the global batch of a step.

        Raises:
            UserError: too many samples can't be used, or the part has none.
        """
        kind, turn = self.mix.at(step)
        slots = range(self.batch_size)[part.of(self.batch_size)]
        if not slots:
            raise UserError(f"training.data.batch_size={self.batch_size}: fewer samples than processes × accumulate")
        return self.encoder.collate([self._row(kind, turn, slot) for slot in slots])

    def _row(self, kind: str, turn: int, slot: int) -> Row:
        for later in range(2 * ceil(self.counts[kind] / self.batch_size) + WINDOW):
            number = int(self.numbers(kind, turn + later)[slot])
            if (kind, number) in self.skipped.reasons:
                continue
            (at,), (place,) = self._located(kind, np.array([number]))
            file = self.files[at]
            try:
                return self.encoder.row(kind, file.sample(kind, place))
            except BadSample as error:
                self.skipped.update({(kind, number): f"{file.name(kind, place)}: {error}"})
        reason = next(iter(self.skipped.reasons.values()))
        raise UserError(f"training.data: no {kind} sample can be used in step after step, e.g. {reason}")

    def numbers(self, kind: str, turn: int) -> np.ndarray:
        """Which samples of a kind its batch number `turn` has, [batch_size], before any is replaced."""
        size = self.batch_size
        if not self.grouped or kind == "caption":
            return self._drawn(kind, np.arange(turn * size, (turn + 1) * size))
        window, place = divmod(turn, WINDOW)
        if self._window is None or self._window[0] != (kind, window):
            numbers = self._drawn(kind, np.arange(window * WINDOW * size, (window + 1) * WINDOW * size))
            batches = numbers[np.argsort(self._lengths(kind, numbers), kind="stable")].reshape(WINDOW, size)
            order = shuffled(np.arange(WINDOW), WINDOW, (self.seed, len(KINDS) + KINDS.index(kind), window))
            self._window = (kind, window), batches[order]
        return self._window[1][place]

    def _drawn(self, kind: str, positions: np.ndarray) -> np.ndarray:
        """Samples at these places of the endless series of epochs."""
        epochs, within = np.divmod(positions, self.counts[kind])
        numbers = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = (self.seed, KINDS.index(kind), int(epoch))
            numbers[here] = shuffled(within[here], self.counts[kind], key)
        return numbers

    def _located(self, kind: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The file of each sample, and its place among those of its kind there."""
        files = np.searchsorted(self.ends[kind], numbers, side="right")
        return files, numbers - np.append(0, self.ends[kind])[files]

    def _lengths(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """What samples are sorted by: bytes of text, those without an image before all others."""
        files, places = self._located(kind, numbers)
        lengths = np.empty(len(numbers), dtype=np.int64)
        for at in np.unique(files):
            here = files == at
            records = self.files[at].of_kind(kind)[places[here]]
            lengths[here] = records["size"].astype(np.int64) + (records["pictures"].astype(np.int64) << 40)
        return lengths


# ----------------------------------------------------------------------------------------------------- settings
def _opened(data: DataSettings) -> tuple[list[DataFile], dict[str, np.ndarray], dict[str, int], Mix]:
    """The files, of each kind where each file's samples end among all and how many there are, and the mix of kinds."""
    files = list(_files(data))
    counts = np.array([file.counts for file in files])  # [files, kinds]
    ends = dict(zip(KINDS, counts.cumsum(0).T, strict=True))
    totals = {kind: int(each[-1]) for kind, each in ends.items()}
    if not sum(totals.values()):
        raise UserError("training.data: the files hold no sample")
    mix = Mix.of(totals, data.mix)
    _look_for_images(files)
    return files, ends, totals, mix


def _skippable(limit: Any) -> Fraction:
    """A share below 1, or a whole number."""
    try:
        share = Fraction(str(limit))
    except ValueError:
        share = Fraction(-1)
    if share < 0 or (share > 1 and share.denominator != 1):
        raise UserError(f"training.data.max_skipped={limit}: a share of the samples below 1, or a count")
    return share


def _files(data: DataSettings) -> Iterator[DataFile]:
    cache = Path(data.cache or cache_folder() / "index").expanduser()
    if data.sources and data.path:
        raise UserError("training.data: path and sources are two ways to say the same; give one of them")
    if not data.sources and not data.path:
        raise UserError("training.data.path=null: the file or files to train on, or training.data.sources")
    for source in data.sources or [{key: getattr(data, key) for key in FIELDS}]:
        for key, value in source.items():
            if key not in FIELDS:
                raise unknown("training.data.sources", key, FIELDS)
            RULES[key].check(f"training.data.sources.{key}", value)
        format, kind = source.get("format"), source.get("kind")
        for key, value, allowed in (("format", format, FORMATS), ("kind", kind, KINDS)):
            if value is not None and value not in allowed:
                raise unknown(f"training.data.{key}", value, allowed)
        images, captions = source.get("images"), source.get("captions")
        folder = Path(images).expanduser() if images else None
        if folder and not folder.is_dir():
            raise UserError(f"training.data.images={images}: no such folder")
        second = None
        if captions:
            (path,) = _paths(captions, "captions")
            second = DataFile(path, cache, kind="caption", by_key=True)
        for path in _paths(source.get("path"), "path"):
            yield DataFile(path, cache, format, kind, folder, second, data.plain)


def files_of(data: DataSettings) -> list[Path]:
    """The files that a training on them reads entries or captions from, in its order; none where scenes are drawn.

    Raises:
        UserError: one that isn't there, or can't be read.
    """
    named = data.sources or ([{"path": data.path, "captions": data.captions}] if data.path else [])
    return [p for source in named for key in ("path", "captions") if source.get(key) for p in _paths(source[key], key)]


def _paths(patterns: Any, key: str) -> list[Path]:
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns or []):
        try:
            expanded = list(braceexpand(str(Path(pattern).expanduser())))
        except ValueError:
            raise UserError(f"training.data.{key}={pattern}: its braces don't match") from None
        for name in expanded:
            matches = [name] if os.path.isfile(name) else sorted(glob.glob(name))
            if not matches or not all(os.path.isfile(path) for path in matches):
                raise UserError(f"training.data.{key}={pattern}: no such file: {name}")
            if locked := [path for path in matches if not os.access(path, os.R_OK)]:
                raise UserError(f"training.data.{key}={pattern}: not allowed to read {locked[0]}")
            paths += map(Path, matches)
    if not paths or (key == "captions" and len(paths) > 1):
        raise UserError(f"training.data.{key}={patterns}: {len(paths)} files")
    return paths


def _look_for_images(files: list[DataFile]) -> None:
    """Tells a wrong folder of images before anything begins; those of a shard are in it."""
    for file in files:
        paths = (
            file.images / path
            for kind in (KINDS if file.format != "webdataset" else ())
            for record in file.of_kind(kind)[: 64 * PROBED]
            for path in (formats.pictures(file.content(record)) if record["pictures"] else ())
        )
        first = [*islice(paths, PROBED)]
        if len(first) == PROBED and not any(map(os.path.isfile, first)):
            raise UserError(
                f"training.data.images={file.images}: none of the first images that {file.path.name} names is there, "
                f"e.g. {first[0]}"
            )
