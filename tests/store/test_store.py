"""What a store holds, finds and answers, beside the pictures themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_store import COUNT, WORDS

import vtc
from vtc import shipped
from vtc.configuration import parse
from vtc.data.pictures import open_picture
from vtc.engine import compressing, embed_images, embed_texts
from vtc.errors import UserError
from vtc.store import Store
from vtc.store import store as stores

QUESTIONS = ["is there a red circle?", "how many things are there?", "what color is the square?"]


def from_pictures(store: Store, paths: list[str], question: str) -> list[str]:
    """The same model's answers from the pictures, by transformers' own `generate`."""
    backbone, method = store.model
    inputs = backbone.inputs([question] * len(paths), [[open_picture(path)] for path in paths])
    with torch.inference_mode(), compressing(backbone, method):
        ids = backbone.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return [
        t.strip()
        for t in backbone.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def test_answers_are_those_from_the_pictures(store, pictures) -> None:
    assert vtc.Store is Store
    paths = sorted(store.table.known())
    assert len(paths) == COUNT
    for question in QUESTIONS:
        stored = [store.ask(question, image=path, new_tokens=12)[0].answer for path in paths]
        assert stored == from_pictures(store, paths, question)
        assert all(stored)
    top = store.ask(QUESTIONS[0], query="a red circle", top=4, new_tokens=12)
    assert [a.answer for a in top] == from_pictures(store, [a.hit.path for a in top], QUESTIONS[0])


def test_no_picture_is_opened_again(store, where, monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("the picture was opened")

    monkeypatch.setattr("vtc.data.pictures.open_picture", fail)
    monkeypatch.setattr(type(store.model[0]), "image_features", fail)
    assert store.ask(QUESTIONS[0], query="a red circle", top=2)


def test_search_is_that_of_the_embeddings(store) -> None:
    """By text and by example, in the order of cosines of what `embed_images` and `embed_texts` give."""
    paths = sorted(store.table.known())
    backbone, method = store.model
    unit = torch.nn.functional.normalize
    images = unit(embed_images(backbone, method, [open_picture(path) for path in paths]))
    for query, vector in (
        ("a red circle", embed_texts(backbone, method, ["a red circle"])),
        (open_picture(paths[3]), embed_images(backbone, method, [open_picture(paths[3])])),
    ):
        cosine = (images @ unit(vector)[0]).numpy()
        hits = store.search(query, top=5)
        assert [h.score for h in hits] == pytest.approx(sorted(cosine)[::-1][:5], abs=2e-3)
        for hit in hits:
            assert hit.score == pytest.approx(cosine[paths.index(hit.path)], abs=2e-3)
    assert store.search(Path(paths[3]), top=1)[0].path == paths[3]


def test_new_changed_gone_and_back(tmp_path, pictures) -> None:
    """By what is in the file; nothing twice, whatever links there are; the store answers for what is gone."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    outside = tmp_path / "outside.png"
    shutil.copy(next(pictures.rglob("0*.png")), outside)
    (folder / "out.png").symlink_to(outside)
    (folder / "in.png").symlink_to(folder / "a" / "00001.png")
    (folder / "letter.txt").write_text("no picture")
    huge = folder / "huge.png"
    Image.new("1", (20_000, 20_000)).save(huge)
    store = Store.open(tmp_path / "store", WORDS)
    first = store.add(folder)
    assert (first.new, first.unchanged, len(store)) == (COUNT, 0, COUNT)
    reasons = {os.path.basename(b.path): b.reason for b in first.broken}
    assert set(reasons) == {"out.png", "empty.png", "cut.png", "huge.png"}
    assert reasons["out.png"] == "a link out of the folder" and reasons["empty.png"] == "0 bytes"
    assert "20000 x 20000 pixels" in reasons["huge.png"] and "decoded" in reasons["cut.png"]

    changed, gone, same = (folder / "a" / f"{n:05d}.png" for n in (1, 3, 5))
    shutil.copy(folder / "b" / "00000.png", changed)
    gone.rename(tmp_path / "aside.png")
    os.utime(same)
    second = store.add(folder)
    assert (second.new, second.changed, second.unchanged, second.gone) == (0, 1, COUNT - 2, 1)
    assert len(store) == COUNT
    twins = store.table.of([str(changed), str(folder / "b" / "00000.png")])
    assert np.array_equal(twins[0].tokens, twins[1].tokens)
    assert [h.gone for h in store.table.shown([str(gone)])] == [True]
    assert store.ask(QUESTIONS[0], image=str(gone))[0].answer
    (tmp_path / "aside.png").rename(gone)
    third = store.add(folder)
    assert (third.returned, third.gone, third.new, len(store)) == (1, 0, 0, COUNT)
    assert [h.gone for h in store.table.shown([str(gone)])] == [False]


def test_int8_answers_nearly_the_same(tmp_path, pictures, store) -> None:
    small = Store.open(tmp_path / "small", WORDS, precision="int8")
    small.add(pictures)
    paths = sorted(store.table.known())
    same = [
        small.ask(q, image=p, new_tokens=12)[0].answer == store.ask(q, image=p, new_tokens=12)[0].answer
        for q in QUESTIONS
        for p in paths
    ]
    assert sum(same) >= 0.9 * len(same)


