"""One backbone for all runs of a process, which none of them can tell from one of its own."""

from __future__ import annotations

import pytest
import torch

from vtc.configuration import parse
from vtc.engine import compressing
from vtc.evaluation import loaded
from vtc.evaluation.loaded import Loaded, let_go, sharing
from vtc.profiling import latency


def job(*words: str):
    return parse(["backbone.device=cpu", *words])


def logits(backbone, method) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = latency.example(backbone, 2, 20)
    with torch.inference_mode(), compressing(backbone, method):
        return backbone.model(**inputs).logits


def alone(one) -> torch.Tensor:
    backbone, method = one.load()
    return logits(backbone, method)


def test_runs_that_follow_each_other_are_as_each_alone() -> None:
    """Trained weights in the decoder and the projector, LoRA in decoder and tower: all of it is taken out again."""
    kept = Loaded()
    jobs = [
        job(f"method={name}", f"tokens={tokens}")
        for name, tokens in (("fastv", 16), ("victor", 16), ("fwd2bot", 16), ("perceiver", 16), ("single_forward", 16))
    ]
    jobs += [job("method=none"), job("method=fastv", "tokens=16")]
    for one in jobs:
        with kept.lent(one) as (backbone, method):
            shared = logits(backbone, method)
        assert torch.equal(shared, alone(one)), one.label
    assert kept.loads == 1


@pytest.mark.parametrize("harm", ["hook", "weight", "module", "forward"])
def test_a_backbone_that_is_not_as_it_was_is_let_go(harm) -> None:
    kept, one = Loaded(), job("method=none")
    with kept.lent(one) as (backbone, _):
        layer = backbone.decoder.layers[0]
        if harm == "hook":
            layer.register_forward_hook(lambda *_: None)
        elif harm == "weight":
            with torch.no_grad():
                layer.mlp.down_proj.weight.mul_(2)
        elif harm == "module":
            layer.mlp.up_proj = torch.nn.Linear(1, 1)
        else:
            layer.forward = lambda *a, **k: None
    with kept.lent(one) as (backbone, method):
        assert torch.equal(logits(backbone, method), alone(one))
    assert kept.loads == 2


def test_other_settings_load_another_one_and_an_error_keeps_it() -> None:
    kept = Loaded()
    with pytest.raises(RuntimeError, match="in the middle"), kept.lent(job("method=fastv", "tokens=16")):
        raise RuntimeError("in the middle")
    with kept.lent(job("method=none")):
        assert kept.loads == 1
    with kept.lent(job("method=none", "backbone.dtype=bf16")) as (backbone, _):
        assert kept.loads == 2 and backbone.dtype is torch.bfloat16


def test_weights_too_large_to_be_set_aside_are_loaded_anew(monkeypatch) -> None:
    monkeypatch.setattr(loaded, "MOST", 1000)
    kept = Loaded()
    with kept.lent(job("method=victor", "tokens=16")):
        pass
    with kept.lent(job("method=none")) as (backbone, method):
        assert torch.equal(logits(backbone, method), alone(job("method=none")))
    assert kept.loads == 2


def test_blocks_within_one_another_share() -> None:
    with sharing() as outer:
        with sharing() as inner, inner.lent(job("method=none")):
            assert inner is outer
        with outer.lent(job("method=none")):
            assert outer.loads == 1
        let_go()
        with outer.lent(job("method=none")):
            assert outer.loads == 2
    with sharing() as later:
        assert later is not outer
