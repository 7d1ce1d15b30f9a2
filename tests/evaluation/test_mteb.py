"""`benchmark=mteb`: tasks of mteb on fabricated data in the hub's layout, every metric against a count by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from vtc import results
from vtc.cli import main
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.pocket.data import draw_scenes
from vtc.pocket.scenes import scene_rng

COUNT, EACH = 10, 2  # pictures, captions of each
KS = (1, 3, 5, 10)
PAIRS = {"Winoground": (2, 2), "AROFlickrOrder": (1, 5)}
TASKS = ("Flickr30kT2IRetrieval", "Flickr30kI2TRetrieval", "VidoreArxivQARetrieval", *PAIRS)


def put(folder: Path, **tables: dict) -> None:
    """A data set as the hub has it: a Parquet file a configuration, and the page that names them."""
    configs = []
    for name, columns in tables.items():
        table = datasets.Dataset.from_dict(columns)
        for key in columns:
            if key.startswith("image"):
                table = table.cast_column(key, datasets.Image())
        (folder / name).mkdir(parents=True)
        table.to_parquet(str(folder / name / "test.parquet"))
        configs.append({"config_name": name, "data_files": [{"split": "test", "path": f"{name}/test.parquet"}]})
    (folder / "README.md").write_text("---\n" + json.dumps({"configs": configs}) + "\n---\n")


@pytest.fixture(scope="module")
def scenes() -> tuple[list[Image.Image], list[str]]:
    drawn = draw_scenes(scene_rng(3, "mteb", 0), COUNT, "test")
    texts = [f"{scene.caption}{' .' * extra}" for scene in drawn for extra in range(EACH)]
    return [Image.fromarray(scene.render()) for scene in drawn], texts


@pytest.fixture(scope="module")
def data(tmp_path_factory, scenes) -> Path:
    pictures, texts = scenes
    folder = tmp_path_factory.mktemp("hub")
    images = [f"i{n}" for n in range(COUNT)]
    lines = [f"t{n}" for n in range(len(texts))]
    pairs = [(images[n // EACH], lines[n]) for n in range(len(texts))]
    of_images = {"id": images, "image": pictures}
    of_texts = {"id": lines, "text": texts}

    def relevant(pairs) -> dict:
        return {"query-id": [q for q, _ in pairs], "corpus-id": [d for _, d in pairs], "score": [1] * len(pairs)}

    swapped = [(line, image) for image, line in pairs]
    put(folder / "mteb" / "flickr30kt2i", corpus=of_images, queries=of_texts, default=relevant(swapped))
    put(folder / "mteb" / "flickr30ki2t", corpus=of_texts, queries=of_images, default=relevant(pairs))
    pages = folder / "mteb" / "arxivqa_test_subsampled_beir"
    put(
        pages,
        corpus={"corpus-id": list(range(COUNT)), "image": pictures},
        queries={"query-id": list(range(len(texts))), "query": texts},
        qrels=relevant([(n, n // EACH) for n in range(len(texts))]),
    )
    one = texts[::EACH]
    wrong = {n: one[n:] + one[:n] for n in range(5)}
    half = {"image_0": pictures[::2], "image_1": pictures[1::2], "caption_0": one[::2], "caption_1": one[1::2]}
    put(folder / "facebook" / "winoground", default=half)
    order = {"images": pictures, "correct_caption": one} | {f"hard_text_{n}": wrong[n] for n in range(1, 5)}
    put(folder / "mteb" / "ARO-Flickr-Order", default=order)
    return folder


@pytest.fixture(scope="module")
def result(data, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("out")
    words = ["benchmark=mteb", f"benchmark.tasks=[{','.join(TASKS)}]", f"benchmark.data={data}", "costs=none"]
    assert main([*words, "method=avgpool", "tokens=16", f"output_dir={out}"]) == 0
    file = next(out.glob("pocket-avgpool-*/result.json"))
    return results.load(file) | {"samples": results.samples(file)}


@pytest.fixture(scope="module")
def cosines(scenes) -> np.ndarray:
    """[pictures, texts] in float64, of embeddings made one by one."""
    from vtc.engine import embed_images, embed_texts

    backbone, method = parse(["method=avgpool", "tokens=16"]).load()
    with torch.inference_mode():
        images = torch.cat([embed_images(backbone, method, [picture]) for picture in scenes[0]]).double()
        texts = torch.cat([embed_texts(backbone, method, [text]) for text in scenes[1]]).double()
    unit = torch.nn.functional.normalize
    return (unit(images, dim=-1) @ unit(texts, dim=-1).T).numpy()


def row_of(result: dict, task: str) -> dict:
    return next(row for row in result["scores"] if row["task"] == task)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in PAIRS])
def test_retrieval_is_a_count(result, cosines, task: str) -> None:
    """One query after the other, its rivals sorted."""
    scores, relevant = cosines.T, [[n // EACH] for n in range(COUNT * EACH)]
    if "I2T" in task:
        scores, relevant = cosines, [[EACH * n + i for i in range(EACH)] for n in range(COUNT)]
    hits = {k: [] for k in KS}
    gains = {k: [] for k in KS}
    found = {k: [] for k in KS}
    for own, right in zip(scores, relevant, strict=True):
        order = sorted(range(len(own)), key=lambda n: -own[n])
        for k in KS:
            ranks = [rank for rank, n in enumerate(order[:k]) if n in right]
            best = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(right))))
            hits[k].append(bool(ranks))
            found[k].append(len(ranks) / len(right))
            gains[k].append(sum(1 / math.log2(rank + 2) for rank in ranks) / best)
    row = row_of(result, task)
    for k in KS:
        assert row["metrics"][f"hit_rate_at_{k}"] == pytest.approx(np.mean(hits[k]), abs=1e-5)
        assert row["metrics"][f"recall_at_{k}"] == pytest.approx(np.mean(found[k]), abs=1e-5)
        assert row["metrics"][f"ndcg_at_{k}"] == pytest.approx(np.mean(gains[k]), abs=1e-5)
    flickr = "Flickr" in task
    assert row["metric"] == ("hit_rate_at_1" if flickr else "ndcg_at_5") and row["n"] == len(scores)
    assert 0 < row["value"] < 1
    samples = result["samples"].query("task == @task")
    assert samples["score"].tolist() == pytest.approx([float(x) for x in (hits[1] if flickr else gains[5])])


@pytest.mark.parametrize("task", PAIRS)
def test_pairs_are_a_count(result, cosines, task: str) -> None:
    images, texts = PAIRS[task]
    one = cosines[:, ::EACH]  # [pictures, their first captions]
    row, of_texts, of_images, both = row_of(result, task), [], [], []
    for n in range(COUNT // images):
        shown = [n] if images == 1 else [2 * n, 2 * n + 1]
        told = [(n + i) % COUNT for i in range(texts)] if images == 1 else shown
        of_texts.append(all(max(told, key=lambda t: one[i, t]) == i for i in shown))
        of_images.append(all(max(shown, key=lambda i: one[i, t]) == t for t in told))
        both.append(of_texts[-1] and of_images[-1])
    assert row["metrics"]["text_acc"] == pytest.approx(np.mean(of_texts), abs=1e-6)
    assert row["metrics"]["image_acc"] == pytest.approx(np.mean(of_images), abs=1e-6)
    assert row["metrics"]["accuracy"] == pytest.approx(np.mean(both), abs=1e-6)
    headline = both if task == "Winoground" else of_texts
    assert row["value"] == pytest.approx(np.mean(headline), abs=1e-6) and row["n"] == COUNT // images
    assert result["samples"].query("task == @task")["score"].tolist() == [float(x) for x in headline]


def test_a_run_is_like_any_other(result, data) -> None:
    """A row a task with the uncompressed model's score beside it, and a mean; other data are another run."""
    assert [row["task"] for row in result["scores"]] == list(TASKS)
    assert all(row["baseline"] is not None and row["group"] == "discriminative" for row in result["scores"])
    assert result["means"]["discriminative"]["value"] == pytest.approx(
        np.mean([row["value"] for row in result["scores"]])
    )
    from vtc.evaluation.sources import source_of

    words = ["benchmark=mteb", "benchmark.tasks=[Winoground]"]
    specs = [source_of(parse([*words, *w]).benchmark).specs(0)[0] for w in ([], [f"benchmark.data={data}"])]
    assert len({spec.identity for spec in specs}) == 2


