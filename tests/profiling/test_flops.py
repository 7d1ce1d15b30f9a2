"""FLOPs by arithmetic against torch's counter, on a backbone with grouped keys and a method of every kind."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from method_cases import FIRST, Case, attaches

from vtc import registry, results, shipped
from vtc.budget import Budget, compression, relative_flops
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import BackboneShape, OwnPass, Resampler, TokenPruner, TowerShape, flops
from vtc.methods import build, make
from vtc.profiling import latency, parts
from vtc.profiling.counter import flop_counter
from vtc.profiling.recorder import record_calls
from vtc.profiling.run import count_passes
from vtc.testing import tiny_backbone
from vtc.testing.tiny_qwen import tiny_qwen3_5

METHODS = [
    ("none", None, {}),
    ("downsample", 16, {}),
    ("tome", 100, {}),
    ("single_forward", 4, {"rank": 4}),
    ("kmeans", 9, {"layer": 0}),
    ("cdpruner", 9, {}),
    ("pyramiddrop", 9, {}),
    ("random", 16, {"layer": 0}),
    ("avgpool", 9, {"layer": 0}),
    ("fastv", 16, {"layer": 2}),
    ("llavolta", 36, {"layer": 2}),
    ("victor", 8, {"layer": 3}),
    ("fwd2bot", 4, {"rank": 4}),
]

VISION = {"downsample": -1, "tome": -1, "single_forward": -1}  # it or the projector does less
COMPUTES = ("kmeans", "cdpruner", "pyramiddrop", "fastv", "tome")  # products of matrices of their own


def counted(run, counter=None) -> float:
    with torch.no_grad(), counter or flop_counter() as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name, tokens, options", METHODS)
def test_a_prefill_costs_what_torch_counts(name, tokens, options, backbone):
    backbone = copy.deepcopy(backbone)  # adapters stay in it
    method = build(name, tokens, backbone.shape, **options).eval()
    inputs = latency.example(backbone, 1, 40)
    method.attach(backbone)
    counter = flop_counter()
    with (
        parts.metering(backbone, method, counter.get_total_flops) as spent,
        compressing(backbone, method),
        record_calls(backbone) as calls,
    ):
        truth = counted(lambda: backbone.model(**inputs, logits_to_keep=1), counter)
    decoder = flops.total(backbone.shape, calls, causal=False)
    assert spent[parts.DECODER] == pytest.approx(decoder, rel=1e-9)
    vision = spent[parts.TOWER] + spent[parts.PROJECTOR]
    ours = decoder + flops.head(backbone.shape) + vision + spent[parts.METHOD]
    assert ours == pytest.approx(truth, rel=1e-9)
    assert np.sign(vision - flops.vision(backbone.shape)) == VISION.get(name, 0)
    assert (spent[parts.METHOD] > 0) == (name in COMPUTES)


def test_a_decoding_step_costs_what_torch_counts(backbone):
    method, shape = build("fastv", 16, backbone.shape, layer=2).eval(), backbone.shape
    inputs = latency.example(backbone, 1, 40)
    token, mask = inputs["input_ids"][:, -1:], torch.ones(1, 144 + 40 + 1, dtype=torch.long)
    with torch.no_grad(), compressing(backbone, method):
        cache = backbone.model(**inputs, use_cache=True).past_key_values
        with record_calls(backbone) as calls:
            truth = counted(lambda: backbone.model(input_ids=token, attention_mask=mask, past_key_values=cache))
    full, kept = 144 + 40 + 1, 16 + 40 + 1
    assert [(c.queries, c.keys) for c in calls] == [(1, full), (1, full), (1, kept), (1, kept), (1, kept)]
    assert flops.total(shape, calls, causal=False) + flops.head(shape) == pytest.approx(truth, rel=1e-9)


def test_the_prefills_parts_add_up_by_hand(backbone):
    s = backbone.shape
    n, head = 50, 64 // 8
    projections = 2 * n * (64 * 64 + 2 * 64 * 2 * head + 64 * 64)
    attention, mlp = 2 * 2 * n * n * 64, 2 * n * 3 * 64 * 112
    assert flops.layer(s, n, causal=False) == projections + attention + mlp
    assert flops.layer(s, n) == projections + attention / 2 + mlp
    assert flops.head(s, 3) == 2 * 3 * 64 * 160
    assert flops.uncompressed(s, 40) == 5 * flops.layer(s, 184) + flops.head(s)


# Methods whose own arithmetic depends on the image or the question: what they announce is the most it can be.
BOUNDS = ("kmeans", "sparsevlm", "vcc", "quecc")


def agrees(backbone, method, text: int) -> None:
    """What a method announces is what runs: the decoder's passes one by one, and all FLOPs within 1 %."""
    shape, inputs = backbone.shape, latency.example(backbone, 1, text)
    assert int((~backbone.visual(inputs["input_ids"][0])).sum()) == text
    method.requires_grad_(False).attach(backbone)
    counter = flop_counter()
    with (
        torch.no_grad(),
        counter,
        parts.metering(backbone, method, counter.get_total_flops) as spent,
        compressing(backbone, method),
        record_calls(backbone) as calls,
    ):
        backbone.model(**inputs, logits_to_keep=1)
    announced = method.calls(text)
    own = len(announced) - shape.depth
    if method.name != "quecc":  # its own pass is of the words behind the image, fewer than all
        assert calls == announced
    assert calls[own:] == announced[own:]
    counted = flops.total(shape, calls) + flops.head(shape) + spent[parts.METHOD]
    stated = relative_flops(method, text) * flops.uncompressed(shape, text)
    assert counted <= 1.01 * stated
    assert method.name.split("+")[-1] in BOUNDS or counted == pytest.approx(stated, rel=0.01)