def test_a_batch_that_fails_costs_one_picture(tmp_path, pictures, monkeypatch) -> None:
    import vtc.engine

    real = vtc.engine.compress_images

    def fail(backbone, method, images):
        if any(image.getpixel((0, 0)) == marked for image in images):
            raise RuntimeError("out of memory")
        return real(backbone, method, images)

    marked = open_picture(pictures / "a" / "00003.png").getpixel((0, 0))
    monkeypatch.setattr(vtc.engine, "compress_images", fail)
    indexed = Store.open(tmp_path / "store", WORDS).add(pictures)
    assert indexed.new == COUNT - 1
    assert {os.path.basename(b.path) for b in indexed.broken} == {"00003.png", "empty.png", "cut.png"}


def test_killed_writers_and_two_at_once(tmp_path) -> None:
    """`kill -9` at five random moments, then two processes: each picture once, searches those of a calm index."""
    out = tmp_path / "kills.json"
    command = [sys.executable, shipped.path("benchmarks/store/kills.py"), "--images", "96", "--out", out]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(shipped.root())}, capture_output=True)
    result = json.loads(out.read_text())
    assert sum(kill["was_running"] for kill in result["kills"]) >= 2
    assert any(0 < kill["images"] < 96 for kill in result["kills"])
    assert result["whole"] == 96 and result["two_writers_ended_well"]
    assert result["each_once_after_kills"] and result["each_once_of_two_writers"]
    assert all(result["same_after_kills"].values()) and all(result["same_of_two_writers"].values())


def test_at_an_address(tmp_path, pictures, store) -> None:
    """What object storage is filled and asked by, without a folder or a lock: the same rows, hits and answers."""
    there = Store.open("memory://photos", WORDS)
    there.__dict__["model"] = store.model
    assert there.add(pictures).new == COUNT and there.add(pictures).unchanged == COUNT
    again = Store.open("memory://photos")
    again.__dict__["model"] = store.model
    found = [[hit.path for hit in s.search("a red circle", 5)] for s in (again, store)]
    assert found[0] == found[1]
    asked = {"image": "00003.png", "new_tokens": 12}
    assert again.ask(QUESTIONS[0], **asked)[0].answer == store.ask(QUESTIONS[0], **asked)[0].answer
    with pytest.raises(UserError, match="memory://nothing: no store; action=index makes one"):
        Store.open("memory://nothing")


REFUSED = {  # of a store of fwd2bot with 16 tokens: words → what the line says
    ("method=fwd2bot", "tokens=4"): "was made with tokens=16, not tokens=4",
    ("method=avgpool", "tokens=16"): "was made with method.name=fwd2bot, not method.name=avgpool",
    ("method=fwd2bot", "tokens=16", "dtype=bf16"): "backbone.dtype=float32, not backbone.dtype=bfloat16",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_store_of_another_model(where, words) -> None:
    with pytest.raises(UserError, match=REFUSED[words]):
        Store.open(where, words)
    assert Store.open(where, [*WORDS, "device=cpu"])


def test_a_checkpoint_that_changed(tmp_path, pictures) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(parse(WORDS).weights, weights)
    Store.open(tmp_path / "store", [*WORDS, f"checkpoint={weights}"]).add(pictures / "a")
    assert Store.open(tmp_path / "store").search("a red circle", top=1)
    manifest = weights / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match="the checkpoint changed since it was made"):
        Store.open(tmp_path / "store")


def test_a_store_of_another_version(where, monkeypatch) -> None:
    from vtc.methods.fwd2bot import Fwd2Bot

    monkeypatch.setattr(Fwd2Bot, "version", Fwd2Bot.version + 1)
    with pytest.raises(UserError, match=r"made by version \d+ of methods.fwd2bot, this is \d+"):
        Store.open(where)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method=fastv", "tokens=16"], "no images can be stored, what is left of an image depends on the question"),
        (["method=voco", "tokens=16"], "no images can be stored, the text reads keys and values of every layer"),
        (["method=victor", "tokens=16"], "no images can be stored, the layers before layer"),
    ],
)
def test_a_method_that_makes_no_tokens_to_keep(tmp_path, words, reason) -> None:
    with pytest.raises(UserError, match=reason):
        Store.open(tmp_path / "store", words)
    assert not (tmp_path / "store").exists()


def test_which_image_is_meant(store) -> None:
    with pytest.raises(UserError, match="none of the store's 12 images; did you mean '00003.png'"):
        store.path_of("0003.png")
    assert store.path_of("a/00003.png").endswith("a/00003.png")
    assert store.path_of("00003.png") == store.path_of("a/00003.png")


def test_what_is_committed_early_is_whole(tmp_path, pictures, monkeypatch) -> None:
    monkeypatch.setattr(stores, "COMMITTED", 5)
    store = Store.open(tmp_path / "store", WORDS, batch_size=5)
    store.add(pictures)
    assert len(store) == COUNT == len(set(store.table.known()))
