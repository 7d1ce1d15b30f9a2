"""The parts of a run beside the machine's limits: that time is counted where it passes, and work where it is done."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vtc.backbones import random_weights
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.interface import flops
from vtc.methods import build
from vtc.profiling import latency, machine, parts
from vtc.profiling.limits import PARTS, Work, limits, time_parts, work_of
from vtc.settings import ProfileSettings

QUICK = ProfileSettings(batch_size=2, prompt_tokens=32, new_tokens=(2, 4), repeats=3, first_token_repeats=3)
SLEEP = 0.05
CHOICES = {
    "llava": "llava15_7b",
    "llava_next": "llava_next_vicuna_7b",
    "llava_onevision": "llava_onevision_7b",
    "video_llava": "video_llava_7b",
    "qwen2_vl": "qwen2vl_7b",
    "qwen2_5_vl": "qwen25vl_7b",
    "qwen3_vl": "qwen3vl_8b",
    "qwen3_vl_moe": "qwen3vl_30b_a3b",
    "gemma3": "gemma3_4b",
    "qwen3_5": "qwen35_4b",
    "internvl": "internvl3_1b",
    "idefics3": "idefics3_8b",
    "smolvlm": "smolvlm2_2b",
}
WIDTH = {"llava_onevision": 4, "qwen2_vl": 4, "qwen2_5_vl": 4, "internvl": 2}
PLACES = {
    parts.TOWER: lambda b, m: b.vision_tower,
    parts.METHOD: lambda b, m: m,
    parts.PREFILL: lambda b, m: b.decoder.layers[0],
    parts.DECODE: lambda b, m: b.decoder.layers[0],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_sleep_shows_in_its_part_and_nowhere_else(place, backbone, monkeypatch):
    """By a clock on which nothing but the sleep takes time, so that a busy machine says the same."""
    method = build("fastv", 16, backbone.shape, layer=2).eval()
    module = PLACES[place](backbone, method)
    name = "reduce" if place == parts.METHOD else "forward"
    original, now = getattr(module, name), [0.0]

    def slow(*args, **kwargs):
        hidden = args[0] if args else kwargs.get("pixel_values")
        decoding = torch.is_tensor(hidden) and hidden.ndim == 3 and hidden.shape[1] == 1
        if decoding == (place == parts.DECODE):
            now[0] += SLEEP
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, slow)
    monkeypatch.setattr("vtc.profiling.limits.time.perf_counter", lambda: now[0])
    one, many = (latency.example(backbone, rows, QUICK.prompt_tokens) for rows in (1, 2))
    for part, seconds in time_parts(backbone, [method], one, many, QUICK)[0].items():
        assert seconds == pytest.approx([SLEEP if part == place else 0.0] * len(seconds)), part


def test_what_each_part_computes_is_what_arithmetic_says(backbone):
    method, shape = build("none", None, backbone.shape), backbone.shape
    one, many = (latency.example(backbone, rows, 32) for rows in (1, 3))
    work = work_of(backbone, method, one, many)
    patches, vision = 144, shape.vision
    stem = 2.0 * patches * 3 * vision.patch_size**2 * vision.width  # a convolution, no product of matrices
    projector = 2.0 * patches * (vision.width * shape.width + shape.width**2)
    assert work[parts.TOWER].flops == pytest.approx(flops.vision(shape) - stem - projector)
    assert work[parts.PROJECTOR].flops == pytest.approx(projector)
    # Rotary tables are products of positions and frequencies.
    rotary = sum(one.flops * n for one, n in work[parts.PREFILL].products.items() if one.inner == 1)
    assert work[parts.PREFILL].flops - rotary == pytest.approx(flops.uncompressed(shape, 32), rel=1e-6)
    step = 3 * (shape.depth * flops.layer(shape, 1, 144 + 33, causal=False) + flops.head(shape))
    rotary = sum(one.flops * n for one, n in work[parts.DECODE].products.items() if one.inner == 1)
    assert work[parts.DECODE].flops - rotary == pytest.approx(step, rel=1e-6)
    weights = sum(p.numel() for p in backbone.decoder.layers.parameters()) + shape.vocab * shape.width
    cache = 3 * flops.cache_bytes(shape, [144 + 32] * shape.depth, 4)
    assert work[parts.DECODE].bytes == 4 * weights + cache
    assert work[parts.METHOD].flops == work[parts.METHOD].bytes == 0


def test_a_limit_is_the_longer_of_arithmetic_and_memory():
    small, large = machine.Product(1, 10, 10, 10), machine.Product(2, 100, 10, 10)
    here = machine.Machine({small: 1e6, large: 1e7}, bandwidth=1e6, launch=1e-6)
    work = limits_work({small: 3, large: 1}, attention=2e4, size=0)
    assert work.limit(here) == (pytest.approx(3 * 2e3 / 1e6 + 4e4 / 1e7 + 2e4 / 1e7), "compute")
    assert limits_work({small: 1}, 0, 4e3).limit(here) == (pytest.approx(4e-3), "memory")


def limits_work(products, attention, size):
    work = Work(attention=attention, bytes=size)
    work.products.update(products)
    return work


def test_the_machine_is_measured_at_the_shapes_that_occur(monkeypatch):
    monkeypatch.setattr(machine, "LEAST", 1e-3)
    monkeypatch.setattr(machine, "COPIED", 2**22)
    shapes = [machine.Product(1, 64, 64, 64), machine.Product(4, 8, 16, 8)]
    here = machine.measure(torch.device("cpu"), torch.float32, shapes)
    assert set(here.rates) == set(shapes) and here.best_rate == max(here.rates.values())
    assert here.bandwidth > 1e8 and 1e-8 < here.launch < 1e-3


def test_promised_measured_and_realised(backbone, monkeypatch):
    monkeypatch.setattr(machine, "LEAST", 1e-3)
    out = limits(backbone, build("avgpool", 16, backbone.shape, layer=0).eval(), QUICK)
    gain = out["speedup"]
    assert gain["promised"] > 1 and gain["realised"] == pytest.approx(gain["measured"] / gain["promised"])
    assert set(out["parts"]) == {*PARTS, parts.DECODE}
    for part in (*out["parts"].values(), *out["parts_uncompressed"].values()):
        assert part["efficiency"] is None or part["efficiency"] == pytest.approx(part["limit_ms"] / part["ms"])
    assert out["parts"]["prefill"]["flops"] < out["parts_uncompressed"]["prefill"]["flops"]


@pytest.mark.parametrize("family", random_weights.PROCESSORS)
def test_a_choice_of_every_family_is_drawn_with_its_number_of_visual_tokens(family):
    """Its sizes, on two layers and without memory: what counts are the configuration, the processor and the prompt."""
    name = CHOICES[family]
    square = {"internvl": 896, "idefics3": 728, "smolvlm": 768, "llava_onevision": 384}.get(family, 672)
    fixed = [] if family in ("gemma3", "llava", "video_llava") else [f"backbone.image_size={square}"]
    job = parse([f"backbone={name}", "action=profile", "weights=random", "device=cpu", "dtype=fp32", *fixed])
    shallow = {
        "num_hidden_layers": 2,
        "depth": 2,
        "fullatt_block_indexes": [1],
        "deepstack_visual_indexes": [0, 1],
        "full_attention_interval": 2,
        "vocab_size": 512,
    }
    sizes = {
        key: {k: shallow.get(k, v) for k, v in part.items()} if isinstance(part, dict) else part
        for key, part in random_weights.narrowed(job.backbone.sizes, WIDTH.get(family, 8), name).items()
    }
    backbone = job.family.draw(dataclasses.replace(job.backbone, sizes=sizes))
    inputs = latency.example(backbone, 1, 80)
    visual = backbone.visual(inputs["input_ids"])
    assert inputs["input_ids"].shape[1] - int(visual.sum()) == 80
    if family != "video_llava":  # whose shape speaks of a frame, which has a token more
        assert int(visual.sum()) == backbone.shape.visual_tokens > 100
    with torch.inference_mode():
        logits = backbone.model(**inputs, logits_to_keep=1).logits
    assert logits.isfinite().all() and logits.shape[-1] == 512


def test_random_weights_keep_the_shape_and_are_the_same_each_time():
    words = ["action=profile", "backbone=llava15_7b", "weights=random", "profile.width=16", "dtype=fp32", "device=cpu"]
    job = parse(words)
    shape = job.shape
    assert (shape.depth, shape.visual_tokens, shape.width, shape.heads, shape.vision.depth) == (32, 576, 256, 2, 24)
    job.check()
    first, second = job.load()[0], job.load()[0]
    assert first.shape == shape and first.decoder.layers[0].self_attn.head_dim == 128
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "words, message",
    [
        (["profile.width=8"], "profile.width=8: stored weights have the width"),
        (["weights=random", "profile.width=3", "backbone=llava15_7b"], "allows 1, 2, 4, 8, 16"),
        (["weights=random", "profile.width=2"], "backbone=pocket states no sizes"),
        (["weights=random", "quantization=4bit"], "backbone.quantization=4bit: needs stored weights"),
        (["weights=drawn"], "profile.weights=drawn: allowed: stored, random"),
    ],
)
def test_what_random_weights_cannot_be(words, message):
    with pytest.raises(UserError, match=message):
        parse(["action=profile", *words]).check()
