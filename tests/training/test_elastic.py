"""Elastic budgets: a step's loss is the mean over the budgets that the method names, the same wherever it runs."""

from __future__ import annotations

import json

import pytest
import torch
from method_cases import pocket

from vtc.configuration import parse
from vtc.job import _shipped_name
from vtc.methods import build
from vtc.pocket.source import PocketSource
from vtc.settings import DataSettings
from vtc.training.method_stage import MethodStage

DATA = DataSettings(batch_size=3, questions=2, weights={"existence": 1.0}, twins=True)


def stage_of(name: str, contrastive: float = 0.2, seed: int = 0, tokens: int | None = None, **options) -> MethodStage:
    backbone = pocket()
    torch.manual_seed(0)
    method = build(name, tokens, backbone.shape, **options)
    source = PocketSource("stage", DATA, 0, embed=contrastive > 0)
    train = ["method", "projector", "decoder"]
    return MethodStage("stage", backbone, method, train, source, contrastive=contrastive, seed=seed)


@pytest.mark.parametrize(("tokens", "scales"), [(None, [1, 16, 144]), (16, [4, 36])])
def test_m3s_loss_and_gradient_are_the_mean_over_the_scales(tokens: int | None, scales: list[int]) -> None:
    """Eq. 2, each scale trained by average pooling to that many tokens."""
    stage = stage_of("m3", tokens=tokens if tokens in scales else None, scales=scales)
    batch = stage.batch(0)
    stage.start_step(0, 4)
    terms = stage.losses(batch)
    assert set(terms) == {"answer", "contrastive"}
    sum(terms.values()).backward()
    found = {n: p.grad.clone() for n, p in stage.named_parameters()}
    losses: dict[str, list] = {"answer": [], "contrastive": []}
    stage.backbone.model.zero_grad()
    for scale in scales:
        pooling = build("avgpool", scale, stage.backbone.shape)
        alone = MethodStage("x", stage.backbone, pooling, ["projector", "decoder"], stage.source, contrastive=0.2)
        each = alone.losses(batch)
        (sum(each.values()) / len(scales)).backward()
        for name, loss in each.items():
            losses[name].append(loss.item())
    for name, values in losses.items():
        assert len({round(v, 5) for v in values}) == len(scales), "the scales must differ for the mean to show"
        assert terms[name].item() == pytest.approx(sum(values) / len(scales), abs=1e-5)
    for name, parameter in stage.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-3)


def test_the_methods_own_budget_is_restored() -> None:
    stage = stage_of("m3", tokens=16)
    stage.start_step(0, 4)
    stage.losses(stage.batch(0))
    assert stage.method.tokens == 16
    stage.terms = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage.losses(stage.batch(0))
    assert stage.method.tokens == 16


def test_what_is_drawn_is_a_function_of_seed_stage_and_step() -> None:
    """Whatever ran before in this process, and whatever torch's generator did: a resumed run and another rank agree."""
    options = {"scales_per_step": 2}

    def drawn(stage: MethodStage, steps) -> list:
        out = []
        for step in steps:
            stage.start_step(step, 40)
            torch.rand(1)
            out.append(stage.budgets)
        return out

    first = drawn(stage_of("m3", **options), range(40))
    torch.manual_seed(5)
    assert drawn(stage_of("m3", **options), range(20, 40)) == first[20:]
    assert drawn(stage_of("m3", seed=1, **options), range(40)) != first
    assert len({tuple(sorted(pair)) for pair in first}) > 5


def test_other_methods_train_at_their_own_budget() -> None:
    stage = stage_of("victor", tokens=4)
    stage.start_step(0, 4)
    assert stage.budgets is None
    batch = stage.batch(0)
    torch.testing.assert_close(stage.losses(batch), stage.terms(batch))


@pytest.mark.parametrize("name", ["m3", "mqt"])
def test_one_checkpoint_fits_every_budget_and_needs_none_to_be_trained(name: str, tmp_path) -> None:
    from vtc.training import train

    stage = "training.stages=[{name: s, train: [method, projector, decoder], steps: 1, lr: 1e-3}]"
    data = ["training.data.batch_size=2", "training.data.questions=2"]
    folder = train(parse(["action=train", f"method={name}", f"training.folder={tmp_path}", stage, *data]))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokens"] is None and manifest["method"] == name
    for tokens in (4, 36):
        job = parse([f"method={name}", f"tokens={tokens}", f"checkpoint={folder}"])
        assert job.compressor.tokens == tokens and job.weights == folder


def test_shipped_weights_are_looked_for_by_kind() -> None:
    shape = pocket().shape
    names = {"m3": "m3-elastic", "mqt": "mqt-elastic", "llavolta": "llavolta-four", "victor": "victor-16"}
    for name, folder in names.items():
        assert _shipped_name(name, build(name, 16, shape)) == folder
