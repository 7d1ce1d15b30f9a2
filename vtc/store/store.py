"""A store of compressed images: made once, searched by text or by example, asked without the picture."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import SampleError, UserError, nearest
from vtc.settings.store import PRECISIONS
from vtc.store import files, identity
from vtc.store.files import Broken, Picture
from vtc.store.packing import packed, unit, unpacked
from vtc.store.table import Hit, Row, Table

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor
    from vtc.job import Job

COMMITTED = 256  # images that are written together …
SECONDS = 30.0  # … or those of so much time: what a run that is killed has to do again


@dataclass
class Indexed:
    """What became of a folder's pictures.

    Attributes:
        new, changed, unchanged, returned, gone: how many; returned: their files were gone, and are there again.
        broken: files that are no pictures for us, each with the reason.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    returned: int = 0
    gone: int = 0
    broken: list[Broken] = field(default_factory=list)


@dataclass(frozen=True)
class StoredAnswer:
    """What a model says of an image of a store."""

    hit: Hit
    answer: str


class Store:
    """A store of compressed images.

        store = vtc.Store.open("photos", ["method=fwd2bot", "tokens=16"])   # the words make a new one
        store.add("~/pictures")
        store.search("a red circle left of a blue square", top=5)
        store.ask("What is in the cup?", image="coffee.png")

    Attributes:
        where: its folder, or its address on object storage.
        job: of the model that it was made with.
        precision: in which tokens are kept.
    """

    def __init__(self, where: str, job: Job, words: Sequence[str], precision: str, batch_size: int) -> None:
        self.where, self.job, self.precision, self.batch_size = where, job, precision, batch_size
        self._words = words
        self._open_table: Table | None = Table(where) if Table.exists(where) else None

    @classmethod
    def open(
        cls,
        where: str | os.PathLike,
        words: Sequence[str] = (),
        precision: str | None = None,
        batch_size: int = 32,
        default: Sequence[str] = (),
    ) -> Store:
        """The store in a folder; the model is loaded when it is needed.

        Args:
            words: overrides as on the command line, `["method=fwd2bot", "tokens=16"]`, that say a new store's model. A
                store that is there has its own; words that say another are refused.
            precision: of a new store: float16, the default, or int8.
            batch_size: images at a time.
            default: the words of a new store where `words` say no model; none: it isn't made.

        Raises:
            UserError: no store and no words, a store of another model, one that can't be read; a method that makes no
                tokens that could be stored.
        """
        from vtc.configuration import parse

        where = str(Path(where).expanduser()) if str(where).startswith("~") else os.fspath(where)
        if Table.exists(where):
            kept = Table(where).about
            job, words = identity.job_of(where, kept, words), kept["words"]
            if precision not in (None, kept["precision"]):
                raise UserError(f"store={where}: was made with precision={kept['precision']}, not {precision}")
            precision = kept["precision"]
        else:
            words = identity.model_words(words) or default
            if not words:
                raise UserError(f"store={where}: no store; action=index makes one")
            job = parse(words)
        from vtc.engine import check_storable

        check_storable(job.compressor, job.family)
        job.check()
        return cls(where, job, words, precision or PRECISIONS[0], batch_size)

    def __len__(self) -> int:
        return 0 if self._open_table is None else self._open_table.rows

    @property
    def table(self) -> Table:
        """LanceDB's table, one row an image; a `UserError` where nothing is stored yet."""
        if self._open_table is None:
            raise UserError(f"store={self.where}: nothing in it yet; action=index, or add, fills it")
        return self._open_table

    @cached_property
    def model(self) -> tuple[Backbone, Compressor]:
        return self.job.load()

    # -- filling
    def add(self, images: str | os.PathLike, progress: Callable[[int, int], None] = lambda done, of: None) -> Indexed:
        """Puts the pictures of a folder, and of the folders in it, into the store: those that are new or changed, by
        what is in the file. Images whose files are gone are marked. What a run that was killed has done stays.

        Args:
            progress: called with the number of files done, and of all.

        Raises:
            UserError: no folder, or no pictures in it.
        """
        root = files.root_of(os.fspath(images))
        paths, broken = files.pictures_in(root)
        if self._open_table is None:
            self._open_table = self._make_table()
        self.table.refresh()
        known = self.table.known(f"{root}{os.sep}")
        indexed, back, filling = Indexed(broken=broken), [], _Filling(self)
        for done, path in enumerate(paths):
            progress(done, len(paths))
            try:
                content, name = files.content_of(path)
                before = known.get(path)
                if before is not None and before[0] == name:
                    indexed.unchanged += 1
                    back += [path] if before[1] else []
                    continue
                filling.take(files.opened(path, content, name))
            except (ValueError, FileNotFoundError) as error:
                indexed.broken.append(Broken(path, str(error)))
        filling.flush()
        progress(len(paths), len(paths))
        indexed.broken += filling.broken
        indexed.changed = sum(path in known for path in filling.done)
        indexed.new = len(filling.done) - indexed.changed
        gone = sorted(path for path, (_, was) in known.items() if not was and not os.path.isfile(path))
        indexed.gone, indexed.returned = len(gone), len(back)
        if back:
            self.table.mark(back, False)
        if gone:
            self.table.mark(gone, True)
        self.table.tidy()
        return indexed

    def _make_table(self) -> Table:
        kept = identity.about(self.job, self._words, self.precision)
        table = Table.make(self.where, self.job.shape.width, self.precision, kept)
        identity.check_same(self.where, table.about["made_with"], kept["made_with"])  # two may have begun at once
        return table

    # -- asking
    def search(self, query: str | Image | os.PathLike, top: int = 10) -> list[Hit]:
        """The `top` images that are nearest to a text, or to a picture (one that is open, or the path of a file).

        Raises:
            UserError: a text past the model's context, or a file that is no picture.
        """
        if isinstance(query, str) and not query.strip():
            raise UserError("query: an empty text; words are needed")
        return self.table.nearest(self._vector(query), top)

    def ask(
        self,
        question: str,
        image: str | None = None,
        query: str | None = None,
        top: int = 5,
        new_tokens: int = 64,
        compiled: bool = False,
    ) -> list[StoredAnswer]:
        """Answers to a question about an image of the store, or about the `top` ones for a query, from what is stored.

        Args:
            image: its path, or the end of it.
            new_tokens: of an answer, at most.
            compiled: whether the pass over a prompt is compiled, once for as many images: for many questions. The first
                one waits for the compiler.

        Raises:
            UserError: neither or both of `image` and `query`; no such image, or several; to be compiled, and can't be.
        """
        if (image is None) == (query is None):
            raise UserError("ask: give one of the two: image, or query")
        hits = self.search(query, top) if query is not None else self.table.shown([self.path_of(str(image))])
        if not hits:
            raise UserError(f"store={self.where}: no images in it")
        from vtc.engine import answer

        backbone, method = self.model
        answers: list[str] = []
        for start in range(0, len(hits), self.batch_size):
            part = hits[start : start + self.batch_size]
            rows = self.table.of([hit.path for hit in part])
            images = [unpacked(row, backbone.shape.width, backbone.position_axes) for row in rows]
            ids = answer(backbone, method, [question] * len(part), images, new_tokens, compiled)
            answers += backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [StoredAnswer(hit, text.strip()) for hit, text in zip(hits, answers, strict=True)]

    def path_of(self, image: str) -> str:
        """The path of an image of the store that is called so: by its whole path, or the end of it.

        Raises:
            UserError: none is, or several are.
        """
        known = self.table.known()
        whole = os.path.abspath(os.path.expanduser(image))
        if whole in known:
            return whole
        fits = sorted(path for path in known if path.endswith(f"{os.sep}{image}"))
        if len(fits) == 1:
            return fits[0]
        if fits:
            shown = ", ".join(fits[:3])
            raise UserError(f"image={image}: {len(fits)} images of the store are called so ({shown}); give more of it")
        close = nearest(os.path.basename(image), {os.path.basename(path) for path in known})
        raise UserError(f"image={image}: none of the store's {len(known)} images{close}")

    def _vector(self, query: str | Image | os.PathLike) -> np.ndarray:
        from vtc.data.pictures import open_picture
        from vtc.engine import compress_images, embed_texts

        backbone, method = self.model
        if isinstance(query, str):
            return unit(embed_texts(backbone, method, [query]))[0]
        try:
            picture = open_picture(query)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"image={query}: {error}") from None
        return unit(compress_images(backbone, method, [picture])[1])[0]


