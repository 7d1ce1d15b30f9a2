"""Qwen3.5: Qwen3-VL's pictures and positions in front of layers most of which have linear attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import load, settings_of, shape_of
from PIL import Image

from vtc.configuration import parse
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import RecurrentShape, flops, resolve_layer
from vtc.methods import build, make
from vtc.methods.fitting import Fitting
from vtc.profiling import latency
from vtc.profiling.counter import flop_counter
from vtc.profiling.recorder import record_calls
from vtc.registry import families
from vtc.testing import batch
from vtc.testing.runs import logits
from vtc.testing.tiny_qwen import SIDE, TEMPLATE, tiny_qwen3_5
from vtc.visualize.run import _check_layers as check_layers


def noise(height: int, width: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator).to(torch.uint8).numpy())


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("name", "parameters", "depth", "heads", "value_heads"),
    [
        ("qwen35_4b", 4_539_265_536, 32, 16, 32),
        ("qwen35_9b", 9_409_813_744, 32, 16, 32),
        ("qwen35_27b", 27_356_728_560, 64, 24, 48),
    ],
)
def test_released_sizes_need_no_network(name: str, parameters: int, depth: int, heads: int, value_heads: int) -> None:
    """The checkpoints hold one layer more, which predicts a second token and which transformers doesn't read: with it
    9B has the 9,653,104,368 parameters of its files."""
    settings = settings_of({"name": name, "image_size": 768})
    shape = shape_of({"name": name, "image_size": 768})
    assert (shape.depth, shape.heads, shape.kv_heads, shape.head_width, shape.grid) == (depth, heads, 4, 256, (24, 24))
    linear = tuple(i for i in range(depth) if i % 4 != 3)
    assert shape.recurrent == RecurrentShape(linear, 16, 128, value_heads, 128, 4)
    assert shape.gated and shape.attending == tuple(range(3, depth, 4))
    made = families.get(settings.family).skeleton(settings)
    assert made.shape == shape and made.context == 262144
    layers, width = made.decoder.layers, shape.width
    assert [hasattr(layer, "linear_attn") for layer in layers] == [i in linear for i in range(depth)]
    counts = [sum(p.numel() for p in part.parameters()) for part in (made.model, layers[3])]
    assert counts[0] == parameters
    if name == "qwen35_9b":  # two norms, a map of both states, the layer and its own norm
        assert counts[0] + counts[1] + 2 * width * width + 3 * width == 9_653_104_368
    with pytest.raises(UserError, match=f"image_size=708: {name} takes multiples of 32 from 256"):
        shape_of({"name": name, "image_size": 708})


def test_any_folder_of_the_architecture_loads(tmp_path) -> None:
    """Pictures of any size and videos, as the model itself reads them."""
    tiny = tiny_qwen3_5()
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    cfg = {"name": "qwen35_4b", "pretrained": str(tmp_path), "dtype": "float32", "device": "cpu", "attention": "sdpa"}
    free, fixed = load(cfg), load(cfg | {"image_size": SIDE})
    assert free.shape == shape_of(cfg) and free.shape.visual_tokens is None and free.context == 2048
    assert fixed.shape == shape_of(cfg | {"image_size": SIDE}) and fixed.shape.grid == (4, 4)
    assert fixed.shape.recurrent == tiny.shape.recurrent and fixed.shape.attending == (1, 3)
    images = [[noise(32, 32, 0), noise(40, 16, 1)], [], [noise(8, 24, 2)]]
    videos = [[[noise(24, 40, 3 + i) for i in range(4)]], [], []]
    inputs = dict(free.inputs(["what is this ?", "one two", "left"], images, videos))
    visual = free.visual(inputs["input_ids"])
    assert visual.sum(1).tolist() == [16 + 10 + 2 * 15, 0, 3]
    place, real = free.positions(inputs), inputs["attention_mask"].bool()
    plain = logits(free, inputs)
    with torch.no_grad():
        assert torch.allclose(free.model(**inputs).logits[real], plain[real], atol=1e-5)
        features = free.image_features(dict(inputs))
        assert [len(f) for f in features] == [16, 10, 15, 15, 3]
        assert free.grids(inputs, features) == [(4, 4), (5, 2), (3, 5), (3, 5), (1, 3)]
    with torch.no_grad(), compressing(free, build("random", 64, free.shape, layer=2)) as engine:
        kept = free.model(**inputs, position_ids=place).logits
        assert engine.report.tokens_out == [16 + 10 + 2 * 15, 0, 3]
    assert torch.equal(kept[real], plain[real])


def test_prompts_are_asked_for_without_thoughts() -> None:
    """The released template leaves an answer room to think unless it is told otherwise; others don't read that."""
    backbone = tiny_qwen3_5()
    plain = backbone.prompt("what is it ?"), backbone.conversation([("one", "red"), ("two", "blue")])
    assert plain[0].endswith("what is it ?<|im_end|>\n<|im_start|>assistant\n")
    end = "<|im_start|>assistant\n{% endif %}"
    thinks = TEMPLATE.replace("SYSTEM", "")
    assert thinks.endswith(end)
    asks = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n"
    backbone.processor.chat_template = thinks.removesuffix("{% endif %}") + asks + "{% endif %}{% endif %}"
    assert backbone.prompt("what is it ?") == plain[0] + "<think>\n\n</think>\n\n"


