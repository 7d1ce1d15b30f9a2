"""A source of tasks of somebody's own: one class that draws its pictures, scored as any other benchmark."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from vtc import results
from vtc.configuration import parse
from vtc.evaluation import evaluate
from vtc.evaluation.run_folder import RunFolder
from vtc.evaluation.sources import RowsSource, source_of
from vtc.registry import sources
from vtc.settings import BenchmarkSettings, ProfileSettings

QUICK = ProfileSettings(batch_size=1, prompt_tokens=16, new_tokens=(2, 3), repeats=1, first_token_repeats=1)
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def colors(monkeypatch):
    """Three drawn pictures, as a plug-in would bring them."""

    class Colors(RowsSource):
        tasks = ("which_color",)
        shade = 0

        def rows(self, task):
            for name, (red, green, blue) in COLORS.items():
                picture = Image.new("RGB", (96, 96), (red, green, max(blue, self.shade)))
                yield {"id": name, "image": picture, "question": "what color is it?", "answer": name}

    monkeypatch.setitem(sources._registered, "colors", Colors)
    return Colors


def job(weights, tmp_path):
    place = [f"backbone.pretrained={weights}", "backbone.device=cpu", f"output_dir={tmp_path}"]
    return dataclasses.replace(parse(["benchmark=colors", *place]), profile=QUICK)


def test_three_drawn_pictures_are_scored(colors, weights, tmp_path, capsys):
    result = results.load(path := evaluate(job(weights, tmp_path)))
    (row,) = result["scores"]
    assert (row["task"], row["metric"], row["n"], row["bad"]) == ("which_color", "exact_match", 3, 0)
    assert row["group"] == "understanding" and result["config"]["benchmark"]["name"] == "colors"
    frame = results.samples(path)
    assert frame["id"].tolist() == [*COLORS] and frame["target"].tolist() == [*COLORS]
    assert set(frame["tokens_in"]) == {144}
    assert "which_color" in capsys.readouterr().out


def test_other_pictures_are_another_run(colors, weights, tmp_path):
    first = RunFolder(job(weights, tmp_path)).id
    assert RunFolder(job(weights, tmp_path)).id == first
    colors.shade = 9
    assert RunFolder(job(weights, tmp_path)).id != first


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [("pocket", "pocket_choice", "drawn here where it isn't yet"), ("colors", "which_color", "drawn here"),
     ("jsonl", "own_exact_match", "my.jsonl"), ("llava", "pope", "<lmms-lab-encoder/POPE>")],
)  # fmt: skip
def test_every_source_says_where_its_data_are(name, task, words, colors):
    data = "my.jsonl" if name == "jsonl" else None
    source = source_of(BenchmarkSettings(name=name, tasks=(task,), data=data))
    assert source.location(task, lambda name: f"<{name}>") == words
