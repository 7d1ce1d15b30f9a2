"""The shipped weights: each loads by the command that names it, says what it is, and sees."""

import json
import re

import numpy as np
import pytest

from vtc import shipped
from vtc.configuration import parse
from vtc.pocket.data import draw_scenes
from vtc.pocket.questions import KINDS, TASK_OF_KIND
from vtc.pocket.scenes import scene_rng
from vtc.pocket.source import PocketSource, exact_answers
from vtc.settings import DataSettings
from vtc.training.method_stage import MethodStage

WEIGHTS = shipped.path("benchmarks/pocket/weights")
TRAINED = sorted(p.name for p in WEIGHTS.iterdir() if (p / "manifest.json").is_file())
OF_THE_TABLE = sorted(shipped.path("benchmarks/results/pocket2/rows").glob("*/weights"))
DATA = DataSettings(batch_size=16, questions=10, weights={k: 1.0 for k in KINDS if k != "captions"})


def commands():
    """Name, words, and the least that is expected: of the table's weights what is published, but for so few samples."""
    yield "base", ["method=none"], 0.85
    for name in TRAINED:
        method, _, budget = name.partition("-")
        yield name, [f"method={method}", *([f"tokens={budget}"] if budget.isdigit() else [])], 0.6
    for folder in OF_THE_TABLE:
        result = json.loads((folder.parent / "result.json").read_text())
        published = {row["task"].removeprefix("pocket2_"): row["value"] for row in result["scores"]}
        least = np.mean([published[task] for task in {*TASK_OF_KIND.values()} - {"captions"}]) - 0.1
        yield folder.parent.name, [*result["run"]["command"].split()[3:], f"checkpoint={folder}"], least


@pytest.mark.parametrize("name, overrides, least", commands(), ids=lambda v: v if isinstance(v, str) else "")
def test_shipped_weights_answer_questions_they_never_saw(name, overrides, least):
    """Exact answers on validation scenes, the mean over six tasks: guessing without the picture gets 0.3, knowing the
    bag of attributes 0.45."""
    backbone, method = parse(overrides).load()
    parts = ["projector", "decoder"]
    source = PocketSource("check", DATA, seed=0)
    stage = MethodStage("check", backbone, method, parts, source)
    rng = scene_rng(1, "weights", 0)
    batch = source.pack(rng, draw_scenes(rng, 16, "validation"), DATA.weights, 10)
    method.eval()
    found = exact_answers(stage.answers(batch)[0], batch)
    tasks = {}
    for kind, values in found.items():
        tasks.setdefault(TASK_OF_KIND[kind], []).extend(values)
    score = np.mean([np.mean(values) for task, values in tasks.items() if task != "captions"])
    assert score > least, {task: float(np.mean(v)) for task, v in tasks.items()}


@pytest.mark.parametrize("row, name", [("m3-16-s0", "m3-elastic"), ("single_forward-16-s0", "single_forward-16")])
def test_weights_that_are_the_tables_are_its_rows(row, name):
    """What table.yaml says of methods that have no row of shipped weights of their own."""
    own = next(folder for folder in OF_THE_TABLE if folder.parent.name == row)
    for file in ("weights.safetensors", "manifest.json"):
        assert (own / file).read_bytes() == (WEIGHTS / name / file).read_bytes()


@pytest.mark.parametrize("folder", [*(WEIGHTS / name for name in ("base", *TRAINED)), *OF_THE_TABLE])
def test_weights_say_what_made_them_and_name_no_machine(folder):
    text = (folder / ("training.json" if folder.name == "base" else "manifest.json")).read_text()
    manifest = json.loads(text)
    assert {"seed", "stages", "seconds", "versions", "finished"} <= set(manifest)
    assert not re.search(r'"/[a-z]+/', text), "an absolute path"
    beside = folder.parent if folder in OF_THE_TABLE else folder
    log = [json.loads(line) for line in (beside / "training.jsonl").read_text().splitlines()]
    for stage in manifest["stages"]:
        steps = [entry["step"] for entry in log if entry["stage"] == stage["name"]]
        assert steps[-1] == stage["steps"], "the log must reach the last step"
    assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) < 5e6
