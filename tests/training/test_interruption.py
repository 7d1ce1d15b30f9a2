"""Ctrl-C and SIGTERM: no step that was finished is lost, and the stage ends where one that was never stopped does."""

import os
import signal

import pytest
import torch
from toy import Toy, plan, together

from vtc.training.interruption import Interruption
from vtc.training.loop import train_stage

SETTINGS = {"steps": 8, "checkpoint_every": 100}


@pytest.fixture(autouse=True)
def interruptible():
    """A suite that a shell has started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(Toy):
    """Gets a signal while it loads the batch of a step.

    Args:
        times: how often; after the first a training goes on to the end of its step.
    """

    def __init__(self, at, number, times=1):
        super().__init__()
        self.at, self.number, self.times = at, number, times

    def batch(self, step, part):
        if step == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return super().batch(step, part)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_step_is_finished_and_stored(tmp_path, capfd, number, at):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole = Toy()
    train_stage(whole, plan(**SETTINGS), tmp_path / "whole", quiet=True)
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name):
        train_stage(Interrupted(at, number), plan(**SETTINGS), tmp_path / "parts")
    told = capfd.readouterr()
    assert f"toy: stopped after step {at + 1} of 8, whose state is stored" in told.out.splitlines()
    assert told.err.splitlines() == ["vtc: stops after this step and stores its state; once more ends at once"]
    assert [path.name for path in (tmp_path / "parts/state").iterdir()] == [f"step-{at + 1:06d}"]
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    resumed = Toy()
    train_stage(resumed, plan(**SETTINGS), tmp_path / "parts", quiet=True)
    assert resumed.seen == list(range(at + 1, 8))
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_second_one_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_stage(Interrupted(3, signal.SIGINT, times=2), plan(**SETTINGS), tmp_path, quiet=True)
    assert not (tmp_path / "state").exists()


def test_what_a_process_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.noted
    finally:
        signal.signal(signal.SIGINT, before)


def _one_of_two(folder):
    stage = Interrupted(2 if os.environ["RANK"] == "1" else None, signal.SIGTERM)
    try:
        train_stage(stage, plan(**SETTINGS), folder, quiet=True)
    except KeyboardInterrupt:
        return
    raise AssertionError("went on")


def test_all_processes_stop_after_the_same_step(tmp_path):
    together(_one_of_two, tmp_path)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000003"]
