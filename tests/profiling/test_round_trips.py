"""How often a prefill under a method would wait for an accelerator: counted on a CPU, where nothing waits."""

from __future__ import annotations

import pytest
import torch

from vtc.engine import compressing
from vtc.engine.engine import Engine
from vtc.methods import build, make
from vtc.profiling import latency
from vtc.profiling.round_trips import round_trips
from vtc.registry import methods
from vtc.testing import tiny_backbone

# Of two rows with an image each, 8 layers: where the visual tokens are (1), which of them are left (1), and what a
# method looks up itself. A method that only chooses needs no more than 4. PACT asks after each step of its walk over
# centres, in each of 20 halvings.
MOST = {
    "avgpool": 11, "cdpruner": 3, "dart": 4, "divprune": 3, "downsample": 3, "dycoke": 3, "evs": 3,
    "fastervlm": 3, "fastv": 4, "fitprune": 20, "fwd2bot": 6, "kmeans": 19, "llavolta": 10, "m3": 11, "mqt": 15,
    "none": 0, "perceiver": 8, "prumerge": 9, "pyramiddrop": 16, "qformer": 4, "quecc": 9, "random": 3,
    "single_forward": 3, "sparsevlm": 27, "tokenpacker": 4, "tome": 3, "vcc": 20, "victor": 4, "vidcom2": 12,
    "visionzip": 8, "vispruner": 2, "voco": 5,
    "scope": 2, "vtw": 2,
    "fastvid": 23, "hiprune": 5, "holitom": 32, "holov": 3, "mmtok": 3, "pact": 62, "prunevid": 32, "vscan": 13,
    "ppe": 2, "prunesid": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", MOST)
def test_a_prefill_waits_no_oftener_than_stated(name, monkeypatch):
    backbone = tiny_backbone(depth=8)
    inputs = latency.example(backbone, 2, 12)
    offers = make(name, None, backbone.shape).offers()
    tokens = None if name == "none" else min(offers, key=lambda n: abs(n - 5)) or None  # VTW leaves none
    method = build(name, tokens, backbone.shape).eval()
    method.attach(backbone)
    counts, walk = [], Engine._walk

    def counted(engine, *args, **kwargs):
        with round_trips() as waits:
            output = walk(engine, *args, **kwargs)
        counts.append(waits.total)
        return output

    monkeypatch.setattr(Engine, "_walk", counted)
    with torch.inference_mode(), compressing(backbone, method):
        backbone.model(**inputs, use_cache=True)
    assert sum(counts) <= MOST[name]


def test_every_method_is_stated():
    assert set(MOST) >= set(methods._builtin)


def test_what_would_wait_is_counted():
    values = torch.tensor([0.0, 2.0, 3.0])
    with round_trips() as waits:
        values.sum().item()
        bool(values[0] > 0)
        int(values[1])
        values.nonzero()
        values[values > 1]
        values.tolist()
        values.cpu()
        torch.equal(values, values)
        _ = values * 2 + values.sort().values  # these don't
    counts = {name: n for name, n in waits.counts.items() if n}
    assert counts == {
        "item": 1, "__bool__": 1, "__int__": 1, "nonzero": 1, "index by a mask": 1, "tolist": 1, "cpu": 1, "equal": 1,
    }  # fmt: skip
    values.tolist()
    assert waits.total == 8  # nothing is counted once it is closed