def test_the_first_queries_are_searched_in_everything(data) -> None:
    from vtc.evaluation import embedding_tasks
    from vtc.evaluation.sources.mteb import task_of

    kept = {}
    for name, place in (("Flickr30kT2IRetrieval", "mteb/flickr30kt2i"), ("Winoground", "facebook/winoground")):
        task = task_of(name)
        with embedding_tasks.mirrored(str(data), place):
            task.load_data()
            embedding_tasks._cut(task, 3)
        kept[name] = embedding_tasks._parts(task)[0][2]
    retrieval = kept["Flickr30kT2IRetrieval"]
    assert list(retrieval["queries"]["id"]) == ["t0", "t1", "t2"] and len(retrieval["corpus"]) == COUNT
    assert retrieval["relevant_docs"] == {"t0": {"i0": 1}, "t1": {"i0": 1}, "t2": {"i1": 1}}
    assert len(kept["Winoground"]) == 3


def test_a_mirror_that_was_filled_anew_is_read_anew(tmp_path) -> None:
    """`datasets` by itself keeps what it made of a folder of the same name."""
    from vtc.evaluation import embedding_tasks

    seen = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        put(folder / "some" / "set", default={"text": [f"a{number}"]})
        with embedding_tasks.mirrored(str(folder), "some/set"):
            seen += datasets.load_dataset("some/set", split="test")["text"]
    assert seen == ["a1", "a2"]


