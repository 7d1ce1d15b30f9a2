"""Where every entry of a data file is, in a memory-mapped file: built once, by streaming, and kept.

Any entry is then one seek away, in any process, and the memory used doesn't grow with the data. Records are grouped by
kind, so that "the n-th caption pair" needs no table.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from vtc.allowed import brief
from vtc.data.pictures import open_picture
from vtc.data.training import formats
from vtc.data.training.formats import KINDS, BadSample, Entry
from vtc.errors import UserError

VERSION = 2  # of the records below
RECORD = np.dtype(
    [
        ("kind", "u1"),  # its place in KINDS
        ("number", "<u4"),  # of the entry in its file
        ("start", "<u8"),  # its object or caption, in bytes
        ("size", "<u4"),
        ("image_start", "<u8"),  # of a shard's entry: its image
        ("image_size", "<u4"),
        ("caption_start", "<u8"),  # its caption in the second file
        ("caption_size", "<u4"),
        ("key", "<u8"),  # hash of the image's path
        ("pictures", "u1"),
        ("bare", "u1"),  # the text is a caption, not an object
    ]
)
SHOWN = 100 << 20  # bytes from which indexing shows its progress
BUFFER = 1024  # records


@dataclass
class TrainingSample:
    """What an entry says.

    Attributes:
        images: a path or the bytes of each image.
        turns: questions and answers as written; empty for a caption pair.
        caption: None without one.
    """

    images: list[Path | bytes]
    turns: list[tuple[str, str]]
    caption: str | None


def open_image(source: Path | bytes) -> Image.Image:
    """The image as a model is shown it (`vtc.data.pictures.open_picture`).

    Raises:
        BadSample: it is missing, damaged, or too large.
    """
    where = f"image {source}" if isinstance(source, Path) else "its image"
    try:
        return open_picture(source)
    except FileNotFoundError:
        raise BadSample(f"{where} is missing") from None
    except (OSError, ValueError) as error:
        raise BadSample(f"{where} can't be read ({error})") from None


class DataFile:
    """One data file and its index.

    Args:
        path: the file.
        format: json, jsonl or webdataset; None finds out.
        kind: what all its entries are used for; None: what their fields say.
        images: the folder that image paths are relative to; None: the file's own.
        captions: a file of captions by image path, opened with `by_key`.
        plain: captions alone may be answered.
        by_key: this is such a file: sorted by the hash of the image's path.
        cache: the folder of indexes.

    Raises:
        UserError: the file is missing, damaged, or an entry isn't what `kind` asks for.
    """

    def __init__(
        self,
        path: Path,
        cache: Path,
        format: str | None = None,
        kind: str | None = None,
        images: Path | None = None,
        captions: DataFile | None = None,
        plain: bool = False,
        by_key: bool = False,
    ) -> None:
        self.path, self.kind, self.captions, self.plain, self.by_key = path, kind, captions, plain, by_key
        self.format = format or formats.format_of(path)
        self.images = images or path.parent
        if captions and self.format == "webdataset":
            raise UserError(f"training.data.captions: {path} is a shard, whose captions are in it")
        about = path.stat()
        state: list[Any] = [about.st_size, about.st_mtime_ns]
        settings: list[Any] = [VERSION, str(path.resolve()), self.format, kind, plain, by_key]
        if captions:
            state.append(captions.index.name)
            settings.append(str(captions.path.resolve()))
        family = f"{path.stem[:60]}-{_digest(settings)}"
        self.index: Path = cache / f"{family}-{_digest(state)}.index"
        if not self._whole():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with FileLock(cache / f"{family}.lock"):  # one of several processes builds it
                    if not self._whole():
                        self._build()
                        for old in cache.glob(f"{family}-*.index"):
                            if old != self.index:
                                old.unlink()
            except OSError as error:
                raise UserError(f"training.data.cache={cache}: the index of {path} can't be kept ({error})") from error
        self.counts = self._counts()

    # -- the index
    @functools.cached_property
    def records(self) -> np.ndarray:
        """All records [n], grouped by kind; on disk."""
        total = int(self._counts().sum())
        return np.memmap(self.index, RECORD, "r", _HEADER, (total,)) if total else np.empty(0, RECORD)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("records", None)  # a worker process maps the file itself
        return state

    def _counts(self) -> np.ndarray:
        return np.fromfile(self.index, "<u8", len(KINDS)).astype(np.int64)

    def _whole(self) -> bool:
        return self.index.is_file() and self.index.stat().st_size == _HEADER + self._counts().sum() * RECORD.itemsize

    def _build(self) -> None:
        # Under names that the next attempt writes over: a process that is killed leaves nothing that piles up.
        unsorted, whole = (self.index.with_suffix(ending) for ending in (".unsorted", ".whole"))
        try:
            waiting = map(self._record, self._watched())
            with unsorted.open("wb") as stream:
                while some := list(itertools.islice(waiting, BUFFER)):
                    np.array(some, RECORD).tofile(stream)
            records = np.memmap(unsorted, RECORD, "r") if unsorted.stat().st_size else np.empty(0, RECORD)
            order = np.lexsort([records[name] for name in (("key", "kind") if self.by_key else ("kind",))])
            with whole.open("wb") as stream:
                np.bincount(records["kind"], minlength=len(KINDS)).astype("<u8").tofile(stream)
                for begin in range(0, len(order), BUFFER):
                    records[order[begin : begin + BUFFER]].tofile(stream)
            os.replace(whole, self.index)
        finally:
            unsorted.unlink(missing_ok=True)
            whole.unlink(missing_ok=True)

    def _watched(self) -> Iterator[Entry]:
        """The entries, with a progress bar where they are many."""
        from rich.console import Console
        from rich.progress import Progress

        size = self.path.stat().st_size
        with Progress(console=Console(stderr=True), transient=True, disable=size < SHOWN) as progress:
            bar = progress.add_task(f"indexing {self.path.name}", total=size)
            for n, entry in enumerate(formats.entries(self.path, self.format)):
                if n % BUFFER == 0:
                    progress.update(bar, completed=max(entry.text.start, entry.image.start if entry.image else 0))
                yield entry

    def _record(self, entry: Entry) -> tuple[int, ...]:
        try:
            image = entry.image or formats.Span(0, 0)
            if self.format == "webdataset":  # an image that should be there and isn't is found when it is read
                count = int(entry.image is not None or not formats.talks(entry.content))
            else:
                count = len(formats.pictures(entry.content))
            key, caption = 0, formats.Span(0, 0)
            if self.by_key or self.captions:
                path = formats.image_key(entry.content)
                key = int.from_bytes(
                    hashlib.blake2b((path or "").encode(errors="surrogatepass"), digest_size=8).digest(), "little"
                )
                if self.captions and path:
                    caption = self.captions.find(key)
            kind = formats.kind_of(entry.content, count, self.kind, caption.size > 0, self.plain)
        except BadSample as error:
            raise formats.wrong(self.path, formats.place(self.format, entry.number), str(error)) from None
        return KINDS.index(kind), entry.number, *entry.text, *image, *caption, key, min(count, 255), entry.bare

    def find(self, key: int) -> formats.Span:
        """Where the first entry with this key is; size 0 if there is none."""
        keys = self.records["key"]
        at = bisect.bisect_left(keys, key)
        if at == len(keys) or int(keys[at]) != key:
            return formats.Span(0, 0)
        return formats.Span(int(self.records["start"][at]), int(self.records["size"][at]))

    # -- what it holds
    def of_kind(self, kind: str) -> np.ndarray:
        """The records of a kind, in the order of the file."""
        begin = int(self.counts[: KINDS.index(kind)].sum())
        return self.records[begin : begin + int(self.counts[KINDS.index(kind)])]

    def content(self, record: np.void) -> dict[str, Any]:
        """The object of an entry.

        Raises:
            BadSample: it is no longer there.
        """
        raw = _read(self.path, int(record["start"]), int(record["size"]))
        try:
            return {"caption": raw.decode("utf-8", "replace")} if record["bare"] else json.loads(raw)
        except ValueError:
            raise BadSample("no longer what it was when it was indexed") from None

    def sample(self, kind: str, number: int) -> TrainingSample:
        """The n-th sample of a kind.

        Raises:
            BadSample: it can't be used, and why.
        """
        record = self.of_kind(kind)[number]
        content = self.content(record)
        images: list[Path | bytes]
        if self.format != "webdataset":
            images = [self.images / path for path in formats.pictures(content)]
        elif record["pictures"]:
            if not record["image_size"]:
                raise BadSample("no image beside it")
            images = [_read(self.path, int(record["image_start"]), int(record["image_size"]))]
        else:
            images = []
        turns, caption = [], None
        if kind != "caption":
            turns = formats.turns(content) if formats.talks(content) else [("", formats.caption(content) or "")]
        if kind != "conversation":
            caption = self._caption(record, content)
            if not formats.whole(caption).strip():
                raise BadSample("an empty caption")
        return TrainingSample(images, turns, caption)

    def _caption(self, record: np.void, content: dict[str, Any]) -> str:
        text = formats.caption(content)
        if text is None and record["caption_size"] and self.captions:
            raw = _read(self.captions.path, int(record["caption_start"]), int(record["caption_size"]))
            content = json.loads(raw)
            text = formats.caption(content)
        return formats.turns(content)[0][1] if text is None else text

    def name(self, kind: str, number: int) -> str:
        """How messages call a sample: its file, its place, its id."""
        record = self.of_kind(kind)[number]
        where = f"{self.path.name}, {formats.place(self.format, int(record['number']))}"
        if self.format != "webdataset":
            with contextlib.suppress(BadSample):
                content = self.content(record)
                return f"{where} (id {brief(content['id'])})" if "id" in content else where
            return where
        start = int(record["image_start"] if record["image_size"] else record["start"])
        header = _read(self.path, start - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        try:
            return f"{where} ({tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name})"
        except tarfile.HeaderError:
            return where


_HEADER = 8 * len(KINDS)  # bytes: how many records of each kind


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _read(path: Path, start: int, size: int) -> bytes:
    # Opened each time: nothing to share between processes, and no limit on open files.
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)
