"""The one table: every row is a command that can be run, and trained methods learn alike but for what is written."""

import dataclasses
import importlib.util
import sys

import pytest
import yaml

from vtc import shipped
from vtc.configuration import parse
from vtc.errors import UserError

FILE = shipped.path("benchmarks/pocket/table.py")
VALUES = yaml.safe_load(FILE.with_suffix(".yaml").read_text(encoding="utf-8"))
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


@pytest.mark.parametrize("name", [*VALUES["trained"], *VALUES["free"], *VALUES["controls"]])
def test_every_row_is_a_command_that_can_be_run(table, name):
    rows = list(table.rows(name))
    assert len({row.label for row in rows}) == len(rows)
    for row in {row.tokens: row for row in rows}.values():
        job = parse(row.command)
        job.check(trained=False)
        assert job.backbone.name == "pocket2" and job.benchmark.name == "pocket2"
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


def test_what_is_stored_counts_until_the_table_says_otherwise(table, module):
    row = next(table.rows("fastv"))
    assert row.piece is None
    module.results.write_text(row.folder / module.PIECE, module.json.dumps({"identity": row.identity, "seconds": 1.0}))
    assert row.piece is not None and dict(table.jobs("fastv"))[row]
    assert dataclasses.replace(row, words=(*row.words, "batch_size=8")).piece is None
    with pytest.raises(TimeoutError):
        table.run("fastv", until=0.0)
    with pytest.raises(UserError, match="needs the rates of victor first"):
        table.run("victor-16-grey", until=float("inf"))
