"""Batches: the same for any number of workers, processes and micro-batches, and after a restart; kinds; bad images."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fabricate import captions, conversations, pictures, said, shard, words, written
from torch import Tensor

from vtc.backbones.base import Backbone
from vtc.data.training import Batch, FileSource, Part, Prefetched, Skipped
from vtc.data.training.source import WINDOW
from vtc.errors import UserError
from vtc.settings import DataSettings
from vtc.testing import tiny_backbone


@cache
def backbone() -> Backbone:
    return tiny_backbone(depth=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """talk.json: 30 with an image, 8 without; pairs.json: 20 captions; cc3m-0000[01].tar: 7 and 5 captions."""
    paths = pictures(tmp_path, 30)
    written(tmp_path / "talk.json", conversations(paths))
    written(tmp_path / "pairs.json", captions(paths[:20]))
    shard(tmp_path / "cc3m-00000.tar", 0, 7)
    shard(tmp_path / "cc3m-00001.tar", 7, 5)
    return tmp_path


def source(folder: Path, *names: str, seed: int = 5, **config: Any) -> FileSource:
    given = {"path": [str(folder / name) for name in names]} if names else {}
    data = DataSettings(**{"batch_size": 6, "cache": str(folder / "index"), **given, **config})
    return FileSource(data, backbone(), seed)


def rows(batch: Batch) -> list[tuple]:
    """What is in each row, without its padding."""
    images = iter(batch.inputs.get("pixel_values", []))
    result = []
    for n in range(len(batch)):
        real = batch.attention_mask[n].bool()
        ids = batch.input_ids[n][real]
        pixels = [float(next(images).sum()) for _ in range(int((ids == 3).sum()) // 16)]
        caption = batch.captions[0][n][batch.captions[1][n].bool()].tolist() if batch.captions else None
        result.append((ids.tolist(), batch.labels[n][real].tolist(), pixels, caption))
    return result


def same(a: Batch, b: Batch) -> bool:
    def equal(x: Tensor, y: Tensor) -> bool:
        return torch.equal(x, y)

    assert (a.captions is None) == (b.captions is None)
    pairs = [*zip(a.captions, b.captions, strict=True)] if a.captions and b.captions else []
    return (
        a.inputs.keys() == b.inputs.keys()
        and all(equal(a.inputs[k], b.inputs[k]) for k in a.inputs)
        and equal(a.labels, b.labels)
        and all(equal(x, y) for x, y in pairs)
    )


def test_an_epoch_reads_every_sample_once(folder: Path) -> None:
    data = source(folder, "talk.json")
    assert len(data) == 38 and data.counts == {"conversation": 38, "caption": 0, "both": 0}
    drawn = np.concatenate([data.numbers("conversation", turn) for turn in range(19)])  # three epochs
    for epoch in range(3):
        assert sorted(drawn[38 * epoch : 38 * (epoch + 1)]) == list(range(38))
    assert list(drawn[:38]) != list(drawn[38:76])
    again, other = source(folder, "talk.json"), source(folder, "talk.json", seed=6)
    assert (again.numbers("conversation", 2) == data.numbers("conversation", 2)).all()
    assert (other.numbers("conversation", 2) != data.numbers("conversation", 2)).any()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_parts_make_up_the_step(folder: Path, grouped: bool, count: int) -> None:
    data = source(folder, "talk.json", "pairs.json", group_by_length=grouped)
    for step in range(4):
        parts = [data.batch(step, Part(n, count)) for n in range(count)]
        assert [len(p) for p in parts] == [6 // count] * count
        assert [row for part in parts for row in rows(part)] == rows(data.batch(step))


def test_more_parts_than_samples(folder: Path) -> None:
    with pytest.raises(UserError, match="batch_size=6: fewer samples than processes"):
        source(folder, "talk.json").batch(0, Part(6, 7))


def test_a_step_needs_no_step_before_it(folder: Path) -> None:
    options: dict[str, Any] = {"group_by_length": True}
    data = source(folder, "talk.json", "pairs.json", **options)
    batches = [data.batch(step) for step in range(12)]
    for step in (11, 7, 3):
        assert same(source(folder, "talk.json", "pairs.json", **options).batch(step), batches[step])


def test_kinds_alternate_and_rows_are_of_the_kind(folder: Path) -> None:
    data = source(folder, "talk.json", "cc3m-{00000..00001}.tar", "pairs.json")
    assert data.counts == {"conversation": 38, "caption": 32, "both": 0}
    kinds = [data.kind(step) for step in range(20)]
    assert kinds == ["conversation", "caption"] * 10
    seen: Counter = Counter()
    for step in range(20):
        batch = data.batch(step)
        if data.kind(step) == "caption":
            assert batch.answers == 0 and batch.captions is not None and len(batch.inputs["pixel_values"]) == 6
            seen.update(str(row[3]) for row in rows(batch))
        else:
            assert batch.answers and batch.captions is None
    assert sum(seen.values()) == 60 and len(seen) == 20, "all but four of the pairs were met twice"


def test_sources_of_several_files_and_kinds(folder: Path) -> None:
    """Fwd2Bot's data: conversations, some of whose images have a caption, and shards of caption pairs."""
    paths = [f"coco/train2017/{n:012d}.png" for n in range(30)]
    written(folder / "some.json", captions(paths[:10]))
    sources = [
        {"path": str(folder / "talk.json"), "captions": str(folder / "some.json"), "images": str(folder)},
        {"path": str(folder / "cc3m-*.tar")},
    ]
    data = source(folder, sources=sources)
    assert data.counts == {"conversation": 28, "caption": 12, "both": 10}
    kinds = Counter(data.kind(step) for step in range(66))
    # 28:10 of the autoregressive half; contrastive steps fill up what both leaves: 38 + (38 - 10)
    assert kinds == {"conversation": 28, "both": 10, "caption": 28}
    step = next(s for s in range(66) if data.kind(s) == "both")
    batch = data.batch(step)
    assert batch.answers and batch.captions is not None and len(batch.captions[0]) == 6
    tokenizer = backbone().tokenizer
    expected = {tuple(tokenizer(f"a {words(n)} .", add_special_tokens=False)["input_ids"]) for n in range(10)}
    assert {tuple(row[3]) for row in rows(batch)} <= expected


