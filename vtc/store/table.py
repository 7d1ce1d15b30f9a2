"""The table of a store: LanceDB, one row an image, whole or absent. The only module that imports lancedb."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vtc.errors import UserError
from vtc.folders import lock_of

if TYPE_CHECKING:
    import pyarrow as pa

NAME, ABOUT, VECTOR = "images", b"vtc", "vector"
INDEXED_FROM = 8_000_000  # numbers in all embeddings, 16 MB: comparing with all reads them, in some 40 ms of a core
LEAST = 1_000  # rows of an index: fewer are compared with all at once
WIDE = 2_048  # numbers of an embedding from which an index's codes, of one bit each, tell neighbours well
RESCORED, WIDE_RESCORED = 300, 100  # rows that an index proposes, which are read and compared again exactly
# Of the index's lists of neighbours each search reads at least so many, and as many as the root of their number times
# this: the more there are, the more of them a query's neighbours lie in.
PROBED, WIDE_PROBED, OF_ROOT = 16, 8, 0.8
# An index's lists are longer than the root of the number of rows by this: to find a row's list takes the most of the
# time to build it, and a list's codes of one bit a number are read fast.
LONGER = 4
CODED = 8  # numbers that make a byte of an index's codes
COMPACTED_FROM = 64  # pieces of the table: each commit adds one, and each is a file that a search opens
REMOTE = re.compile(r"\w+://")


@dataclass(frozen=True)
class Row:
    """An image of a store.

    Attributes:
        path: of its file; hash: of the file's bytes, size: their number; modified: when it was put here.
        width, height: in pixels.
        tokens: [M, (1 + S)·D] float16, or int8; scale: [M] of int8 tokens; empty: none.
        ids, position, extent: as in `vtc.engine.StoredImage`, position of P axes one behind the other.
        vector: [D] float16, of length 1.
        thumbnail: a JPEG.
        gone: whether its file was no longer there when the folder was indexed last.
    """

    path: str
    hash: str
    size: int
    modified: datetime
    width: int
    height: int
    tokens: np.ndarray
    scale: np.ndarray
    ids: np.ndarray
    position: np.ndarray
    extent: int
    vector: np.ndarray
    thumbnail: bytes
    gone: bool = False


@dataclass(frozen=True)
class Hit:
    """What a search says of an image: `score` is the cosine of its embedding and the query's; None where none was
    asked for."""

    path: str
    width: int
    height: int
    gone: bool
    thumbnail: bytes
    score: float | None = None


SHOWN = ["path", "width", "height", "gone", "thumbnail"]


def schema(width: int, precision: str, about: Mapping[str, Any]) -> pa.Schema:
    """Of a store of embeddings of `width` numbers; `about` is kept with it."""
    import pyarrow as pa

    number = pa.int8() if precision == "int8" else pa.float16()
    fields = {
        "path": pa.string(),
        "hash": pa.string(),
        "size": pa.int64(),
        "modified": pa.timestamp("us", "UTC"),
        "width": pa.int32(),
        "height": pa.int32(),
        "tokens": pa.list_(number),
        "scale": pa.list_(pa.float32()),
        "ids": pa.list_(pa.int32()),
        "position": pa.list_(pa.int32()),
        "extent": pa.int32(),
        VECTOR: pa.list_(pa.float16(), width),
        "thumbnail": pa.binary(),
        "gone": pa.bool_(),
    }
    return pa.schema([pa.field(*field) for field in fields.items()], metadata={ABOUT: json.dumps(about)})


class Table:
    """The table in a folder, or at an address on object storage.

    Attributes:
        about: what was kept with it when it was made.

    Raises:
        UserError: there is none, or it can't be read.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        if not self.exists(where):
            raise UserError(f"store={where}: no store; action=index makes one")
        with _explained(where):
            self._table = _connect(where).open_table(NAME)
            about = (self._table.schema.metadata or {}).get(ABOUT)
        if about is None:
            raise UserError(f"store={where}: a LanceDB table, and none of vtc's")
        self.about: dict[str, Any] = json.loads(about)

    @classmethod
    def exists(cls, where: str) -> bool:
        """Whether there is one.

        Raises:
            UserError: there is something else.
        """
        folder = Path(where)
        if not REMOTE.match(where):
            if folder.is_file():
                raise UserError(f"store={where}: a file; a folder is needed")
            if folder.is_dir() and any(folder.iterdir()) and not (folder / f"{NAME}.lance").is_dir():
                raise UserError(f"store={where}: a folder with other things in it; give one of its own")
            # A process that was killed in making it leaves a folder without a version of the table.
            if not any(folder.glob(f"{NAME}.lance/_versions/*")):
                return False
        with _explained(where):
            return NAME in _connect(where).table_names()

    @classmethod
    def make(cls, where: str, width: int, precision: str, about: Mapping[str, Any]) -> Table:
        """The table that is there, or a new one."""
        with _one_writer(where), _explained(where):
            if not cls.exists(where):
                _connect(where).create_table(NAME, schema=schema(width, precision, about))
        return cls(where)

    # -- reading
    @property
    def width(self) -> int:
        """Of the embeddings."""
        return int(self._table.schema.field(VECTOR).type.list_size)

    @property
    def rows(self) -> int:
        return self._table.count_rows()

    def refresh(self) -> None:
        """Sees what others have written since."""
        self._table.checkout_latest()

    def known(self, folder: str = "") -> dict[str, tuple[str, bool]]:
        """path → (hash, whether it is gone), of the images below a folder."""
        with _explained(self.where):
            columns = self._table.search().select(["path", "hash", "gone"]).limit(self.rows or 1).to_arrow().to_pydict()
        return {
            path: (content, gone)
            for path, content, gone in zip(columns["path"], columns["hash"], columns["gone"], strict=True)
            if path.startswith(folder)
        }

    def nearest(self, vector: np.ndarray, top: int) -> list[Hit]:
        """The `top` images whose embeddings are nearest to `vector` [D], the nearest first; ties by path."""
        with _explained(self.where):
            search = self._table.search(vector.astype(np.float16), vector_column_name=VECTOR).distance_type("cosine")
            if self.index() is None:
                search = search.bypass_vector_index()
            else:
                rescored = WIDE_RESCORED if self.width >= WIDE else RESCORED
                search = search.nprobes(probed(self.rows, self.width)).refine_factor(max(1, math.ceil(rescored / top)))
            rows = search.select([*SHOWN, "_distance"]).limit(top).to_arrow().to_pylist()
        hits = [Hit(score=1 - row.pop("_distance"), **row) for row in rows]
        return sorted(hits, key=lambda hit: (-(hit.score or 0), hit.path))

    def shown(self, paths: Sequence[str]) -> list[Hit]:
        return [Hit(**row) for row in self._of(paths, SHOWN)]

    def of(self, paths: Sequence[str]) -> list[Row]:
        """The rows of images, in this order."""
        rows = self._of(paths, list(Row.__dataclass_fields__))
        return [Row(**{key: _array(key, value) for key, value in row.items()}) for row in rows]

    def _of(self, paths: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        with _explained(self.where):
            search = self._table.search().where(_among(paths)).select(columns).limit(len(paths))
            table = search.to_arrow()
        rows = {row["path"]: row for row in _rows(table)}
        return [rows[path] for path in paths]

    # -- writing
    def put(self, rows: Sequence[Row]) -> None:
        """Adds images, in place of those of the same path; all of them or none."""
        import pyarrow as pa

        names = self._table.schema.names
        content = {name: [getattr(row, name) for row in rows] for name in names}
        with _one_writer(self.where), _explained(self.where):
            self.refresh()
            merge = self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.table(content, schema=self._table.schema))

    def mark(self, paths: Sequence[str], gone: bool) -> None:
        """Marks images whose files are gone, or there again."""
        with _one_writer(self.where), _explained(self.where):
            self.refresh()
            for start in range(0, len(paths), 1000):
                self._table.update(where=_among(paths[start : start + 1000]), values={"gone": gone})

    # -- upkeep
    def index(self) -> str | None:
        """The name of the index of embeddings; None where there is none."""
        return next((index.name for index in self._table.list_indices() if index.columns == [VECTOR]), None)

    def tidy(self, indexed_from: int | None = None) -> None:
        """Puts the pieces of many commits together, and keeps an index of embeddings where that pays.

        Args:
            indexed_from: how many rows it takes; None: as many as hold `INDEXED_FROM` numbers.
        """
        if indexed_from is None:
            indexed_from = max(LEAST, INDEXED_FROM // self.width)
        with _one_writer(self.where), _explained(self.where):
            self.refresh()
            if self._table.stats()["fragment_stats"]["num_fragments"] >= COMPACTED_FROM or self.index() is not None:
                self._table.optimize()
            if self.index() is None and self.rows >= indexed_from and self.width % CODED == 0:
                self._make_index()

    def _make_index(self) -> None:
        from lancedb.index import IvfRq

        config = IvfRq(distance_type="cosine", num_partitions=lists(self.rows), sample_rate=64, max_iterations=20)
        self._table.create_index(VECTOR, config=config)


def lists(rows: int) -> int:
    """How many lists of neighbours an index of so many embeddings has."""
    return max(1, round(math.sqrt(rows) / LONGER))


def probed(rows: int, width: int) -> int:
    """How many of them a search reads."""
    return max(WIDE_PROBED if width >= WIDE else PROBED, math.ceil(OF_ROOT * math.sqrt(lists(rows))))


def _connect(where: str) -> Any:
    if REMOTE.match(where):
        return _connected(where)
    if Path(where).is_file():
        raise UserError(f"store={where}: a file; a folder is needed")
    if not Path(where).is_dir():
        Path(where).parent.mkdir(parents=True, exist_ok=True)
    return _opened(where)


def _opened(where: str) -> Any:
    try:
        import lancedb
    except ModuleNotFoundError:
        raise UserError("store: needs LanceDB; pip install 'vtc[store]'") from None
    with _explained(where):
        return lancedb.connect(where)


@cache
def _connected(where: str) -> Any:
    """One connection an address: what `memory://` names lives as long as it does."""
    return _opened(where)


@contextmanager
def _one_writer(where: str) -> Iterator[None]:
    """One process at a time writes a store in a folder; those on object storage settle it among themselves."""
    with nullcontext() if REMOTE.match(where) else lock_of(Path(where)):
        yield


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """What LanceDB says of a table that can't be read or written, in one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"store={where}: can't be read or written ({words[:200]})") from None


def _among(paths: Iterable[str]) -> str:
    quoted = ", ".join("'{}'".format(path.replace("'", "''")) for path in paths)
    return f"path IN ({quoted})"


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of an Arrow table, lists as numpy arrays."""
    columns = {name: table.column(name) for name in table.column_names}
    lists = {"tokens", "scale", "ids", "position", VECTOR}
    return [
        {
            name: column[row].values.to_numpy(zero_copy_only=False) if name in lists else column[row].as_py()
            for name, column in columns.items()
        }
        for row in range(table.num_rows)
    ]


def _array(key: str, value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.ndarray) else value
