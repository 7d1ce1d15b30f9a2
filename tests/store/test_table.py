"""The table of a store by itself: bytes, rows, the order of a search, its index."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.engine import StoredImage
from vtc.errors import UserError
from vtc.store.packing import packed, unpacked
from vtc.store.table import Row, Table

WIDTH, TOKENS = 128, 16
SPACE = np.random.default_rng(7).standard_normal((16, WIDTH))
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def images(count: int, seed: int = 0, precision: str = "float16", thumbnail: bytes = b"") -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        tokens = torch.from_numpy(rng.standard_normal((TOKENS, WIDTH)).astype(np.float32))
        image = StoredImage(tokens, torch.full((TOKENS,), -1), torch.arange(TOKENS)[None], TOKENS)
        vector = rng.standard_normal(16) @ SPACE  # as summaries are, in few of all directions
        rows.append(
            Row(
                path=f"/pictures/{number:05d}.png",
                hash=f"{number:064x}",
                size=1000,
                modified=NOW,
                width=640,
                height=480,
                vector=(vector / np.linalg.norm(vector)).astype(np.float16),
                thumbnail=thumbnail,
                **packed(image, precision),
            )
        )
    return rows


def made(folder: Path, precision: str = "float16") -> Table:
    return Table.make(str(folder / "store"), WIDTH, precision, {"a": 1})


def size(folder: Path) -> int:
    return sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)


def test_what_a_killed_process_left_before_the_first_version_is_no_table(tmp_path) -> None:
    """LanceDB lists a table of that name, and can't open it: it is made anew."""
    (tmp_path / "store" / "images.lance" / "_transactions").mkdir(parents=True)
    where = str(tmp_path / "store")
    assert not Table.exists(where)
    with pytest.raises(UserError, match="no store; action=index makes one"):
        Table(where)
    made(tmp_path).put(images(2))
    assert Table(where).rows == 2


@pytest.mark.parametrize(("precision", "each"), [("float16", 2), ("int8", 1)])
def test_bytes_an_image(tmp_path, precision: str, each: int) -> None:
    """2·k'·d, the embedding and what is said of the file, and not a tenth more."""
    count = 500
    table = made(tmp_path, precision)
    table.put(images(count, precision=precision))
    said = (
        len("/pictures/00000.png") + 64 + 8 + 8 + 4 + 4 + 4 + 1
    )  # path, hash, size, time, width, height, extent, gone
    said += 5 * 4 + (4 * TOKENS if precision == "int8" else 0)  # the ends of its lists, the scales
    expected = each * TOKENS * WIDTH + 2 * WIDTH + said
    assert size(tmp_path) / count == pytest.approx(expected, rel=0.1)


def test_a_row_comes_back_as_it_was_put(tmp_path) -> None:
    table = made(tmp_path)
    rows = images(3, thumbnail=b"picture")
    table.put(rows)
    back = table.of([rows[2].path, rows[0].path])
    assert [row.path for row in back] == [rows[2].path, rows[0].path]
    for before, after in zip((rows[2], rows[0]), back, strict=True):
        for key in Row.__dataclass_fields__:
            assert np.array_equal(getattr(before, key), getattr(after, key)), key
    assert Table(str(tmp_path / "store")).about == {"a": 1}


def test_one_row_a_path(tmp_path) -> None:
    table = made(tmp_path)
    table.put(images(10))
    table.put(images(12, seed=1))
    assert table.rows == 12 and len(table.known()) == 12
    assert np.array_equal(table.of(["/pictures/00003.png"])[0].tokens, images(12, seed=1)[3].tokens)
    table.mark(["/pictures/00003.png"], True)
    assert {path for path, (_, gone) in table.known().items() if gone} == {"/pictures/00003.png"}


