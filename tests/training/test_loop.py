"""The training loop: resuming ends where never stopping does, bit for bit."""

import json

import pytest
import torch
from torch import nn

from vtc.errors import UserError
from vtc.settings import StageSettings
from vtc.training import log
from vtc.training.loop import train_stage
from vtc.training.optim import build_optimizers, build_schedulers
from vtc.training.recipes import flops_per_step
from vtc.training.stage import Stage


class Toy(Stage):
    """A small regression whose data is a function of the step."""

    name = "toy"

    def __init__(self, stop_at=None):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.stop_at = stop_at
        self.seen = []

    def named_parameters(self):
        yield from self.net.named_parameters(prefix="net")

    def batch(self, step, part):
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(step)
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))[part.of(16)]

    def losses(self, batch):
        return {"fit": (self.net(batch) - batch[:, :2].sin()).square().mean()}

    def validate(self):
        return {"right": 1.0}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("killed", [3, 4, 11, 19])
def test_killed_and_resumed_is_never_killed(tmp_path, optimizer, killed):
    plan = StageSettings("toy", steps=20, lr=1e-2, optimizer=optimizer, checkpoint_every=4, log_every=5)
    whole = Toy()
    train_stage(whole, plan, tmp_path / "whole", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train_stage(Toy(stop_at=killed), plan, tmp_path / "parts", quiet=True)
    resumed = Toy()
    report = train_stage(resumed, plan, tmp_path / "parts", quiet=True)
    assert resumed.seen[0] == killed // 4 * 4, "resumed from another step than the last checkpoint"
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert report["validation"] == {"right": 1.0}


def test_log_has_losses_rates_and_validation(tmp_path):
    train_stage(Toy(), StageSettings("toy", steps=10, lr=1e-2, log_every=5, validate_every=5), tmp_path, quiet=True)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "fit" in e] == [5, 10]
    assert [e["step"] for e in entries if "validation" in e] == [5, 10]


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, [10]), (0.0, range(1, 11))])
def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path, capsys, monkeypatch, seconds, steps):
    monkeypatch.setattr(log, "PLAIN", seconds)
    train_stage(Toy(), StageSettings("toy", steps=10, lr=1e-2), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"toy {step}/10" for step in steps]
    assert all("fit 0." in line and line.endswith(" left") for line in lines)


@pytest.mark.parametrize(("scale", "number"), [(float("nan"), "fit nan"), (float("inf"), "fit inf"), (1e30, "norm")])
def test_a_loss_that_is_not_finite_ends_the_stage(tmp_path, scale, number):
    """In a line, with the state of before; not hours later with weights that nobody can load."""

    class Broken(Toy):
        def losses(self, batch):
            loss = super().losses(batch)["fit"]
            return {"fit": loss * scale * (1e30 if number == "norm" else 1) if self.seen[-1] == 3 else loss}

    settings = StageSettings("toy", steps=10, lr=1e-2, checkpoint_every=2)
    with pytest.raises(UserError, match=f"step 4 of stage 'toy' .*isn't finite .*{number}") as error:
        train_stage(Broken(), settings, tmp_path, quiet=True)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000002"]


def test_schedule_shapes():
    parameter = nn.Parameter(torch.zeros(2, 2))
    for decay in ("cosine", "linear", "constant"):
        settings = StageSettings("x", 1.0, steps=100, warmup=0.1, decay=decay, cooldown=0.5)
        optimizers = build_optimizers([("a.weight", parameter)], settings)
        (scheduler,) = build_schedulers(optimizers, settings, 100)
        rates = []
        for _ in range(100):
            rates.append(scheduler.get_last_lr()[0])
            optimizers[0].step()
            scheduler.step()
        assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
        assert {"cosine": rates[55] == pytest.approx(0.5, abs=0.02), "linear": rates[50] == 1.0, "constant": True}[
            decay
        ]
        assert rates[-1] == 1.0 if decay == "constant" else rates[-1] < 0.05


def test_muon_gets_hidden_matrices_only():
    names = [
        "layers.0.q_proj.weight",
        "embed_tokens.weight",
        "norm.weight",
        "q_proj.lora_A.compress.weight",
        "registers",
    ]
    shapes = [(4, 4), (9, 4), (4,), (2, 4), (3, 4)]
    parameters = [(n, nn.Parameter(torch.zeros(s))) for n, s in zip(names, shapes, strict=True)]
    muon, adam = build_optimizers(parameters, StageSettings("x", 1e-2, steps=1, optimizer="muon"))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adam.param_groups[0]["params"]) == 4
    with pytest.raises(UserError, match="optimizer=sgd"):
        build_optimizers(parameters, StageSettings("x", 1e-2, steps=1, optimizer="sgd"))


def test_the_flops_of_a_step_are_those_of_its_products() -> None:
    """Forward, the gradients of both weights, and that of what lies between them; nothing is left behind."""
    toy = Toy()
    first, second = 2 * 16 * 4 * 8, 2 * 16 * 8 * 2
    assert flops_per_step(toy, 10) == flops_per_step(toy, 10, accumulate=2) == 2 * first + 3 * second
    assert all(parameter.grad is None for _, parameter in toy.named_parameters())
