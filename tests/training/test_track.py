"""Trackers: TensorBoard's file holds what the log holds; what can't be had is refused before anything begins."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from vtc import trackers
from vtc.errors import UserError
from vtc.settings import StageSettings
from vtc.training import track
from vtc.training.loop import train_stage
from vtc.training.stage import Stage


class Line(Stage):
    name = "line"

    def __init__(self):
        self.slope = nn.Parameter(torch.zeros(1))

    def named_parameters(self):
        yield "slope", self.slope

    def batch(self, step, part):
        return torch.full((4,), float(step + 1))[part.of(4)]

    def losses(self, batch):
        return {"fit": (self.slope * batch - 2 * batch).square().mean()}

    def validate(self):
        return {"slope": self.slope.item()}


@pytest.fixture
def installed(monkeypatch):
    """Which packages there are, whatever is installed here."""
    there = set()
    real = importlib.util.find_spec
    found = lambda name: (object() if name in there else None) if name in trackers.TRACKERS else real(name)  # noqa: E731
    monkeypatch.setattr(trackers, "find_spec", found)
    return there


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_named_before_anything_begins(tmp_path, installed, name):
    with pytest.raises(UserError, match=f"training.log={name}.*pip install {name}"):
        train_stage(Line(), StageSettings("line", steps=2, lr=0.1), tmp_path / "stage", quiet=True, log=[name])
    assert not (tmp_path / "stage").exists()
    installed.add(name)
    trackers.check([name], "training.log")


def test_a_recipe_refuses_it_before_its_model_is_built(installed):
    from vtc.configuration import parse
    from vtc.training import train

    with pytest.raises(UserError, match="pip install tensorboard"):
        train(parse(["action=train", "method=fwd2bot", "tokens=4", "training.log=[tensorboard]"]))


def test_unknown_trackers_and_words_instead_of_lists():
    with pytest.raises(UserError, match=r"training.log.*mlflow.*tensorboard, trackio, wandb"):
        trackers.check(["mlflow"], "training.log")
    with pytest.raises(UserError, match=r"training.log=\[wandb\]"):
        trackers.check("wandb", "training.log")


class Recorded:
    """Stands in accelerate's place: what it is told."""

    def __init__(self, broken=False):
        self.broken, self.begun, self.told, self.trackers = broken, None, [], [self]
        self.finished = 0

    def init_trackers(self, *given):
        if self.broken:
            raise ValueError("no\naccount")
        self.begun = given

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.finished += 1


def test_each_service_gets_its_own_options(tmp_path):
    told = Recorded()
    tracker = track.Tracker(told, ["tensorboard", "wandb"], tmp_path / "run" / "adapt", {"lr": 0.1, "plan": {"a": 1}})
    tracker.log({"loss": 1.0}, 3)
    tracker.finish()
    project, config, options = told.begun
    assert (project, config) == ("vtc", {"lr": 0.1, "plan": "{'a': 1}"})
    assert options == {"wandb": {"name": "run/adapt", "dir": str(tmp_path / "run" / "adapt")}}
    assert told.told == [(3, {"loss": 1.0})] and told.finished == 1


def test_a_service_that_refuses_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="^training.log=wandb: no account$"):
        track.Tracker(Recorded(broken=True), ["wandb"], tmp_path, {})


def test_no_trackers_nothing_is_begun(tmp_path):
    told = Recorded()
    tracker = track.Tracker(told, [], tmp_path, {})
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert told.begun is None and not told.told and not told.finished


def test_tensorboard_holds_what_the_log_holds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = StageSettings("line", steps=6, lr=0.1, log_every=2, validate_every=3)
    train_stage(Line(), plan, tmp_path, quiet=True, log=["tensorboard"])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*") if path.parent.name == "vtc"}
    events = EventAccumulator(str(folder))
    events.Reload()
    for key in ("fit", "lr"):
        told = [(e.step, pytest.approx(e.value, rel=1e-5)) for e in events.Scalars(key)]
        assert told == [(line["step"], line[key]) for line in lines if key in line] and len(told) == 3
    assert [e.step for e in events.Scalars("slope")] == [3, 6]