class _Filling:
    """Pictures on their way into a store.

    Attributes:
        done: paths that are in it now.
        broken: those that the model can't read.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.done, self.broken = store, list[str](), list[Broken]()
        self._pictures: list[Picture] = []
        self._rows: list[Row] = []
        self._written = time.monotonic()

    def take(self, picture: Picture) -> None:
        from vtc.data.pictures import IN_FLIGHT

        self._pictures.append(picture)
        pixels = sum(p.image.width * p.image.height for p in self._pictures)
        if len(self._pictures) >= self.store.batch_size or pixels > IN_FLIGHT:
            self._compress()
        if len(self._rows) >= COMMITTED or time.monotonic() - self._written > SECONDS:
            self._write()

    def flush(self) -> None:
        self._compress()
        self._write()

    def _compress(self) -> None:
        self._rows += self._rows_of(self._pictures)
        self._pictures = []

    def _rows_of(self, pictures: list[Picture]) -> list[Row]:
        """A batch that fails is split until the picture that fails is alone."""
        from vtc.engine import compress_images

        if not pictures:
            return []
        try:
            images, vectors = compress_images(*self.store.model, [picture.image for picture in pictures])
            now, units = datetime.now(timezone.utc), unit(vectors)
            return [
                Row(
                    **{key: value for key, value in vars(picture).items() if key != "image"},
                    **packed(image, self.store.precision),
                    modified=now,
                    width=picture.image.width,
                    height=picture.image.height,
                    vector=vector,
                    thumbnail=files.thumbnail(picture.image),
                )
                for picture, image, vector in zip(pictures, images, units, strict=True)
            ]
        except (SampleError, ValueError, RuntimeError) as error:  # RuntimeError: out of memory
            if len(pictures) == 1:
                self.broken.append(Broken(pictures[0].path, str(error).splitlines()[0]))
                return []
            middle = len(pictures) // 2
            return self._rows_of(pictures[:middle]) + self._rows_of(pictures[middle:])

    def _write(self) -> None:
        if self._rows:
            self.store.table.put(self._rows)
            self.done += [row.path for row in self._rows]
        self._rows, self._written = [], time.monotonic()


def plain(item: Any) -> dict[str, Any]:
    """A hit or an answer as plain values, without its thumbnail."""
    values = asdict(item)
    hit = values.pop("hit", None)
    values = (hit or {}) | values
    values.pop("thumbnail")
    return {key: value for key, value in values.items() if value is not None}