def test_names() -> None:
    """A benchmark stands for its tasks, and so does a task that puts others together."""
    from vtc.evaluation.sources.mteb import members_of

    lite = members_of("MIEB(lite)")
    assert {"Winoground", "AROCocoOrder", "VidoreDocVQARetrieval", "STS17MultilingualVisualSTS"} <= set(lite)
    assert len(lite) > 40 and "VisualSTS17Multilingual" not in lite
    assert all(task.startswith("Vidore") for task in members_of("ViDoRe(v1)"))


def test_a_picture_with_a_text_is_the_sum_of_both(scenes) -> None:
    from vtc.engine import embed_images, embed_texts
    from vtc.evaluation.embedding_tasks import Encoder

    backbone, method = parse(["method=avgpool", "tokens=4"]).load()
    batches = [{"image": scenes[0][n : n + 1], "text": scenes[1][n : n + 1]} for n in range(3)]
    both = Encoder(backbone, method, 2).encode(batches)
    unit = torch.nn.functional.normalize
    with torch.inference_mode():
        image, text = embed_images(backbone, method, scenes[0][:3]), embed_texts(backbone, method, scenes[1][:3])
    assert np.allclose(both, unit(image) + unit(text), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["benchmark.tasks=[Winogrand]"], "did you mean 'Winoground'"),
        (["benchmark.tasks=[NFCorpus]"], "is about text; allowed: pictures and texts"),
        (["benchmark.tasks=['MIEB(lite)',Winoground]"], "would count twice"),
        (["benchmark.tasks=[MSCOCOT2IRetrieval]"], "has no mteb/mbeir_mscoco_task0; get it with: hf download"),
        (["benchmark.tasks=[DTD]", "benchmark.limit=4"], "is scored as a whole"),
        (["benchmark.tasks=[Winoground]", "benchmark.picture=grey"], "shows each question its own"),
        (
            ["benchmark.tasks=[Winoground]", "+benchmark.about={Winoground: {metric: acc}}"],
            "image_acc, text_acc",
        ),
    ],
)
def test_refusals(data, tmp_path, words, line) -> None:
    from vtc.evaluation import evaluate

    with pytest.raises(UserError) as error:
        evaluate(parse(["benchmark=mteb", f"benchmark.data={data}", f"output_dir={tmp_path}", "costs=none", *words]))
    assert line in str(error.value)


def test_without_the_package(monkeypatch) -> None:
    import sys

    from vtc.evaluation.sources.mteb import library

    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r"pip install 'vtc\[retrieval\]'"):
        library()
