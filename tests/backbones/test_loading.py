"""Loading: what is refused before it begins, the memory it takes, where weights go, 4 and 8 bit.

bitsandbytes is an extra; tests that quantise for real are skipped without it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load, settings_of
from method_cases import FIRST, Case, attaches
from PIL import Image

from vtc.backbones import loading
from vtc.backbones.base import Backbone
from vtc.backbones.llava import Llava
from vtc.budget import Budget
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.job import Job
from vtc.methods import build
from vtc.settings import MethodSettings
from vtc.testing import CONTRACTS, tiny_backbone

QUESTION = (
    ["what is this ?", "one two three"],
    [[Image.new("RGB", (9, 9), "red")], [Image.new("RGB", (5, 9), "blue")]],
)
RESETS = Path("/proc/self/clear_refs").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A LLaVA wide enough for blocks of 64, an ordinary transformers folder of float32 in shards."""
    path = tmp_path_factory.mktemp("tiny")
    backbone = tiny_backbone(width=128)
    backbone.model.save_pretrained(path, max_shard_size="1MB")
    backbone.processor.save_pretrained(path)
    return str(path)


def settings(folder: str, **change: Any) -> dict[str, Any]:
    return {"name": "llava15_7b", "pretrained": folder, "dtype": "float32", "device": "cpu"} | change


def logits(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(**backbone.inputs(*QUESTION)).logits.float()


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(cfg: dict[str, Any]) -> str:
    """What both the plan and the loading say to it, in one line."""
    with pytest.raises(UserError) as early:
        Job(backbone=settings_of(cfg)).check()
    with pytest.raises(UserError) as late:
        load(cfg)
    assert str(early.value) == str(late.value) and "\n" not in str(late.value)
    return str(late.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bf61"}, ["backbone.dtype=bf61", "allowed: float32", "did you mean 'bf16'"]),
        ({"attention": "eagr"}, ["backbone.attention=eagr", "did you mean 'eager'"]),
        ({"device_map": "balance"}, ["backbone.device_map=balance", "did you mean 'balanced'"]),
        ({"quantization": "8bits"}, ["backbone.quantization=8bits", "did you mean '8bit'"]),
        ({"device": "cpuu"}, ["backbone.device=cpuu", "did you mean 'cpu'"]),
        ({"device": "cuda:99"}, ["backbone.device=cuda:99", "CUDA"]),
        ({"device_map": "auto"}, ["backbone.device=cpu, backbone.device_map=auto", "one of the two"]),
        ({"attention": "flash_attention_2"}, ["flash_attention_2", "CUDA GPU", "allowed here: sdpa, eager"]),
    ],
    ids=str,
)
def test_values_are_refused_before_anything_loads(folder: str, change: dict, words: list[str]) -> None:
    said = refused(settings(folder, **change))
    assert all(word in said for word in words), said


def test_flash_attention_needs_its_package_a_gpu_and_16_bit(monkeypatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs flash-attn .*vtc\[flash\].*allowed here: sdpa, eager"):
        loading._check_flash(torch.bfloat16, cuda)
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="needs a CUDA GPU, the device is cpu"):
        loading._check_flash(torch.bfloat16, cpu)
    with pytest.raises(UserError, match="dtype=float32: it computes in 16 bit"):
        loading._check_flash(torch.float32, cuda)
    loading._check_flash(torch.bfloat16, cuda)