@pytest.mark.parametrize(
    "case", [*FIRST, Case("fwd2bot", 3, {"adapters": "none"}), Case("fwd2bot", 3, {"rank": 2})], ids=str
)
def test_what_a_method_announces_is_what_runs(case) -> None:
    backbone = tiny_backbone()
    agrees(backbone, case.make(backbone, case.tokens).eval(), 40)


@pytest.mark.parametrize(
    "name", ["none", "fastv", "dart", "vcc", "pact", "pyramiddrop", "victor", "fwd2bot", "avgpool"]
)
def test_it_is_so_where_most_layers_have_linear_attention(name: str) -> None:
    backbone = tiny_qwen3_5()
    case = next(case for case in FIRST if case.name == name)
    agrees(backbone, case.make(backbone, case.tokens).eval(), 40)


@pytest.mark.parametrize("name", sorted(registry.methods._builtin))
def test_committed_results_were_counted_as_the_formula_says(name: str) -> None:
    """On pocket, whose vocabulary has other words for Fwd2Bot's prompt, and which is narrow for what rates tokens."""
    for path in results.find([shipped.root() / "benchmarks/results"]):
        result = results.load(path)
        costs, sizes = result.get("efficiency") or {}, dict(result["backbone"]["shape"])
        if result["method"]["name"] != name or "method_flops" not in costs:
            continue
        fields = {k: v for k, v in sizes.items() if k in BackboneShape.__dataclass_fields__} | {"name": "pocket"}
        shape = BackboneShape(**fields | {"grid": tuple(sizes["grid"]), "vision": TowerShape(**sizes["vision"])})
        method = make(name, result["method"]["tokens"], shape, **result["method"]["options"])
        stated = relative_flops(method, costs["protocol"]["prompt_tokens"])
        assert costs["flops_ratio"] == pytest.approx(stated, rel=0.01 if name not in ("kmeans", "quecc") else 0.04)


class Reader(TokenPruner):
    """Has the LLM read an image to rate it, without any training, so that a composition may have it."""

    name = "reader"

    def score(self, tokens, context):
        return tokens.per_token(context.run_decoder(tokens.visual_hidden(), tokens.images[1]).norm(dim=-1))

    def own_passes(self, visual, text):
        return [OwnPass(visual, 0)]