# ---------------------------------------------------------------------- what it costs
def test_flops_are_what_torch_counts() -> None:
    """Chunks and convolutions of linear attention, gates, a prefill and a step; and what the recurrence itself needs,
    by loops."""
    backbone = tiny_qwen3_5()
    shape = backbone.shape
    for tokens in (40, 90):
        inputs = latency.example(backbone, 1, tokens)
        for name, count, options in (("none", None, {}), ("random", 5, {"layer": 2, "layer_scale": "none"})):
            method = build(name, count, shape, **options).eval()
            inside = flop_counter()
            with torch.no_grad(), compressing(backbone, method), record_calls(backbone) as calls, inside:
                cache = backbone.model(**inputs, logits_to_keep=1, use_cache=True).past_key_values
            by_module = inside.get_flop_counts()["Qwen3_5ForConditionalGeneration.model.language_model"]
            assert flops.total(shape, calls, causal=False) == sum(by_module.values())
            mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
            token, step = inputs["input_ids"][:, -1:], flop_counter()
            place = backbone.positions(inputs)[..., -1:] + 1
            with torch.no_grad(), compressing(backbone, method), record_calls(backbone) as calls, step:
                backbone.model(input_ids=token, attention_mask=mask, position_ids=place, past_key_values=cache)
            held = [c.keys for c in calls]
            assert held[0] == held[2] == 1 and held[1] == 16 + tokens + 1
            assert flops.total(shape, calls, causal=False) + flops.head(shape) == step.get_total_flops()
    one = shape.recurrent
    needed = sum(3 * 2 for _ in range(9) for _ in range(one.value_heads * one.key_dim * one.value_dim))
    needed += sum(2 for _ in range(9) for _ in range(one.kernel * (2 * 2 * 8 + 4 * 6)))
    assert flops.linear_attention(one, 9) == needed
    maps = backbone.decoder.layers[0].linear_attn
    weights = [
        getattr(maps, n).weight.numel() for n in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
    ]
    assert flops.layer(shape, 9, number=0) == needed + 2 * 9 * (sum(weights) + 3 * 32 * 64)
    assert flops.uncompressed(shape, 9) == flops.head(shape) + sum(flops.layer(shape, 25, number=n) for n in range(4))


def test_states_are_no_smaller_for_fewer_tokens() -> None:
    backbone = tiny_qwen3_5()
    with torch.no_grad():
        cache = backbone.model(**batch(backbone, (4,), (6,), (1,)), use_cache=True).past_key_values
    held = [t for layer in (1, 3) for t in (cache.layers[layer].keys, cache.layers[layer].values)]
    for layer in (0, 2):
        held += [cache.layers[layer].conv_states[0], cache.layers[layer].recurrent_states[0]]
    length = cache.layers[1].get_seq_length()
    assert sum(t.numel() * t.element_size() for t in held) == flops.cache_bytes(backbone.shape, [length] * 4, 4)
    states = flops.cache_bytes(backbone.shape, [0] * 4, 4)
    assert states == flops.cache_bytes(backbone.shape, [7, 0, 7, 0], 4) > 0


