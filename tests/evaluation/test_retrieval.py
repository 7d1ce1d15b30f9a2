"""`benchmark=retrieval`: recall against a count by hand, the public layouts, a whole run on fabricated data."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from PIL import Image

from vtc import results
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.evaluation import evaluate, scoring
from vtc.evaluation.sources.retrieval import CATEGORIES, NOCAPS, nocaps, sugarcrepe

WORDS = ("red circle", "blue square", "green triangle", "yellow circle", "white square", "red triangle")


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_hand(records: list[dict], k: int, direction: str) -> float:
    """One query after the other, its rivals sorted."""
    captions = [(n, text) for n, record in enumerate(records) for text in record["texts"]]
    found = []
    if direction == "image_to_text":
        for n, record in enumerate(records):
            order = sorted(captions, key=lambda c: -cosine(record["image"], c[1]))
            found.append(n in [owner for owner, _ in order[:k]])
    else:
        for n, text in captions:
            order = sorted(range(len(records)), key=lambda i: -cosine(records[i]["image"], text))
            found.append(n in order[:k])
    return sum(found) / len(found)


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_with_several_captions_an_image(k: int, direction: str) -> None:
    rng = random.Random(3)
    images = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(30)]
    records = [
        {"image": image, "texts": [[x + rng.gauss(0, 1) for x in image] for _ in range(rng.randint(1, 5))]}
        for image in images
    ]
    value = scoring.group_recall(records, k, direction)
    assert value == pytest.approx(by_hand(records, k, direction)) and 0 < value < 1


def test_one_embedding_for_everything_finds_nothing() -> None:
    records = [{"image": [1.0, 0.0], "texts": [[1.0, 0.0]] * 2} for _ in range(12)]
    assert scoring.group_recall(records, 1, "image_to_text") == scoring.group_recall(records, 10, "text_to_image") == 0


@pytest.fixture
def data(tmp_path) -> Path:
    """Both sets in their authors' layouts: six pictures of one colour each."""
    rng = random.Random(0)
    for folder in ("val", "val2017"):
        (tmp_path / folder).mkdir()
        for n in range(6):
            Image.new("RGB", (64, 48), tuple(rng.randrange(256) for _ in range(3))).save(tmp_path / folder / f"{n}.jpg")
    images = [{"id": 100 + n, "file_name": f"{n}.jpg", "height": 48, "width": 64} for n in range(6)]
    annotations = [
        {"image_id": 100 + n, "id": n, "caption": f" A {WORDS[n]}\n{i}."} for i in range(10) for n in range(6)
    ]
    (tmp_path / NOCAPS).write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "sugarcrepe").mkdir()
    for kind in CATEGORIES:
        pairs = {
            str(n): {"filename": f"{n}.jpg", "caption": f"a {WORDS[n]}", "negative_caption": f"a {WORDS[n - 1]}"}
            for n in range(3)
        }
        (tmp_path / "sugarcrepe" / f"{kind}.json").write_text(json.dumps(pairs))
    return tmp_path


def test_layouts(data) -> None:
    rows = list(nocaps(data))
    assert [len(row["answers"]) for row in rows] == [10] * 6
    assert rows[2]["text"].split("\n")[3] == "A green triangle 3."
    pairs = list(sugarcrepe(data))
    assert [row["kind"] for row in pairs[:7]] == list(CATEGORIES) and len(pairs) == 21
    assert pairs[7]["text"] == "a blue square\na red circle" and pairs[7]["images"] == [str(data / "val2017" / "1.jpg")]
    assert len({row["id"] for row in pairs}) == 21


def test_a_whole_run(data, tmp_path) -> None:
    """Every metric is that of a count over the embeddings that the model gives."""
    from vtc.data.pictures import open_picture
    from vtc.engine import embed_images, embed_texts

    words = ["benchmark=retrieval", f"benchmark.data={data}", "method=fwd2bot", "tokens=16"]
    job = parse([*words, f"output_dir={tmp_path / 'out'}"])
    scores = {row["task"]: row for row in results.load(evaluate(job))["scores"]}
    backbone, method = job.load()

    def vectors(row):
        image = embed_images(backbone, method, [open_picture(row["images"][0])])[0].tolist()
        return {"image": image, "texts": embed_texts(backbone, method, row["text"].split("\n")).tolist()}

    records = [vectors(row) for row in nocaps(data)]
    for k in (1, 5, 10):
        for direction in ("image_to_text", "text_to_image"):
            told = scores["nocaps_retrieval"]["metrics"][f"{direction}_R@{k}"]
            assert told == pytest.approx(by_hand(records, k, direction), abs=1e-6)
    right: dict[str, list[bool]] = {}
    for row in sugarcrepe(data):
        v = vectors(row)
        right.setdefault(row["kind"], []).append(cosine(v["image"], v["texts"][0]) > cosine(v["image"], v["texts"][1]))
    shares = {kind: sum(r) / len(r) for kind, r in right.items()}
    metrics = scores["sugarcrepe"]["metrics"]
    assert {kind: metrics[kind] for kind in CATEGORIES} == pytest.approx(shares)
    assert metrics["accuracy"] == pytest.approx(sum(shares.values()) / 7)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: (d / NOCAPS).unlink(), "can't be read"),
        (lambda d: (d / NOCAPS).write_text("[]"), "not in its authors' layout"),
        (lambda d: (d / "sugarcrepe" / "swap_obj.json").write_text("{}"), "not in its authors' layout"),
        (lambda d: [f.unlink() for f in (d / "val2017").iterdir()], "no picture of sugarcrepe is there"),
    ],
)
def test_what_is_not_there(data, tmp_path, change, line) -> None:
    change(data)
    job = parse(["benchmark=retrieval", f"benchmark.data={data}", f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(UserError, match=line):
        evaluate(job)


def test_a_folder_is_needed(tmp_path) -> None:
    with pytest.raises(UserError, match="needs the folder of its data"):
        evaluate(parse(["benchmark=retrieval", f"output_dir={tmp_path}"]))
