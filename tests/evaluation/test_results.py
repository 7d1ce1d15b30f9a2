"""The result file: whole or absent, the same when read again, and hashes of files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from vtc import results


def result():
    out = {section: {} for section in results.SECTIONS}
    out["scores"] = [{"task": "pocket_choice", "value": np.float32(0.5), "stderr": float("nan"), "n": np.int64(4)}]
    return out


def test_what_is_written_is_read(tmp_path):
    path = results.write(tmp_path / "run", result())
    assert path == tmp_path / "run" / "result.json"
    stored = results.load(path)
    assert stored == results.load(path.parent) and stored["schema"] == results.SCHEMA
    assert stored["scores"] == [{"task": "pocket_choice", "value": 0.5, "stderr": None, "n": 4}]
    assert json.loads(path.read_text()) == stored
    assert list(results.find([tmp_path])) == [path.resolve()]


def test_a_section_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="lacks efficiency"):
        results.write(tmp_path, {k: v for k, v in result().items() if k != "efficiency"})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_result_and_nothing_else(tmp_path, monkeypatch):
    path = results.write(tmp_path, result())
    before = path.read_text()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        results.write(tmp_path, {**result(), "config": {"changed": 1}})
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_file_that_is_no_result_is_refused(tmp_path):
    for text in ("{", "[]", '{"run": {}}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match="not a result file"):
            results.load(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({**{s: {} for s in results.SECTIONS}, "schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        results.load(tmp_path)


def test_samples_keep_their_types(tmp_path):
    rows = [
        {"task": "a", "id": "1", "prediction": "x", "target": "y", "score": None, "tokens_kept": 16, "error": "broken"},
        {"task": "a", "id": "2", "prediction": "x", "target": "x", "score": 1, "tokens_kept": None},
    ]
    results.write_samples(tmp_path, rows)
    frame = results.samples(tmp_path)
    assert frame["score"].isna().tolist() == [True, False] and frame["score"].dtype == float
    assert frame["error"][0] == "broken" and frame["tokens_kept"][0] == 16
    assert [p.name for p in tmp_path.iterdir()] == ["samples.parquet"]
    frame.drop(columns=["question", "document", "pictures"]).to_parquet(tmp_path / "samples.parquet")
    earlier = results.samples(tmp_path, ["task", "question", "images"])
    assert list(earlier) == ["task"], "results of earlier versions, which lack columns, are read"


def test_samples_hold_what_became_of_each_token(tmp_path):
    region = {"rows": 1, "columns": 2, "box": [0.25, 0.0, 0.75, 1.0], "newline": True}
    image = {"holders": [0, 0, -1], "made": 1, "regions": [region]}
    row = {"task": "a", "id": "1", "question": "what?", "document": "a:0", "pictures": ["ff"], "images": [image]}
    results.write_samples(tmp_path, [row, {"task": "a", "id": "2"}])
    assert "images" not in results.samples(tmp_path), "they take most room, and are read where they are wanted"
    frame = results.samples(tmp_path, ["question", "document", "pictures", "images"])
    assert results.plain(frame.iloc[0].to_dict()) == {k: row[k] for k in ("question", "document", "pictures", "images")}
    assert frame["images"][1] is None and frame["pictures"][1] is None


def test_big_files_are_hashed_by_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_WHOLE", 1 << 20)
    path = tmp_path / "model.safetensors"
    content = bytearray(np.random.default_rng(0).bytes(3 << 20))
    path.write_bytes(content)
    first = results.hash_file(path)
    assert first == results.hash_file(path)
    for place in (0, len(content) - 1, len(content) // 2):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert results.hash_file(path) != first
    path.write_bytes(content + b"x")
    assert results.hash_file(path) != first


def test_the_hash_of_the_code_covers_plug_ins(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("a = 1")
    first = results.hash_code([plugin])
    plugin.write_text("a = 2")
    assert first != results.hash_code([plugin]) and results.hash_code() != first


def test_a_share_is_of_what_is_full():
    row = {"value": 1500.0, "stderr": None, "baseline": 1600.0, "scale": 2000.0}
    assert [results.share(row, key) for key in ("value", "stderr", "baseline", "blind")] == [0.75, None, 0.8, None]
    assert results.share({"value": 0.5}) == 0.5, "results of earlier versions hold shares alone"


def test_names_of_files_may_hold_bytes_that_are_no_utf8(tmp_path):
    """After hours of inference is too late to see that a path can't be written down."""
    name = os.fsdecode(b"caf\xe9.jsonl")
    written = {**result(), "run": {"id": "x"}, "config": {"benchmark": {"data": name}}}
    stored = results.load(results.write(tmp_path, written))
    assert stored["config"]["benchmark"]["data"] == name and stored["digest"] == results.digest_of(stored)
    (tmp_path / f"{name}.json").write_text("{}")
    assert results.hash_weights([tmp_path]) != results.hash_weights([None])
