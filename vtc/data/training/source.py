"""The training data of a config: files, their kinds, the order of samples, and what could not be read."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from braceexpand import braceexpand

from vtc.backbones.base import Backbone
from vtc.data.training import formats
from vtc.data.training.batch import Batch
from vtc.data.training.collate import Encoder, Row
from vtc.data.training.formats import FORMATS, KINDS, BadSample
from vtc.data.training.index import DataFile
from vtc.data.training.order import Mix, shuffled
from vtc.errors import UserError, unknown

if TYPE_CHECKING:
    from vtc.training.loop import Part

FIELDS = ("path", "images", "format", "kind", "captions")  # of one of data.sources
WINDOW = 32  # batches among which samples are sorted by length
PROBED = 8  # images that are looked for before anything begins
NAMED = 5  # samples that an error names


@dataclass
class Skipped:
    """The distinct samples that were met and could not be used.

    In one process, with any number of loading workers, the count after a step is that of all steps up to it. Several
    processes each meet their own part: `synchronise` gives all of them the union, so that a sample that two of them met
    counts once.

    Attributes:
        limit: how many are allowed.
        total: samples of the data.
        found: (kind, number) → file, place, id and reason.
    """

    limit: int
    total: int
    given: Any
    found: dict[tuple[str, int], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.found)

    def __contains__(self, sample: tuple[str, int]) -> bool:
        return sample in self.found

    def update(self, found: Mapping[tuple[str, int], str]) -> None:
        """Counts samples, those known already not again.

        Raises:
            UserError: they are more than the limit; names the first few.
        """
        self.found.update((sample, why) for sample, why in found.items() if sample not in self.found)
        if len(self.found) > self.limit:
            named = "; ".join(list(self.found.values())[:NAMED])
            raise UserError(
                f"training.data.max_skipped={self.given}: {len(self.found)} of {self.total} samples can't be used, "
                f"more than the {self.limit} allowed: {named}{'; …' if len(self.found) > NAMED else ''}"
            )

    def synchronise(self) -> None:
        """The union over all processes of torch.distributed; nothing where there is one. Every process must call it.

        Raises:
            UserError: in all of them, when they are more than the limit together.
        """
        import torch.distributed as distributed

        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return
        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, self.found)
        self.update({sample: why for found in everyone for sample, why in found.items()})


class Source:
    """Conversations and caption pairs from files, as batches that are a function of (seed, step, part).

    A step is of one kind (see `Mix.of`). Each kind has its own permutation per epoch, and its steps read on where its
    last one ended, over the end of an epoch into the next. A sample that can't be used is replaced by the one in its
    place in the kind's next batch: that depends on neither other samples nor other processes.

    Args:
        config: `path` (one or a list, braces and globs expanded), `images`, `format`, `kind`, `captions`, or a list of
            such in `sources`; `batch_size` (samples a step); `mix`; `group_by_length` (sorted among 32 batches, text
            without images apart); `plain`; `max_length` (tokens); `max_skipped` (a share of the samples, or a count);
            `cache` (the folder of indexes).
        backbone: its processor, prompts and dtype are used.
        seed: of the order.

    Raises:
        UserError: a value that isn't allowed, a file that isn't there or is damaged, or images that aren't where
            `images` says.
    """

    def __init__(self, config: Mapping[str, Any], backbone: Backbone, seed: int) -> None:
        self.seed = seed
        self.batch_size = _whole(config, "batch_size", 1)
        self.encoder = Encoder(
            backbone,
            bool(config.get("plain", False)),
            None if config.get("max_length") is None else _whole(config, "max_length", 1),
        )
        self.grouped = bool(config.get("group_by_length", False))
        given = config.get("max_skipped", 0.01)
        share = _skippable(given)
        self.files = list(_files(config))
        counts = np.array([file.counts for file in self.files])  # [files, kinds]
        self.ends = dict(zip(KINDS, counts.cumsum(0).T, strict=True))
        self.counts = {kind: int(ends[-1]) for kind, ends in self.ends.items()}
        if not len(self):
            raise UserError("training.data: the files hold no sample")
        self.mix = Mix.of(self.counts, config.get("mix"))
        self.skipped = Skipped(int(share * len(self)) if share < 1 else int(share), len(self), given)
        self._window: tuple[tuple[str, int], np.ndarray] | None = None
        _look_for_images(self.files)

    def __len__(self) -> int:
        """Samples, of all kinds."""
        return sum(self.counts.values())

    def kind(self, step: int) -> str:
        """conversation, caption or both: what all rows of a step are."""
        return self.mix.at(step)[0]

    def steps(self, epochs: float) -> int:
        """Steps in which as many answers are drawn as there are conversations, `epochs` times; without conversations,
        as many caption pairs as there are."""
        talk = self.counts["conversation"] + self.counts["both"]
        count, share = (talk, 1 - self.mix.caption) if self.mix.caption < 1 else (self.counts["caption"], Fraction(1))
        return ceil(Fraction(str(epochs)) * count / self.batch_size / share)

    def batch(self, step: int, part: Part | None = None) -> Batch:
        """One part of a step's global batch; all of it by default.

        Raises:
            UserError: too many samples can't be used, or the part has none.
        """
        kind, turn = self.mix.at(step)
        slots = range(self.batch_size)[part.of(self.batch_size) if part else slice(None)]
        if not slots:
            raise UserError(f"training.data.batch_size={self.batch_size}: fewer samples than processes × accumulate")
        return self.encoder.collate([self._row(kind, turn, slot) for slot in slots])

    def _row(self, kind: str, turn: int, slot: int) -> Row:
        for later in range(2 * ceil(self.counts[kind] / self.batch_size) + WINDOW):
            number = int(self.numbers(kind, turn + later)[slot])
            if (kind, number) in self.skipped:
                continue
            file, there = self._locate(kind, number)
            try:
                return self.encoder.row(kind, file.sample(kind, there))
            except BadSample as error:
                self.skipped.update({(kind, number): f"{file.name(kind, there)}: {error}"})
        found = next(iter(self.skipped.found.values()))
        raise UserError(f"training.data: no {kind} sample can be used in step after step, e.g. {found}")

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

    def _locate(self, kind: str, number: int) -> tuple[DataFile, int]:
        ends = self.ends[kind]
        at = int(np.searchsorted(ends, number, side="right"))
        return self.files[at], number - (int(ends[at - 1]) if at else 0)

    def _lengths(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """What samples are sorted by: bytes of text, those without an image before all others."""
        ends = self.ends[kind]
        files = np.searchsorted(ends, numbers, side="right")
        lengths = np.empty(len(numbers), dtype=np.int64)
        for at in np.unique(files):
            here = files == at
            records = self.files[at].of_kind(kind)[numbers[here] - (ends[at - 1] if at else 0)]
            lengths[here] = records["size"].astype(np.int64) + (records["pictures"].astype(np.int64) << 40)
        return lengths


# ------------------------------------------------------------------------------------------------------- config
def _whole(config: Mapping[str, Any], key: str, least: int) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"training.data.{key}={value}: a whole number of {least} or more")
    return value


def _skippable(given: Any) -> Fraction:
    """A share below 1, or a whole number."""
    try:
        share = Fraction(str(given))
    except ValueError:
        share = Fraction(-1)
    if share < 0 or (share > 1 and share.denominator != 1):
        raise UserError(f"training.data.max_skipped={given}: a share of the samples below 1, or a count")
    return share


def _files(config: Mapping[str, Any]) -> Iterator[DataFile]:
    from vtc.shipped import cache_folder

    cache = Path(config.get("cache") or cache_folder() / "index").expanduser()
    plain = bool(config.get("plain", False))
    given = config.get("sources")
    if given and config.get("path"):
        raise UserError("training.data: path and sources are two ways to say the same; give one of them")
    if not given and not config.get("path"):
        raise UserError("training.data.path=null: the file or files to train on, or training.data.sources")
    for source in given or [{key: config.get(key) for key in FIELDS}]:
        for key in source:
            if key not in FIELDS:
                raise unknown("training.data.sources", key, FIELDS)
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
            yield DataFile(path, cache, format, kind, folder, second, plain)


def _paths(given: Any, key: str) -> list[Path]:
    paths: list[Path] = []
    for pattern in [given] if isinstance(given, str) else list(given or []):
        try:
            expanded = list(braceexpand(str(Path(pattern).expanduser())))
        except ValueError:
            raise UserError(f"training.data.{key}={pattern}: its braces don't match") from None
        for name in expanded:
            found = [name] if Path(name).is_file() else sorted(glob.glob(name))
            if not found or not all(Path(path).is_file() for path in found):
                raise UserError(f"training.data.{key}={pattern}: no such file: {name}")
            paths += map(Path, found)
    if not paths or (key == "captions" and len(paths) > 1):
        raise UserError(f"training.data.{key}={given}: {len(paths)} files")
    return paths


def _look_for_images(files: list[DataFile]) -> None:
    """Tells a wrong folder of images before anything begins."""
    for file in files:
        first = _first_images(file)
        if len(first) == PROBED and not any(path.is_file() for path in first):
            raise UserError(
                f"training.data.images={file.images}: none of the first images that {file.path.name} names is there, "
                f"e.g. {first[0]}"
            )


def _first_images(file: DataFile) -> list[Path]:
    """Paths of up to PROBED images; those of a shard are in it."""
    paths: list[Path] = []
    for kind in KINDS if file.format != "webdataset" else ():
        for record in file.of_kind(kind)[: 64 * PROBED]:
            if record["pictures"]:
                paths += [file.images / path for path in formats.pictures(file.content(record))]
            if len(paths) >= PROBED:
                return paths[:PROBED]
    return paths
