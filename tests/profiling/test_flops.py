"""FLOPs by arithmetic against torch's counter, on a backbone with grouped keys and a method of every kind."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtc.backbones.llava import Pocket
from vtc.engine import compressing
from vtc.methods import build
from vtc.pocket.model import build_processor, vocabulary_index
from vtc.profiling import flops, latency
from vtc.profiling.recorder import recorded

METHODS = [
    ("none", None, {}),
    ("random", 16, {"layer": 0}),
    ("avgpool", 9, {"layer": 0}),
    ("fastv", 16, {"layer": 2}),
    ("llavolta", 36, {"layer": 2}),
    ("victor", 8, {"layer": 3}),
    ("fwd2bot", 4, {"rank": 4}),
]


@pytest.fixture(scope="module")
def backbone():
    """96-pixel images, 144 visual tokens, heads that share keys, sizes that no two of are equal."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=96, patch_size=8
        ),
        text_config=LlamaConfig(
            vocab_size=160, hidden_size=64, intermediate_size=112, num_hidden_layers=5, num_attention_heads=8,
            num_key_value_heads=2, max_position_embeddings=512,
        ),
        image_token_index=vocabulary_index()["<image>"],
        image_seq_length=144,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return Pocket.wrap(LlavaForConditionalGeneration(config).eval(), build_processor(), "tiny")


def counted(run) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name, tokens, options", METHODS)
def test_a_prefill_costs_what_torch_counts(name, tokens, options, backbone):
    method = build(name, tokens, backbone.shape, **options).eval()
    inputs = latency.example(backbone, 1, 40)
    method.attach(backbone)
    with compressing(backbone, method), recorded(backbone) as calls:
        truth = counted(lambda: backbone.model(**inputs, logits_to_keep=1))
    ours = flops.total(backbone.shape, calls, causal=False) + flops.head(backbone.shape) + flops.vision(backbone.shape)
    # The attention row that FastV asks for is the method's own work: one query, 0.01 % of the prefill.
    assert ours == pytest.approx(truth, rel=1e-3 if method.probes() else 1e-9)


def test_a_decoding_step_costs_what_torch_counts(backbone):
    from vtc.profiling.run import generate_two

    method = build("fastv", 16, backbone.shape, layer=2).eval()
    inputs = latency.example(backbone, 1, 40)
    shape = backbone.shape
    with torch.no_grad(), compressing(backbone, method), recorded(backbone) as calls:
        generate_two(backbone, inputs)
    step = calls[-shape.depth :]
    assert {c.queries for c in step} == {1}
    full, kept = 144 + 40 + 1, 16 + 40 + 1
    assert [c.keys for c in step] == [full, full, kept, kept, kept]
    alone = counted(
        lambda: torch.nn.functional.scaled_dot_product_attention(
            torch.zeros(1, 8, 1, 8), torch.zeros(1, 8, kept, 8), torch.zeros(1, 8, kept, 8)
        )
    )
    assert flops.layer(shape, 1, kept) - flops.layer(shape, 1, 1) == pytest.approx(alone * (kept - 1 + 0.5) / kept - 2 * 64, abs=200)


def test_the_prefills_parts_add_up_by_hand(backbone):
    s = backbone.shape
    n, head = 50, 64 // 8
    projections = 2 * n * (64 * 64 + 2 * 64 * 2 * head + 64 * 64)
    attention, mlp = 2 * 2 * n * n * 64, 2 * n * 3 * 64 * 112
    assert flops.layer(s, n, causal=False) == projections + attention + mlp
    assert flops.layer(s, n) == projections + attention / 2 + mlp
    assert flops.head(s, 3) == 2 * 3 * 64 * 160
    assert flops.uncompressed(s, 40) == 5 * flops.layer(s, 184) + flops.head(s)


def test_it_agrees_with_the_budget_that_asks_for_flops(backbone):
    from vtc.budget import decoder_flops

    tokens = [144, 144, 16, 16, 16]
    calls = [flops.Call(i, t + 64, t + 64) for i, t in enumerate(tokens)]
    assert flops.total(backbone.shape, calls) == pytest.approx(decoder_flops(tokens, backbone.shape))


def test_recording_leaves_nothing_behind(backbone):
    before = [len(layer._forward_pre_hooks) for layer in backbone.decoder.layers]
    with pytest.raises(RuntimeError), recorded(backbone):
        raise RuntimeError
    assert [len(layer._forward_pre_hooks) for layer in backbone.decoder.layers] == before


def test_profiling_needs_no_harness():
    code = "import sys, vtc.profiling.run, vtc.profiling.latency, vtc.profiling.recorder; assert 'lmms_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