def test_adapters_are_in_every_linear_map_of_every_layer() -> None:
    backbone = tiny_qwen3_5()
    linear = {n for n, m in backbone.decoder.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    backbone.add_adapters(["a"], rank=3, alpha=3)
    tuned = {n.split(".lora_A")[0] for n, _ in backbone.decoder.layers.named_parameters() if ".lora_A" in n}
    assert tuned == linear and len(linear) == 2 * (5 + 3) + 2 * (4 + 3)
    for number, layer in enumerate(backbone.decoder.layers):
        lora = [p.numel() for n, p in layer.named_parameters() if ".lora_" in n]
        assert sum(lora) == backbone.shape.adapter_parameters(3, number)
    method = build("fwd2bot", 4, backbone.shape, rank=3)
    assert [method.adapter_flops(n) for n in range(4)] == [
        2.0 * backbone.shape.adapter_parameters(3, n) for n in range(4)
    ]


# ---------------------------------------------------------------------- what it can't do
def refused(match: str, method: str, shape: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        make(method, 4, shape, **options)
    assert "\n" not in str(error.value)


def test_needs_that_linear_attention_lacks_are_said_in_one_line() -> None:
    shape = shape_of({"name": "qwen35_4b", "image_size": 768})
    states = "qwen35_4b has linear attention"
    refused(
        f"^method=voco: its mask hides visual tokens in every layer, and {states}; states have read them$",
        "voco",
        shape,
    )
    layers = "layers 3, 7, 11, 15, 19, 23, 27, 31 attend"
    refused(f"^method=fitprune: it reads the attention of every layer, and {states}; {layers}$", "fitprune", shape)
    with pytest.raises(UserError, match="^method=fitting: it reads the attention of every layer"):
        Fitting(shape)
    refused(
        "^method=fwd2bot: it reads .* attend, set method.bidirectional=false$", "fwd2bot", shape, bidirectional=True
    )
    make("fwd2bot", 4, shape)


def test_attention_is_read_where_there_is_some() -> None:
    """Scaled numbers go to the nearest layer that can be read, of two the later one; literal ones are refused."""
    shape = shape_of({"name": "qwen35_4b", "image_size": 768})
    deep = shape_of({"name": "qwen35_27b", "image_size": 768})
    found = {name: make(name, 64, shape).layers() for name in ("fastv", "dart", "vcc", "pact", "pyramiddrop")}
    assert found == {"fastv": {4}, "dart": {4}, "vcc": {3}, "pact": {3}, "pyramiddrop": {7, 15, 23}}
    assert make("sparsevlm", 64, shape).layers() == {0, 3, 7, 15} and make("vscan", 64, shape).layers() == {0, 15}
    assert make("holitom", 64, shape).layers() == {0, 20} and make("prunevid", 64, shape).layers() == {0, 11}
    assert make("fastv", 64, deep).layers() == {4} and make("vscan", 64, deep).layers() == {0, 31}
    assert make("fastv", 64, shape, layer=8, layer_scale="none").layers() == {8}
    assert make("random", 64, shape, layer=2).layers() == {2}
    allowed = "4, 8, 12, 16, 20, 24, 28 with layer_scale=none$"
    refused(f"^method.layer=2: before layer 2 there is no attention to read, it is linear; allowed: {allowed}", "fastv",
            shape, layer=2, layer_scale="none")  # fmt: skip
    refused(f"^method.layer=1: .* allowed: {allowed}", "fastv", shape, layer=1)
    own = "3, 7, 11, 15, 19, 23, 27, 31 with layer_scale=none$"
    refused(f"^method.layer=0: .* allowed: {own}", "vcc", shape, layer=0)
    refused(f"^method.layers=8: .* allowed: {own}", "pyramiddrop", shape, layers=[8, 15], layer_scale="none")
    assert resolve_layer(2, 32, "auto", 1, among=[1, 3]) == 3 and resolve_layer(2, 32, "auto", 1) == 2
    with pytest.raises(UserError, match="allowed: none with"):
        resolve_layer(2, 32, "auto", 1, among=[])


def test_no_attention_is_drawn_where_there_is_none() -> None:
    job = parse(["action=visualize", "backbone=qwen35_4b", "image=one.png", "visualize.layers=[3,4]"])
    with pytest.raises(
        UserError, match="^visualize.layers: 4: it has linear attention, none to draw; allowed: 3, 7, 11"
    ):
        check_layers(job)


def test_queries_have_heads_where_those_of_the_decoder_dont_divide_its_width() -> None:
    shape = shape_of({"name": "qwen35_27b", "image_size": 768})
    assert shape.width % shape.heads and make("mqt", 64, shape).per_head(torch.zeros(2, 3, 5120)).shape == (
        2,
        8,
        3,
        640,
    )
    other = tiny_qwen3_5().shape
    assert make("mqt", 4, other).per_head(torch.zeros(2, 3, 32)).shape == (2, 4, 3, 8)


def test_a_narrow_one_has_fewer_heads_of_linear_attention_too() -> None:
    from vtc.backbones.random_weights import narrowed

    sizes = narrowed(settings_of({"name": "qwen35_9b"}).sizes, 8, "qwen35_9b")["text_config"]
    assert (sizes["linear_num_key_heads"], sizes["linear_num_value_heads"], sizes["hidden_size"]) == (2, 4, 512)
    assert sizes["linear_key_head_dim"] == 128