def test_grouping_by_length(folder: Path) -> None:
    """The same samples in each window, nearer in length within a batch; those without an image among themselves."""
    entries = []
    for n, path in enumerate(pictures(folder, 200)):
        entry = {"id": f"{n:03d}", "conversations": said(("what is this ?", "red " * (1 + 7 * n % 40)))}
        entries.append(entry | ({} if n % 5 == 0 else {"image": path}))
    written(folder / "long.json", entries)
    plain, grouped = source(folder, "long.json"), source(folder, "long.json", group_by_length=True)
    window = [plain.numbers("conversation", t) for t in range(WINDOW)]
    sorted_ = [grouped.numbers("conversation", t) for t in range(WINDOW)]
    assert sorted(np.concatenate(window)) == sorted(np.concatenate(sorted_))
    assert any((a != b).any() for a, b in zip(sorted_, sorted_[1:], strict=False))

    def spread(batches: list) -> float:
        return float(np.mean([np.ptp([len(entries[n]["conversations"][1]["value"]) for n in b]) for b in batches]))

    def mixed(batches: list) -> int:
        return sum(len({"image" in entries[n] for n in b}) > 1 for b in batches)

    assert spread(sorted_) < spread(window) / 4 and mixed(sorted_) <= 1 < mixed(window)
    firsts = [len(entries[b[0]]["conversations"][1]["value"]) for b in sorted_]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True), "batches are not in order of length"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_load_the_same_batches(folder: Path, workers: int) -> None:
    """Also with broken images, which are replaced and counted alike; and torch's own random numbers are left alone."""
    for n in (2, 11):
        (folder / f"coco/train2017/{n:012d}.png").write_bytes(b"no image")
    options: dict[str, Any] = {"max_skipped": 8, "group_by_length": True}
    plain = source(folder, "talk.json", "pairs.json", **options)
    expected = [plain.batch(step, Part(n, 3)) for step in range(2, 9) for n in (1, 2)]
    ahead = source(folder, "talk.json", "pairs.json", **options)
    before = torch.get_rng_state()
    found = list(Prefetched(ahead, [Part(1, 3), Part(2, 3)], 2, 9, workers))
    assert torch.equal(before, torch.get_rng_state())
    assert len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert ahead.skipped.reasons == plain.skipped.reasons and len(ahead.skipped) > 0


def test_asking_by_step_is_served_from_what_was_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source(folder, "talk.json")
    parts = [Part(0, 2), Part(1, 2)]
    ahead = Prefetched(data, parts, 0, 5, workers=1)
    asked: list[tuple] = []
    original = data.batch
    expected = {(s, p): original(s, p) for s in range(5) for p in parts}
    monkeypatch.setattr(data, "batch", lambda step, part: asked.append((step, part)) or original(step, part))
    for step in (0, 1, 2, 1, 2, 3):  # it jumps back once
        for part in parts:
            assert same(ahead.batch(step, part), expected[step, part])
    assert not asked, "workers loaded them"
    assert same(ahead.batch(3, Part(0, 1)), original(3)) and asked == [(3, Part(0, 1))]


