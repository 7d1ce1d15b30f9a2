"""What is timed, in which order, and what is made of it."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.profiling import efficiency, latency, parts
from vtc.profiling.display import rows as rows_of
from vtc.settings import ProfileSettings, from_mapping

QUICK = ProfileSettings(batch_size=2, prompt_tokens=32, new_tokens=(2, 6), repeats=2, first_token_repeats=3)


def test_prompts_have_the_length_of_the_protocol(backbone):
    inputs = latency.example(backbone, 3, 64)
    ids = inputs["input_ids"]
    assert ids.shape[0] == 3 and int((ids[0] == backbone.image_token_id).sum()) == 144
    assert int((ids[0] != backbone.image_token_id).sum()) == 64


def test_models_take_turns_and_generate_every_token(backbone, monkeypatch):
    calls = []
    original = latency.generator

    def spy(b, method, inputs, new_tokens):
        run = original(b, method, inputs, new_tokens)
        return lambda: (calls.append((method.name, new_tokens, inputs["input_ids"].shape[0])), run())

    monkeypatch.setattr(latency, "generator", spy)
    methods = [build("random", 8, backbone.shape), build("none", None, backbone.shape)]
    timings = latency.measure(backbone, methods, QUICK)
    timed = calls[6:]  # behind the calls that warm up
    assert timed[:4] == [("random", 1, 1), ("none", 1, 1), ("none", 1, 1), ("random", 1, 1)]
    timed = timed[6:]  # then the method's own work, in prefills of their own
    assert timed[:4] == [("random", 1, 1), ("none", 1, 1), ("none", 1, 1), ("random", 1, 1)]
    assert [len(t.own) for t in timings] == [3, 3]
    assert timed[6:10] == [("random", 2, 2), ("none", 2, 2), ("random", 6, 2), ("none", 6, 2)]
    assert [len(t.first_token) for t in timings] == [3, 3] and [len(t.generate[6]) for t in timings] == [2, 2]


def test_exactly_as_many_tokens_as_asked(backbone, monkeypatch):
    made = []
    original = backbone.model.generate
    monkeypatch.setattr(backbone.model, "generate", lambda **k: made.append((original(**k), k["input_ids"].shape[1])))
    latency.generator(backbone, build("none", None, backbone.shape), latency.example(backbone, 2, 32), 9)()
    ids, given = made[0]
    assert ids.shape[1] - given == 9


def test_every_gain_goes_to_the_innermost_region():
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0])
    meter = parts.Meter(lambda: next(now))
    inner = meter.around(parts.VISION, lambda: None)
    meter.around(parts.METHOD, lambda: (inner(), inner()))()
    # at 0 the method begins; vision from 1 to 3 and from 7 to 15; the method ends at 31
    assert meter.spent == {parts.METHOD: 1 + 4 + 16, parts.VISION: 2 + 8, parts.DECODER: 0}


def test_a_methods_own_work_is_told_from_the_models(backbone):
    """Of a clock that counts passes of decoder layers: a pass that the method asks for is its own."""
    passes = []

    def count(*_):
        passes.append(1)

    hooks = [layer.register_forward_hook(count) for layer in backbone.decoder.layers]
    try:
        for name, own in (("random", 0), ("fwd2bot", 5)):
            model = copy.deepcopy(backbone)
            method = build(name, 4, model.shape).eval()
            inputs = latency.example(model, 1, 32)
            passes.clear()
            with parts.metering(model, method, lambda: len(passes), decoder=False) as spent, compressing(model, method):
                model.model(**inputs)
            assert spent[parts.METHOD] == own and len(passes) == 5 + own
            assert not {"reduce", "tower"} & set(method.__dict__)
    finally:
        for hook in hooks:
            hook.remove()


def test_numbers_made_of_times():
    own = [(0.001, 0.01), (0.002, 0.01), (0.006, 0.02)]
    timing = latency.Timing(
        first_token=[0.01, 0.03, 0.02, 0.5], own=own, generate={2: [0.3, 0.1, 0.2], 128: [1.46, 1.5, 1.4]}
    )
    assert timing.ttft_ms() == {"median": pytest.approx(25.0), "p95": pytest.approx(500.0)}
    assert (timing.method_ms(), timing.method_share()) == (pytest.approx(2.0), pytest.approx(0.2))
    assert timing.decode_ms() == pytest.approx(1e3 * (1.46 - 0.2) / 126)
    assert timing.throughput(16) == {"2": pytest.approx(160.0), "128": pytest.approx(16 * 128 / 1.46)}


def test_the_section_of_a_result(backbone):
    costs = efficiency(backbone, build("fwd2bot", 4, backbone.shape, rank=4).eval(), QUICK)
    json.dumps(costs, allow_nan=False)
    assert costs["layer_tokens"] == [4] * 5 and costs["visual_tokens"] == 144
    assert costs["storage_bytes_per_image"] == 2 * 4 * 64  # k'·d numbers of 16 bit
    # Two passes: the first over everything, so more than without compression, and an answer that costs a fraction.
    assert costs["flops_ratio"] > 1 and costs["answer_flops"] < 0.5 * costs["prefill_flops_uncompressed"]
    assert costs["extra_parameters"] > 0 and costs["peak_memory_bytes"] is None
    assert costs["kv_cache_bytes"] == (4 + 32) * 5 * 2 * 2 * 8 * 4
    assert costs["kv_cache_bytes_uncompressed"] == (144 + 32) * 5 * 2 * 2 * 8 * 4
    assert set(costs["throughput"]) == {"2", "6"} and costs["speedup"] == costs["speedup_by_tokens"]["6"]
    assert costs["method_share"] > 0.2 and costs["method_flops"] == 0  # its pass is counted with the decoder's
    assert costs["vision_flops"] == costs["vision_flops_uncompressed"]
    assert costs["flops_ratio_with_vision"] < costs["flops_ratio"]
    pruned = efficiency(backbone, build("fastv", 16, backbone.shape, layer=2).eval(), QUICK)
    assert pruned["storage_bytes_per_image"] == 2 * 144 * 64  # it needs the question, so all tokens must be kept
    made = efficiency(backbone, build("perceiver", 4, backbone.shape, depth=1).eval(), QUICK)
    assert made["method_flops"] > 0 and made["extra_parameters"] > 0 and made["storage_bytes_per_image"] == 2 * 4 * 64
    behind = efficiency(backbone, build("voco", 4, backbone.shape).eval(), QUICK)
    assert behind["layer_tokens"] == [148] * 5 and behind["visual_tokens_out"] == 4
    assert behind["storage_bytes_per_image"] == behind["kv_cache_bytes"] * 4 // (4 + 32) // 2  # in 16 bit, not 32
    assert behind["flops_ratio"] > 1 and behind["answer_flops"] < 0.3 * behind["prefill_flops"]
    asked = efficiency(backbone, build("cdpruner", 16, backbone.shape).eval(), QUICK)
    assert asked["storage_bytes_per_image"] == 2 * 144 * 64 and asked["answer_flops"] == asked["prefill_flops"]
    assert pruned["answer_flops"] == pruned["prefill_flops"] < pruned["prefill_flops_uncompressed"]


def test_no_compression_is_the_measure_of_itself(backbone):
    costs = efficiency(backbone, build("none", None, backbone.shape), QUICK)
    assert costs["flops_ratio"] == pytest.approx(1.0) and costs["speedup"] == 1.0 and costs["extra_parameters"] == 0
    assert len(rows_of(costs)) >= 7


def test_a_protocol_of_ones_own():
    given = {"batch_size": 4, "repeats": 2}
    assert from_mapping(ProfileSettings, given, "profile") == ProfileSettings(batch_size=4, repeats=2)
    with pytest.raises(UserError, match="profile=batchsize: unknown; .*'batch_size'"):
        from_mapping(ProfileSettings, {"batchsize": 4}, "profile")


@pytest.mark.parametrize("repeats", [{"repeats": 0}, {"repeats": 0, "first_token_repeats": 0}])
def test_what_is_not_timed_is_none_and_flops_are_the_same(backbone, repeats, monkeypatch):
    """`costs=quick` and `costs=none`: no batch is run, and without any time no prefill but the counted one."""
    from vtc.profiling import display

    method = build("random", 16, backbone.shape).eval()
    whole, calls = efficiency(backbone, method, QUICK), []
    generate = latency.generate
    monkeypatch.setattr(latency, "generate", lambda b, i, n: calls.append(len(i["input_ids"])) or generate(b, i, n))
    costs = efficiency(backbone, method, dataclasses.replace(QUICK, **repeats))
    assert set(calls) == {1} and (len(calls) == 2) == ("first_token_repeats" in repeats)
    assert costs["throughput"] == {} and costs["speedup"] is None and costs["decode_ms_per_token"] is None
    assert (costs["ttft_speedup"] is None) == (costs["ttft_ms"] is None) == ("first_token_repeats" in repeats)
    for key in ("prefill_flops", "flops_ratio", "flops_ratio_with_vision", "kv_cache_bytes", "layer_tokens"):
        assert costs[key] == whole[key]
    shown = {row[0] for row in display.rows(costs)}
    assert not any("throughput" in name or "decoding" in name for name in shown)
    assert ("TTFT, one row" in shown) == ("first_token_repeats" not in repeats)
    json.dumps(costs, allow_nan=False)
