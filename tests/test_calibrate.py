"""`action=calibrate`: a recipe from training samples, written, read back, used; what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtc.cli import main
from vtc.configuration import parse
from vtc.methods.recipes import recipes_of
from vtc.pocket import splits

WORDS = ["action=calibrate", "method=fitprune", "calibrate.samples=4", "batch_size=2"]


def calibrated(tmp_path: Path, *words: str) -> int:
    return main([*WORDS, f"output_dir={tmp_path}", *words])


@pytest.mark.parametrize(
    ("budget", "holds"),
    [
        ("tokens=16", lambda recipe: 0 < recipe["layer_tokens"][-1] <= 16),
        ("ratio=0.25", lambda recipe: recipe["left"] <= 0.25),
        ("compression=3", lambda recipe: 6 * 144 / sum(recipe["layer_tokens"]) >= 2.999),
        ("flops=0.6", lambda recipe: recipe["left"] < 0.5),
    ],
)
def test_on_pocket_end_to_end(budget: str, holds, tmp_path: Path, capsys) -> None:
    assert calibrated(tmp_path, budget) == 0
    out = capsys.readouterr().out
    file = tmp_path / "recipes" / "fitprune-pocket.json"
    told = json.loads(file.read_text())
    (recipe,) = told["recipes"]
    assert (told["backbone"], told["depth"]) == ("pocket", 6)
    assert (recipe["budget"], recipe["samples"], recipe["seed"]) == (budget, 4, 0) and recipe["version"]
    assert 0 < recipe["alpha"] <= 1 and holds(recipe)
    assert recipe["layer_tokens"][0] == 144 and recipe["layer_tokens"] == sorted(recipe["layer_tokens"], reverse=True)
    line = next(line for line in out.splitlines() if line.startswith("use it: python -m vtc "))
    assert line.endswith(f"method.recipe={file}") and f" {budget} " in line
    assert not any(word in line for word in ("action=", "calibrate.", "batch_size="))
    job = parse(line.removeprefix("use it: python -m vtc ").split())
    shares = job.compressor.recipe.recipes[0].shares
    assert shares == recipes_of(told, job.shape).recipes[0].shares == tuple(recipe["shares"])
    assert job.method.options["recipe"] == told, "the run is known by what the file holds"


def test_another_budget_joins_and_the_same_one_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    for budget in ("tokens=36", "tokens=9", "tokens=36"):
        assert calibrated(tmp_path, budget, f"calibrate.output={file}") == 0
    told = json.loads(file.read_text())
    assert [recipe["budget"] for recipe in told["recipes"]] == ["tokens=9", "tokens=36"]
    assert calibrated(tmp_path, "tokens=36", f"calibrate.output={file}") == 0
    assert json.loads(file.read_text()) == told, "the same command, the same recipe"


def test_it_reads_training_files(tmp_path: Path, capsys, monkeypatch) -> None:
    """LLaVA's layout; files without any picture are refused."""
    monkeypatch.setenv("VTC_CACHE", str(tmp_path / "cache"))
    entries = []
    for number in range(6):
        Image.effect_noise((96, 96), 40 + number).convert("RGB").save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nhow many circles ?"}, {"from": "gpt", "value": "two"}]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "talk.json").write_text(json.dumps(entries))
    assert calibrated(tmp_path, "tokens=16", f"calibrate.path={tmp_path}/talk.json") == 0
    told = json.loads((tmp_path / "recipes" / "fitprune-pocket.json").read_text())
    assert told["recipes"][0]["data"] == f"{tmp_path}/talk.json"
    plain = [{"conversations": [{"from": "human", "value": "how many ?"}, {"from": "gpt", "value": "two"}]}] * 4
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    capsys.readouterr()
    assert calibrated(tmp_path, "tokens=16", f"calibrate.path={tmp_path}/plain.json") == 2
    assert "none of 4 samples has a picture" in capsys.readouterr().err


def test_pocket_draws_scenes_that_no_test_has(monkeypatch, tmp_path: Path) -> None:
    from vtc import calibrate
    from vtc.pocket import source
    from vtc.pocket.data import normalise

    read, scenes, render = [], [], source.render
    monkeypatch.setattr(source, "render", lambda shown: scenes.extend(shown) or render(shown))
    batches = calibrate.read
    monkeypatch.setattr(calibrate, "read", lambda *args: read.extend(batches(*args)) or read)
    assert calibrated(tmp_path, "tokens=16") == 0
    drawn = [pixels for batch in read for pixels in batch.inputs["pixel_values"]]
    assert len(drawn) == len(scenes) == 4 and {scene.split for scene in scenes} == {"train"}
    of_test = [
        normalise(np.array(Image.open(io.BytesIO(row["image"]["bytes"])))[None])[0]
        for task in ("pocket_existence", "pocket_counting")
        for row in splits.rows(task)
    ]
    assert not any((pixels == other).all() for pixels in drawn for other in of_test)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=fastv", "tokens=16"], "action=calibrate method=fastv: allowed: fitprune"),
        ([], "action=calibrate: a recipe is for a budget; give tokens="),
        (["tokens=144"], "tokens=144: is met by all 144 visual tokens of pocket"),
        (["flops=0.01"], "flops=0.01: isn't met by one of 144 visual tokens behind the first layer"),
        (["tokens=16", "calibrate.samples=0"], "calibrate.samples=0: allowed: a whole number from 1"),
        (["tokens=16", "calibrate.sample=4"], "did you mean 'samples'"),
        (["tokens=16", "calibrate.path=nowhere.json"], "calibrate.path=nowhere.json: no such file"),
        (["tokens=16", "backbone=llava15_7b"], "calibrate.path=null: backbone=llava15_7b needs training data"),
        (["tokens=16", "method.recipe={recipes: []}"], "method.recipe: action=calibrate makes one"),
    ],
)
def test_what_it_refuses(words: list[str], line: str, capsys, tmp_path: Path, monkeypatch) -> None:
    from vtc.job import Job

    monkeypatch.setattr(Job, "load_backbone", lambda *_: pytest.fail("a model was loaded"))
    assert calibrated(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not JSON"),
        ('{"recipes": 3}', "is there, and has no recipes"),
        ('{"backbone": "llava15_7b", "depth": 32, "recipes": []}', "has recipes of backbone=llava15_7b"),
    ],
)
def test_a_file_of_something_else_is_left_alone(content: str, line: str, capsys, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(content)
    assert calibrated(tmp_path, "tokens=16", f"calibrate.output={file}") == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1 and file.read_text() == content


def test_a_dry_run_says_what_it_would_do(tmp_path: Path, capsys) -> None:
    assert calibrated(tmp_path, "tokens=16", "dry_run=true") == 0
    assert "would fit fitprune tokens=16 to 4 training samples, and write" in capsys.readouterr().out
    assert not (tmp_path / "recipes").exists()