def test_quantisation_needs_its_package_and_a_device_that_can(monkeypatch) -> None:
    cpu, found = torch.device("cpu"), {"version": "0.46.1"}
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"quantization=4bit: needs bitsandbytes 0.46.1 or newer: .*vtc\[quant\]"):
        loading._check_quantization("4bit", cpu)
    loading._check_quantization("none", cpu)
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    monkeypatch.setattr(loading, "version", lambda name: found["version"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(supported_torch_devices={"cuda", "xpu"}))
    with pytest.raises(UserError, match="can't work on cpu; it can on cuda, xpu"):
        loading._check_quantization("8bit", cpu)
    loading._check_quantization("8bit", torch.device("cuda"))
    found["version"] = "0.45.5"
    with pytest.raises(UserError, match="0.46.1 or newer.*here is 0.45.5"):
        loading._check_quantization("4bit", torch.device("cuda"))


def test_one_model_over_all_gpus_is_not_for_several_processes(folder: str, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="device_map=auto: .* 2 processes"):
        loading.check(settings_of(settings(folder, device_map="auto", device="auto")))
    loading.check(settings_of(settings(folder)))


def test_folders_without_all_their_weights_are_refused(folder: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shards = sorted(copy.glob("*.safetensors"))
    assert len(shards) > 2
    kept = shards[1].read_bytes()

    shards[1].unlink()
    assert f"1 of its {len(shards)} weight files aren't there, {shards[1].name} first" in refused(settings(str(copy)))

    shards[1].write_bytes(kept[: len(kept) // 2])  # a download that broke off
    with pytest.raises(UserError, match="can't be loaded"):
        load(settings(str(copy)))

    shards[1].write_bytes(kept)
    load(settings(str(copy)))

    index = copy / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    names["weight_map"] = {k: v for k, v in names["weight_map"].items() if "layers.2.mlp" not in k}
    index.write_text(json.dumps(names))
    from safetensors.torch import load_file, save_file

    for shard in shards:
        save_file({k: v for k, v in load_file(shard).items() if "layers.2.mlp" not in k}, shard, {"format": "pt"})
    with pytest.raises(UserError, match=r"3 of its weights aren't there, .*layers\.2\.mlp\.down_proj\.weight first"):
        load(settings(str(copy)))

    for file in [*shards, index]:
        file.unlink()
    assert "no weights there" in refused(settings(str(copy)))
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin; weights are read as safetensors only" in refused(settings(str(copy)))


# -- memory and devices ------------------------------------------------------------------------------------------------

MEASURE = """
import gc, json, sys

def resident(key):
    return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key + ":"))

from vtc.backbones.llava import Llava
from vtc.configuration.compose import backbone_settings

def load(cfg):
    return Llava.load(backbone_settings(**cfg))

load({"name": "pocket", "device": "cpu"})  # what is imported once isn't the weights'
for dtype in sys.argv[2:]:
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS")
    model = load({"name": "llava15_7b", "pretrained": sys.argv[1], "dtype": dtype, "device": "cpu"}).model
    total = sum(float(p.sum()) for p in model.parameters())  # a mapped file is read when it is used
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(json.dumps([dtype, weights, resident("VmHWM") - before]))
    del model
"""


@pytest.mark.skipif(not RESETS, reason="only Linux tells a process its peak and lets it reset it")
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path) -> None:
    """200 MB of float32 in four shards, as they are and rounded to half of that."""
    backbone = tiny_backbone(width=1024, depth=4, heads=8, kv_heads=8)
    backbone.model.save_pretrained(tmp_path, max_shard_size="50MB")
    backbone.processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    command = [sys.executable, "-c", MEASURE, str(tmp_path), "float32", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [dtype for dtype, *_ in measured] == ["float32", "bfloat16"]
    stored = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    assert [weights for _, weights, _ in measured] == [stored, stored // 2] and stored > 150e6
    for dtype, weights, peak in measured:
        assert 0.9 * weights < peak < 1.5 * weights, (dtype, peak / weights)


def test_converting_reads_the_stored_weights(folder: str) -> None:
    stored = tiny_backbone(width=128).model.state_dict()
    for dtype in ("bf16", "float16", "bfloat16", "auto"):
        backbone = load(settings(folder, dtype=dtype))
        for name, tensor in backbone.model.state_dict().items():
            assert torch.equal(tensor, stored[name].to(tensor.dtype)), name
    assert load(settings(folder, dtype="auto")).dtype == torch.float32
    from safetensors import safe_open
    from transformers import modeling_utils

    assert modeling_utils.safe_open is safe_open, "left as it was"


def test_a_device_map_of_one_device_is_that_device(folder: str) -> None:
    mapped = load(settings(folder, device="auto", device_map={"": "cpu"}))
    assert torch.equal(logits(mapped), logits(load(settings(folder))))
    assert not any(hasattr(module, "_hf_hook") for module in mapped.model.modules())


DISPATCHED = [
    Case("fastv", 5), Case("avgpool", 8, {"layer": 2}), Case("visionzip", 7), Case("fwd2bot", 3, {"rank": 2})
]  # fmt: skip


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("case", DISPATCHED, ids=str)
def test_contracts_hold_on_a_dispatched_model(contract, case: Case) -> None:
    """Every module under accelerate's hooks, as a model that is spread over devices has them."""
    from accelerate import dispatch_model

    backbone = tiny_backbone()
    layers = {f"model.language_model.layers.{i}": "cpu" for i in range(backbone.shape.depth)}
    rest = ("embed_tokens", "norm", "rotary_emb")
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    places = layers | parts | {f"model.language_model.{name}": "cpu" for name in rest}
    dispatch_model(backbone.model, places, force_hooks=True)
    assert hasattr(backbone.decoder.layers[0], "_hf_hook") and hasattr(backbone.model, "_hf_hook")
    contract(backbone, case.make, case.tokens)


# -- 4 and 8 bit -------------------------------------------------------------------------------------------------------


def test_the_decoder_alone_is_quantised(folder: str) -> None:
    backbone = Llava.skeleton(settings_of(settings(folder)))
    assert set(loading.outside_decoder(backbone)) == {"model.vision_tower", "model.multi_modal_projector", "lm_head"}


def test_bytes_of_weights(folder: str) -> None:
    """By hand: 4 layers of q, k, v, o (128 × 128, 64 × 128 twice, 128 × 128) and gate, up, down (128 × 256)."""
    backbone = Llava.skeleton(settings_of(settings(folder)))
    linear, rows = 4 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256), 4 * (2 * 128 + 2 * 64 + 2 * 256 + 128)
    other = sum(p.numel() for p in backbone.model.parameters()) - linear
    assert loading.weight_bytes(backbone, 2) == 2 * (linear + other)
    assert loading.weight_bytes(backbone, 2, "8bit") == 2 * other + linear + 4 * rows
    second = 4 * 4 * (2 * 1 + 2 * 1 + 3 * 2)  # of 16384, 8192 and 32768 weights: 256, 128, 512 scales
    tables = 4 * 7 * 4 * (16 + 256 + 1)
    assert loading.weight_bytes(backbone, 2, "4bit") == 2 * other + linear // 2 + linear // 64 + second + tables


def quantised(folder: str, bits: str, **change: Any) -> Backbone:
    return load(settings(folder, quantization=bits, **change))


def dequantised(layer: Any) -> torch.Tensor:
    """The weights that a quantised linear layer stands for."""
    import bitsandbytes.functional as F

    if hasattr(layer.weight, "SCB"):
        return layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    return F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize(("bits", "tolerance"), [("4bit", 1e-4), ("8bit", 0.1)])
def test_a_quantised_model_is_the_model_of_its_rounded_weights(folder: str, bits: str, tolerance: float) -> None:
    backbone, plain = quantised(folder, bits), load(settings(folder))
    linear = [(n, m) for n, m in backbone.decoder.named_modules() if "Linear" in type(m).__name__]
    assert len(linear) == 7 * 4 and all("bit" in type(m).__name__ for _, m in linear)
    with torch.no_grad():
        for name, module in linear:
            weight = plain.decoder.get_submodule(name).weight
            rounded = dequantised(module).to(weight)
            assert 0 < (rounded - weight).abs().mean() < 0.15 * weight.abs().mean()
            weight.copy_(rounded)
    untouched = {n: p for n, p in plain.model.named_parameters() if ".layers." not in n or "vision" in n}
    mine = dict(backbone.model.named_parameters())
    assert all(torch.equal(mine[name], p) for name, p in untouched.items()) and len(untouched) > 20
    expected = logits(plain)
    assert (logits(backbone) - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_sizes_of_a_quantised_model(folder: str, bits: str) -> None:
    backbone = quantised(folder, bits, dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16 and backbone.device.type == "cpu"
    assert loading.count(backbone.model) == sum(p.numel() for p in tiny_backbone(width=128).model.parameters())
    held = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    for parameter in backbone.model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            inner = state.state2
            for tensor in (state.absmax, state.code, inner.absmax, inner.code, state.offset):
                held += tensor.numel() * tensor.element_size()
        elif getattr(parameter, "SCB", None) is not None:
            held += parameter.SCB.numel() * parameter.SCB.element_size()
    skeleton = Llava.skeleton(settings_of(settings(folder)))
    assert held == loading.weight_bytes(skeleton, 2, bits)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize(("name", "options"), [("fastv", {}), ("avgpool", {}), ("fwd2bot", {"rank": 4})])
def test_methods_answer_on_a_quantised_model(folder: str, bits: str, name: str, options: dict[str, Any]) -> None:
    from vtc.profiling.run import efficiency
    from vtc.settings import ProfileSettings

    found = []
    for quantization in (bits, "none"):
        backbone = quantised(folder, bits) if quantization == bits else load(settings(folder))
        method = build(name, 4, backbone.shape, **options).to(backbone.device, backbone.dtype).eval()
        method.attach(backbone)
        with torch.inference_mode(), compressing(backbone, method) as engine:
            out = backbone.model.generate(**backbone.inputs(*QUESTION), max_new_tokens=3, do_sample=False)
        assert engine.report.tokens_out == [4, 4] and out.shape[0] == 2
        found.append(efficiency(backbone, method, ProfileSettings(2, 16, (2, 3), 1, 1)))
        if name == "fwd2bot" and quantization == bits:
            kinds = {type(m).__module__ for m in backbone.decoder.modules() if hasattr(m, "lora_A")}
            assert kinds == {"peft.tuners.lora.bnb"}, "peft's own layers for quantised weights"
    same = ("prefill_flops", "vision_flops", "method_flops", "decode_flops_per_token", "extra_parameters")
    assert {k: found[0][k] for k in same} == {k: found[1][k] for k in same}
    assert found[0]["kv_cache_bytes"] == found[1]["kv_cache_bytes"]


@pytest.fixture(scope="module")
def of_4_bits(folder: str) -> Backbone:
    return quantised(folder, "4bit")


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_every_method_answers_on_a_quantised_model(folder: str, of_4_bits: Backbone, case: Case) -> None:
    """In a batch as one by one."""
    backbone = quantised(folder, "4bit") if attaches(case.name) else of_4_bits
    method = case.make(backbone, case.tokens).eval()
    method.attach(backbone)
    with torch.inference_mode(), compressing(backbone, method) as engine:
        together = backbone.model(**backbone.inputs(*QUESTION)).logits[:, -1]
        assert engine.report.tokens_out == [case.tokens] * 2
        alone = [backbone.model(**backbone.inputs([q], [i])).logits[:, -1] for q, i in zip(*QUESTION, strict=True)]
    assert (together - torch.cat(alone)).abs().max() < 1e-3 * together.abs().max()


def test_decoder_weights_of_a_checkpoint_have_no_place_in_a_quantised_one(tmp_path: Path, monkeypatch) -> None:
    """Victor's shipped weights replace the decoder's; Fwd2Bot's stand beside them."""
    monkeypatch.setattr(loading, "_check_quantization", lambda *_: None)

    def job(method: str, quantization: str = "4bit") -> Job:
        backbone = settings_of({"name": "pocket", "device": "cpu", "quantization": quantization})
        return Job(backbone=backbone, method=MethodSettings(method), budget=Budget(16))

    with pytest.raises(UserError, match=r"victor-16: holds the decoder's own weights \(.*quantization=4bit"):
        job("victor").check()
    assert job("fwd2bot").weights is not None
    assert job("victor", "none").weights is not None
