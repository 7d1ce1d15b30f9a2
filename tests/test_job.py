"""From a job to a model; mistakes are found before any weights are loaded."""

from __future__ import annotations

import pytest
import torch

from vtc.budget import Budget
from vtc.configuration import parse
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.job import Job, weights_folder
from vtc.settings import BackboneSettings, MethodSettings, from_mapping
from vtc.testing import batch, tiny_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("tiny")
    tiny = tiny_backbone(depth=8)
    tiny.model.save_pretrained(path)
    tiny.processor.save_pretrained(path)
    return {"name": "llava15_7b", "pretrained": str(path), "dtype": "float32", "device": "cpu"}


def job(cfg: dict) -> Job:
    method = dict(cfg["method"])
    budget = {key: value for key, value in cfg.items() if key not in ("backbone", "method", "checkpoint")}
    return Job(
        backbone=from_mapping(BackboneSettings, cfg["backbone"]),
        method=MethodSettings(method.pop("name"), method),
        budget=Budget(**budget),
        checkpoint=cfg.get("checkpoint", "auto"),
    )


def test_a_job_says_tokens_and_layers(backbone: dict) -> None:
    made = job({"backbone": backbone, "method": {"name": "fastv", "layer": 16}, "ratio": 0.25})
    assert made.compressor.tokens == 4 and made.compressor.layers() == {4} and made.weights is None
    made = job({"backbone": backbone, "method": {"name": "fastv", "layer": 6, "layer_scale": "none"}, "tokens": 3})
    assert made.compressor.layers() == {6}


def test_assembled_it_runs(backbone: dict) -> None:
    model, method = job({"backbone": backbone, "method": {"name": "avgpool"}, "tokens": 4}).load()
    with torch.no_grad(), compressing(model, method) as engine:
        model.model(**batch(model))
    assert engine.report.tokens_out == [4, 4, 4] and not method.training


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": {"name": "fastvv"}}, "method=fastvv: unknown; .*did you mean 'fastv'"),
        (
            {"method": {"name": "fastv", "layr": 2}},
            "method.layr=2: fastv has no such option; allowed: layer, .*did you mean 'layer'",
        ),
        ({"method": {"name": "none", "layer": 2}}, "none takes no options"),
        ({"method": {"name": "fastv", "layer": 40}}, "method.layer=40: this decoder has 8 layers"),
        ({"tokens": 17}, "tokens=17: fastv on llava15_7b offers 1 to 16"),
        ({"tokens": 4, "ratio": 0.5}, "give only one"),
        ({"method": {"name": "victor"}, "tokens": 4}, "needs training, .*action=train"),
        ({"method": {"name": "llavolta", "scheme": "for"}}, "schedule=for: unknown"),
    ],
)
def test_mistakes_are_answered_in_one_line(backbone: dict, change: dict, text: str) -> None:
    cfg = {"backbone": backbone, "method": {"name": "fastv"}} | change
    with pytest.raises(UserError, match=text) as error:
        job(cfg).check()
    assert "\n" not in str(error.value)


def test_an_unknown_backbone_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="backbone=poket: .*did you mean 'pocket'"):
        parse(["backbone=poket"])


def test_checkpoints_go_with_their_backbone_method_budget_and_options(backbone: dict, tmp_path) -> None:
    from vtc import checkpoint

    cfg = {"backbone": backbone, "method": {"name": "victor"}, "tokens": 4}
    model, method = job(cfg).load(trained=False)
    with torch.no_grad():
        method.registers.fill_(0.25)
    manifest = {"backbone": model.name, "method": "victor", "tokens": 4, "options": {"name": "victor"}}
    folder = checkpoint.save(tmp_path / "v4", model, method, manifest, [])
    given = cfg | {"checkpoint": str(folder)}
    assert weights_folder(job(given)) == folder and job(given).weights == folder
    assert (job(given).load()[1].registers == 0.25).all()
    for change, text in (
        ({"tokens": 5}, "trained for tokens=4"),
        ({"method": {"name": "fwd2bot"}}, "trained for method=victor"),
        ({"method": {"name": "victor", "layer": 5}}, "was trained for method.layer=3, not method.layer=5"),
        ({"backbone": backbone | {"name": "llava15_13b"}}, "trained for backbone=llava15_7b"),
        ({"checkpoint": str(tmp_path)}, "no manifest.json"),
    ):
        with pytest.raises(UserError, match=text):
            job(given | change).check()
    assert weights_folder(job(cfg | {"checkpoint": None})) is None