def test_a_source_travels_to_a_fresh_process(folder: Path) -> None:
    """Spawned workers get it pickled: without the model, the index and anything open."""
    data = source(folder, "talk.json", "cc3m-00000.tar")
    expected = [data.batch(step) for step in range(2)]
    pickled = pickle.dumps(data)
    assert len(pickled) < 60_000
    travelled = pickle.loads(pickled)
    assert all("records" in f.__dict__ for f in data.files), "in use here"
    assert not any("records" in f.__dict__ for f in travelled.files), "but mapped anew there"
    assert all(same(travelled.batch(step), batch) for step, batch in enumerate(expected))
    assert backbone().model is not None


# ---------------------------------------------------------------------------------------------------- bad samples
def test_broken_images_are_replaced_and_named(folder: Path) -> None:
    """A missing, an empty, a truncated and a textual one; batches keep their size, parts agree, others stay."""
    images = folder / "coco/train2017"
    whole = source(folder, "talk.json", max_skipped=5)
    steps = range(7)
    before = [rows(whole.batch(step)) for step in steps]
    (images / f"{0:012d}.png").unlink()
    (images / f"{1:012d}.png").write_bytes(b"")
    png = (images / f"{2:012d}.png").read_bytes()
    (images / f"{2:012d}.png").write_bytes(png[: len(png) // 2])
    (images / f"{3:012d}.png").write_text("<html>404</html>")
    data = source(folder, "talk.json", max_skipped=5)
    after = [rows(data.batch(step)) for step in steps]
    bad = sorted(data.skipped.reasons)
    assert len(data.skipped) == 4 and {len(batch) for batch in after} == {6}
    for step in steps:
        drawn = data.numbers("conversation", step)
        for slot, (old, new) in enumerate(zip(before[step], after[step], strict=True)):
            if ("conversation", drawn[slot]) not in bad:
                assert new == old
                continue
            turns = (data.numbers("conversation", step + later)[slot] for later in range(1, 50))
            number = next(n for n in turns if ("conversation", n) not in bad)
            there = whole.encoder.collate(
                [whole.encoder.row("conversation", whole.files[0].sample("conversation", number))]
            )
            assert [new] == rows(there), "the one in its place in the next batch that can be read"
    halves = source(folder, "talk.json", max_skipped=5)
    for step in (6, 0, 3):
        assert rows(halves.batch(step, Part(1, 2))) == after[step][3:]
    reasons = sorted(data.skipped.reasons.values())
    assert reasons[0].startswith(f"talk.json, entry 0 (id 000000000000): image {images}/000000000000.png is missing")
    assert all("can't be read (" in reason for reason in reasons[1:]) and len(reasons) == 4


@pytest.mark.parametrize(("limit", "says"), [(3, "3"), (0.1, "0.1"), (0, "0")])
def test_too_many_bad_samples(folder: Path, limit: float, says: str) -> None:
    for n in range(10, 16):
        (folder / f"coco/train2017/{n:012d}.png").write_bytes(b"")
    data = source(folder, "talk.json", max_skipped=limit)
    allowed = {3: 3, 0.1: 3, 0: 0}[limit]
    message = rf"max_skipped={says}: {allowed + 1} of 38 samples .* more than the {allowed} allowed: talk.json, entry"
    with pytest.raises(UserError, match=message) as error:
        for step in range(7):
            data.batch(step)
    assert "\n" not in str(error.value)
    ahead = source(folder, "talk.json", max_skipped=limit)
    with pytest.raises(UserError, match=message) as in_worker:
        list(Prefetched(ahead, [Part()], 0, 7, workers=2))
    assert "\n" not in str(in_worker.value)


def test_bad_text_and_bad_shards_count_too(folder: Path) -> None:
    path = shard(folder / "cc3m-00002.tar", 0, 12, leave_out=["000004.jpg", "000006.txt"])
    data = source(folder, path.name, max_skipped=2)
    assert [len(data.batch(step)) for step in range(3)] == [6, 6, 6]
    named = sorted(data.skipped.reasons.values())
    assert named[0] == "cc3m-00002.tar, entry 4 (000004.txt): no image beside it"
    assert named[1] == "cc3m-00002.tar, entry 6 (000006.jpg): an empty caption"


def test_samples_whose_answers_do_not_fit_count_too(folder: Path) -> None:
    entries = [{"id": str(n), "conversations": said(("what " * (60 if n == 3 else 2), "red"))} for n in range(12)]
    written(folder / "long.json", entries)
    data = source(folder, "long.json", max_length=30, max_skipped=1)
    for step in range(4):
        assert len(data.batch(step)) == 6
    assert list(data.skipped.reasons.values()) == ["long.json, entry 3 (id 3): no token of an answer before max_length"]


def test_nothing_that_can_be_read_is_no_endless_search(folder: Path) -> None:
    written(folder / "none.json", captions([f"none{n}.png" for n in range(5)]))
    with pytest.raises(UserError, match="no caption sample can be used"):
        source(folder, "none.json", max_skipped=100).batch(0)


def test_skipped_counts_a_sample_once() -> None:
    skipped = Skipped(2, 100, 0.02)
    skipped.update({("caption", 1): "a", ("caption", 2): "b"})
    skipped.update({("caption", 2): "of another process", ("caption", 1): "a"})
    assert list(skipped.reasons.values()) == ["a", "b"]
    skipped.synchronise()  # one process: nothing to do
    with pytest.raises(UserError, match=r"max_skipped=0.02: 3 of 100 .* 2 allowed: a; b; c$"):
        skipped.update({("both", 1): "c"})


def _process(rank: int, address: str, queue: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    skipped = Skipped(4, 100, 4)
    skipped.update({("caption", 7): "both met it", ("caption", rank): f"rank {rank}"})
    skipped.synchronise()
    queue.put(sorted(skipped.reasons.items()))
    skipped.update({("caption", 20 + rank): "met later"})  # 4 in either, 5 together
    try:
        skipped.synchronise()
        queue.put("went on")
    except UserError as error:
        queue.put(str(error))
    torch.distributed.destroy_process_group()


def test_processes_count_their_union(tmp_path: Path) -> None:
    """Forked, so that nothing is imported anew; they meet at a file."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    processes = [context.Process(target=_process, args=(r, f"file://{tmp_path}/meet", queue)) for r in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    union = [(("caption", 0), "rank 0"), (("caption", 1), "rank 1"), (("caption", 7), "both met it")]
    assert answers.count(union) == 2
    assert sum("5 of 100 samples can't be used, more than the 4 allowed" in str(a) for a in answers) == 2


# --------------------------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "training.data.path=null"),
        ({"path": "none.json"}, "path=.*none.json: no such file"),
        ({"path": "cc3m-{00000..00003}.tar"}, "no such file: .*cc3m-00002.tar"),
        ({"path": "cc3m-9*.tar"}, "no such file"),
        ({"path": "talk.json", "format": "llava"}, "training.data.format=llava: unknown; allowed: json, jsonl, webd"),
        ({"path": "talk.json", "kind": "captions"}, "training.data.kind=captions: .*did you mean 'caption'"),
        ({"path": "talk.json", "kind": "caption"}, "entry 1: 0 images|entry 0: no caption"),
        ({"path": "talk.json", "images": "/none"}, "training.data.images=/none: no such folder"),
        ({"path": "talk.json", "images": "index"}, "none of the first images that talk.json names is there, e.g. "),
        ({"path": "talk.json", "batch_size": 0}, "training.data.batch_size=0: a whole number of 1 or more"),
        ({"path": "talk.json", "batch_size": None}, "training.data.batch_size=None: a whole number"),
        ({"path": "talk.json", "max_length": 2.5}, "training.data.max_length=2.5: a whole number"),
        ({"path": "talk.json", "max_skipped": -1}, "training.data.max_skipped=-1: a share"),
        ({"path": "talk.json", "max_skipped": 1.5}, "training.data.max_skipped=1.5: a share"),
        ({"path": "talk.json", "max_skipped": "all"}, "training.data.max_skipped=all: a share"),
        ({"path": "talk.json", "mix": {"caption": 1}}, "training.data.mix.caption=1: the data has no samples"),
        ({"path": "empty.json"}, "the files hold no sample"),
        ({"sources": [{"path": 3}]}, "training.data.sources.path=3: allowed: a file, or a list"),
        ({"sources": [{"path": "talk.json", "images": ["x"]}]}, "training.data.sources.images=.*allowed: a text"),
        ({"path": "deep.json"}, "none of the first images that deep.json names is there"),
        ({"path": "talk.json", "sources": [{"path": "talk.json"}]}, "give one of them"),
        ({"sources": [{"paths": "talk.json"}]}, "training.data.sources=paths: unknown; .*did you mean 'path'"),
        ({"path": "cc3m-00000.tar", "captions": "pairs.json"}, "captions: .*is a shard"),
        ({"path": "talk.json", "captions": "cc3m-*.tar"}, "training.data.captions=.*2 files"),
    ],
)
def test_what_cannot_be_is_told_at_once(folder: Path, config: dict, says: str) -> None:
    (folder / "empty.json").write_text("[]")
    written(folder / "deep.json", captions(["x" * 5000] * 10))
    (folder / "index").mkdir()
    given = copy.deepcopy(config)
    for key in {"path", "captions"} & given.keys():
        given[key] = str(folder / given[key])
    if given.get("images") == "index":
        given["images"] = str(folder / "index")
    with pytest.raises(UserError, match=says) as error:
        source(folder, **given)
    assert "\n" not in str(error.value)
    if not {"batch_size", "max_length"} & given.keys():
        with pytest.raises(UserError, match=says):  # and before there is a backbone
            FileSource.check(DataSettings(**{"cache": str(folder / "index"), **given}))
