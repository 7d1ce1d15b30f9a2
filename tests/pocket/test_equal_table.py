"""The one table: every row is a command that can be run, and trained methods learn alike but for what is written."""

import dataclasses
import importlib.util
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml

from vtc import shipped
from vtc.configuration import parse
from vtc.pocket import second

FILE = shipped.path("benchmarks/pocket/table.py")
VALUES = yaml.safe_load(FILE.with_suffix(".yaml").read_text(encoding="utf-8"))
RISING = [*VALUES["rates"], 6e-3, 1.2e-2]  # those that are tried where the higher one is always the better
PARTS = ("trained", "free", "options", "shipped", "controls")
ADAPTERS = {"fwd2bot", "single_forward", "fwd2bot-open"}  # what of them learns is said in table.yaml


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("pocket_table", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def table(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TARGET", tmp_path / "results")
    return module.Table(VALUES, tmp_path / "work")


def test_trained_methods_learn_alike(table):
    """Same start, data, order, pictures, questions, steps and optimiser; what learns differs where it is written."""
    recipes = {name: parse(table.trial(name, 1.5e-3).command).training for name in VALUES["trained"]}
    first = recipes["victor"]
    assert first.pretrained is None and first.stages[0].train == ("method", "projector", "decoder")
    for name, recipe in recipes.items():
        stages = [dataclasses.replace(stage, train=first.stages[0].train) for stage in recipe.stages]
        assert dataclasses.replace(recipe, stages=tuple(stages)) == first, name
        assert (recipe.stages[0].train == first.stages[0].train) == (name not in ADAPTERS), name


@pytest.mark.parametrize("name", [name for part in PARTS for name in VALUES[part]])
def test_every_row_is_a_command_that_can_be_run(table, name):
    rows = list(table.rows(name))
    assert len({row.label for row in rows}) == len(rows)
    for row in {row.tokens: row for row in rows}.values():
        job = parse(row.command)
        job.check(trained=False)
        assert job.backbone.name == "pocket" and job.benchmark.name == "pocket"
        assert row.tokens in (None, job.compressor.tokens)


def test_the_rate_is_that_of_the_best_validation_and_needs_all_of_them(table, module):
    def tried(rate, mean):
        digest = module.digest(table.trial("voco", rate).command)
        return {"identity": digest, "validation": {"mean": mean}, "seconds": 10.0}

    file = table.rates_file("voco")
    rates = [f"{rate:g}" for rate in VALUES["rates"]]
    module.results.write_text(file, module.json.dumps({rates[0]: tried(float(rates[0]), 0.5)}))
    assert table.rate("voco") is None
    scores = dict(zip(rates, (0.5, 0.7, 0.6), strict=True))
    module.results.write_text(file, module.json.dumps({r: tried(float(r), s) for r, s in scores.items()}))
    assert table.rate("voco") == float(rates[1])
    row = next(r for r in table.rows("voco") if r.tokens == 16 and r.seed == 0)
    assert row.training == table.trial("voco", float(rates[1])), "the trial is the training of the row"
    assert table.seconds("voco", "training") == 10.0


@pytest.mark.parametrize("scores, further", [((0.7, 0.6, 0.5), [3.5e-4, 1.75e-4]), ((0.5, 0.6, 0.7), [6e-3, 1.2e-2])])
def test_a_rate_at_an_end_is_the_best_only_between_others(table, module, scores, further):
    """Two further ones at most, each beyond the best; one that falls off is the last."""
    grid = [float(rate) for rate in VALUES["rates"]]

    def known(means):
        tried = {f"{rate:g}": {"identity": module.digest(table.trial("voco", rate).command),
                               "validation": {"mean": mean}} for rate, mean in means.items()}  # fmt: skip
        module.results.write_text(table.rates_file("voco"), module.json.dumps(tried))

    means = dict(zip(grid, scores, strict=True))
    known(means)
    assert sorted(table.rates("voco")) == sorted([*grid, further[0]]) and table.rate("voco") is None
    known(means | {further[0]: 0.65})
    assert sorted(table.rates("voco")) == sorted([*grid, further[0]])
    assert table.rate("voco") == grid[scores.index(0.7)]
    known(means | {further[0]: 0.8})
    assert sorted(table.rates("voco")) == sorted([*grid, *further]) and table.rate("voco") is None
    known(means | {further[0]: 0.8, further[1]: 0.9})
    assert len(table.rates("voco")) == 5 and table.rate("voco") == further[1]


def test_what_is_stored_counts_until_the_table_says_otherwise(table, module):
    row = next(table.rows("fastv"))
    assert row.piece is None
    module.results.write_text(row.folder / module.PIECE, module.json.dumps({"identity": row.identity, "seconds": 1.0}))
    assert row.piece is not None and dict(table.jobs("fastv"))[row]
    assert dataclasses.replace(row, words=(*row.words, "batch_size=8")).piece is None
    assert not table.run(["fastv", "victor-16-grey"], until=0.0), "nothing is begun that would end too late"


@pytest.fixture
def made(table, module, monkeypatch):
    """What is made, in its order, with nothing trained or scored."""
    made = []

    def trained(training):
        made.append(training.label)
        folder = table.work / "training" / training.label
        stage = {"validation": {"mean": training.rate}, "seconds": 1.0, "steps": 1}
        module.results.write_text(folder / "manifest.json", module.json.dumps({"stages": [stage]}))
        return folder

    def scored(row, weights):
        made.append(row.label)
        piece = {"identity": row.identity, "seconds": 1.0}
        module.results.write_text(row.folder / module.PIECE, module.json.dumps(piece))

    monkeypatch.setattr(table, "weights", trained)
    monkeypatch.setattr(table, "_score", scored)
    return made


def test_each_budget_and_seed_of_all_methods_comes_before_the_next_one(table, made):
    assert table.run(["victor", "tokenpacker", "fastv", "victor-4-withdrawn"], until=float("inf"))
    rows = [label for label in made if "-lr" not in label]
    of_16 = ["victor-16-s0", "tokenpacker-16-s0", "fastv-16-s0"]
    of_4 = ["victor-4-s0", "tokenpacker-4-s0", "fastv-4-s0", "victor-4-withdrawn"]
    assert rows[:7] == of_16 + of_4 and rows[-2:] == ["victor-64-s0", "fastv-64-s0"]
    trials = [f"victor-16-s0-lr{rate:g}" for rate in RISING]
    assert made[: len(trials)] == trials and made[len(trials)] == trials[-1], "the best one serves the row"
    made.clear()
    assert table.run(["victor", "fastv"], until=float("inf")) and not made


def test_rates_can_be_chosen_before_any_row(table, made):
    assert table.run(["victor", "fastv", "victor-4-withdrawn"], until=float("inf"), trials=True)
    assert made == [f"victor-16-s0-lr{rate:g}" for rate in RISING]


@pytest.fixture
def elsewhere():
    """Locks of another process: a harness may make all locks of one path in this process into one (lmms-eval does)."""
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    with ExitStack() as stack:

        def hold(file):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", code, file], text=True, **pipes))
            assert process.stdout.readline() == "\n"
            return process

        yield hold


def test_a_method_that_another_process_is_at_is_left_to_it(table, made, module, monkeypatch, elsewhere):
    monkeypatch.setattr(module, "WAIT", 0.0)
    holder = elsewhere(module.lock_of(table.work / "methods" / "victor").lock_file)
    waited = []
    sleep = lambda seconds: (waited.append(seconds), holder.communicate("\n"))  # noqa: E731
    # Its own `time`: other threads sleep too.
    monkeypatch.setattr(module, "time", SimpleNamespace(time=time.time, sleep=sleep))
    assert table.run(["victor", "fastv"], until=float("inf"))
    assert waited and made[:4] == ["fastv-16-s0", "fastv-4-s0", "fastv-36-s0", "fastv-64-s0"]
    assert made[4].startswith("victor")


def test_scores_on_other_scenes_stand_beside_the_published_ones(module, monkeypatch):
    """z by hand: 0.1 apart with errors of 0.03 and 0.04 is two standard errors; the mean is of shares."""
    monkeypatch.setitem(sys.modules, "table", module)
    spec = importlib.util.spec_from_file_location("pocket_scenes", FILE.with_name("scenes.py"))
    scenes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenes)
    before = [{"task": "a", "value": 0.8, "stderr": 0.03}, {"task": "b", "value": 50.0, "stderr": 0.0, "scale": 100.0}]
    after = [{"task": "a", "value": 0.9, "stderr": 0.04}, {"task": "b", "value": 50.0, "stderr": 0.0, "scale": 100.0}]
    found = scenes.compared({"scores": before}, {"scores": after})
    assert found["a"] == {"score": 0.9, "published": 0.8, "z": 2.0} and found["b"]["z"] == 0
    assert found["mean"] == {"score": 0.7, "published": 0.65, "z": 2.0}


def test_other_scenes_are_drawn_by_another_seed(tmp_path):
    sets = [second.rows("pocket2_counting", seed=seed)[:20] for seed in (0, 0, 1)]
    assert sets[0] == sets[1] and not any(a["image"] == b["image"] for a, b in zip(sets[0], sets[2], strict=True))