def test_compositions_count_the_passes_of_their_parts(monkeypatch) -> None:
    monkeypatch.setitem(registry.methods._registered, "reader", Reader)
    backbone = tiny_backbone()
    for name, options, read in (("reader", {}, 16), ("divprune+reader", {"divprune": {"tokens": 9}}, 9)):
        method = build(name, 4, backbone.shape, **options).eval()
        assert [c.queries for c in method.calls(40)] == [read] * 4 + [44] * 4
        agrees(backbone, method, 40)
        assert compression(method) == 16 / (read + 4) and compression(method, beforehand=True) == 4
        assert relative_flops(method, beforehand=True) < 0.98 * relative_flops(method)


class Looking(Resampler):
    """Makes as many tokens as asked for by a map of its own, and looks at values on the way."""

    name = "looking"

    def make_parameters(self):
        self.map = torch.nn.Linear(self.shape.width, self.shape.width, bias=False)

    def forward(self, features, context):
        return self.map(features)[:, : self.tokens] * float(features.isfinite().all())


def test_a_network_that_looks_at_values_is_counted_too() -> None:
    backbone = tiny_backbone()
    method = Looking(4, backbone.shape).build().eval()
    assert method.own_flops(40) == 2 * 16 * 32**2
    agrees(backbone, method, 40)


def test_an_answer_that_needs_the_question_has_every_pass(backbone) -> None:
    method = build("quecc", 4, backbone.shape).eval()
    ran = count_passes(backbone, method, latency.example(backbone, 1, 40))
    assert len(ran.prefill) == 2 * backbone.shape.depth and method.answering_calls(ran.prefill, 40) == ran.prefill
    assert relative_flops(method, beforehand=True) == relative_flops(method)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*registry.methods._builtin, "divprune+fastv", "visionzip+pyramiddrop"])
def test_flops_are_met_at_the_depth_of_a_7b_model(name: str, wide) -> None:
    """LLaVA-1.5 7B at an eighth of its width, 64 text tokens: `flops=0.4` costs 0.4, or the nearest offer below."""
    shape = wide.shape
    try:
        method = make(name, Budget(flops=0.4).resolve, shape)
    except UserError as error:  # none, and those that run the image through the decoder
        # VTW's cost is one number, that of its layer.
        reasons = {"vtw": "vtw on wide reaches 0.546 to 0.546, with 0 tokens", "ppe": "ppe leaves every token"}
        reasons |= dict.fromkeys(("none", "fwd2bot", "voco"), "reaches 1")
        assert name in reasons and reasons[name] in str(error)
        method = make(name, None if name in ("none", "vtw", "ppe") else 16, shape)
    more = [n for n in method.offers() if n > (method.tokens or 0)][:1]
    if method.tokens and relative_flops(method) < 0.4 and more:
        assert relative_flops(method.with_tokens(more[0])) > 0.4
    agrees(copy.deepcopy(wide) if attaches(name) else wide, method.build().eval(), 64)


def test_recording_leaves_nothing_behind(backbone):
    before = [len(layer._forward_pre_hooks) for layer in backbone.decoder.layers]
    with pytest.raises(RuntimeError), record_calls(backbone):
        raise RuntimeError
    assert [len(layer._forward_pre_hooks) for layer in backbone.decoder.layers] == before


def test_profiling_needs_no_harness():
    modules = "vtc.profiling.run, vtc.profiling.latency, vtc.profiling.recorder"
    code = f"import sys, {modules}; assert 'lmms_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_attention_on_a_cpu_counts_in_every_version_of_torch():
    q = torch.randn(2, 3, 10, 8, requires_grad=True)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    # two products forward; backward four, and the scores once more
    assert counter.get_total_flops() == (2 + 5) * 2 * 2 * 3 * 10 * 10 * 8