@pytest.mark.parametrize("shape", ["plain", "words", "grid", "deep"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_packing(shape: str, precision: str) -> None:
    """Words between tokens, places in a grid and levels of deepstack come back; numbers within their rounding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 8, generator=generator)
    ids, axes, extent, deep = torch.full((5,), -1), 1, 5, None
    position = torch.arange(5)[None]
    if shape == "words":
        ids, extent = torch.tensor([7, -1, -1, 9, -1, -1, -1, 3]), 8
        position = torch.arange(8)[None]
    if shape == "grid":
        axes, extent, position = 3, 2, torch.tensor([[0] * 5, [0, 0, 0, 1, 1], [0, 1, 2, 0, 1]])
    if shape == "deep":
        deep = torch.randn(5, 2, 8, generator=generator)
    image = StoredImage(tokens, ids, position, extent, deep)
    row = Row("a", "b", 1, NOW, 1, 1, vector=np.zeros(8, np.float16), thumbnail=b"", **packed(image, precision))
    back = unpacked(row, 8, axes)
    largest = tokens.abs().max() if deep is None else torch.cat([tokens[:, None], deep], 1).abs().max()
    bound = 2e-3 if precision == "float16" else largest / 250
    assert (back.tokens - tokens).abs().max() <= bound
    assert torch.equal(back.ids, ids) and torch.equal(back.position, position) and back.extent == extent
    assert (back.deep is None) == (deep is None)
    if deep is not None and back.deep is not None:
        assert (back.deep - deep).abs().max() <= bound


def test_tokens_beyond_float16() -> None:
    image = StoredImage(torch.full((1, 8), 1e5), torch.tensor([-1]), torch.zeros(1, 1, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="beyond float16"):
        packed(image, "float16")
    assert packed(image, "int8")["scale"][0] == pytest.approx(1e5 / 127)


@pytest.mark.parametrize("indexed", [False, True])
def test_search_is_that_of_brute_force(tmp_path, indexed: bool) -> None:
    """In order, with the cosines of float64; behind an index that proposes, recall of 95 of 100 at least."""
    table, rows = made(tmp_path), images(2000)
    table.put(rows)
    table.tidy(indexed_from=1000 if indexed else 10**6)
    assert (table.index() is not None) == indexed
    vectors = np.stack([row.vector for row in rows]).astype(np.float64)
    right = 0
    for query in np.random.default_rng(1).standard_normal((10, 16)) @ SPACE:
        query = query.astype(np.float16).astype(np.float64)
        cosine = vectors @ query / np.linalg.norm(query) / np.linalg.norm(vectors, axis=1)
        best = np.argsort(-cosine)[:10]
        hits = table.nearest(query, 10)
        right += len({hit.path for hit in hits} & {rows[i].path for i in best})
        for hit in hits:
            assert hit.score == pytest.approx(cosine[int(hit.path[-9:-4])], abs=2e-3)
        if not indexed:
            assert [hit.path for hit in hits] == [rows[i].path for i in best]
    assert right >= 95


def test_a_search_reads_more_lists_where_there_are_more() -> None:
    """As many as benchmarks/store/scale.json was measured with, and ever fewer of a hundred."""
    from vtc.store.table import lists, probed

    assert [(lists(10**n), probed(10**n, 4096)) for n in (4, 5, 6)] == [(25, 8), (79, 8), (250, 13)]
    assert [probed(10**n, 512) for n in (5, 6)] == [16, 16]
    shares = [probed(10**n, 4096) / lists(10**n) for n in range(4, 10)]
    assert shares == sorted(shares, reverse=True)


def test_an_index_is_made_once_and_takes_new_rows_in(tmp_path) -> None:
    table = made(tmp_path)
    table.put(images(1000))
    table.tidy(indexed_from=1000)
    name, stats = table.index(), table._table.index_stats(str(table.index()))
    table.put(images(1100, seed=1)[1000:])
    table.tidy(indexed_from=1000)
    assert table.index() == name
    after = table._table.index_stats(str(name))
    assert (stats.num_indexed_rows, after.num_indexed_rows, after.num_unindexed_rows) == (1000, 1100, 0)


def test_an_index_needs_whole_bytes_of_codes(tmp_path) -> None:
    """Embeddings of 12 numbers have none, and are compared with all."""
    table = Table.make(str(tmp_path / "store"), 12, "float16", {})
    rows = [replace(row, vector=row.vector[:12] / np.linalg.norm(row.vector[:12])) for row in images(1000)]
    table.put(rows)
    table.tidy(indexed_from=1000)
    assert table.index() is None
    assert table.nearest(rows[7].vector, 1)[0].path == rows[7].path


def test_what_is_no_store(tmp_path) -> None:
    with pytest.raises(UserError, match="no store"):
        Table(str(tmp_path / "nothing"))
    (tmp_path / "file").write_text("a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("a")
    for name, words in {"file": "a file", "folder": "other things"}.items():
        with pytest.raises(UserError, match=words):
            Table.exists(str(tmp_path / name))
