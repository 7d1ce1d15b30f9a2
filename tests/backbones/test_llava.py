"""The LLaVA adapter: sizes, prompts, inputs, loading; and errors that a user can act on."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load, shape_of
from PIL import Image

from vtc.backbones.llava import Llava
from vtc.errors import UserError
from vtc.testing import tiny_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny LLaVA on disk, an ordinary transformers folder."""
    path = tmp_path_factory.mktemp("tiny")
    backbone = tiny_backbone()
    backbone.model.save_pretrained(path)
    backbone.processor.save_pretrained(path)
    return str(path)


def test_any_folder_of_the_architecture_loads(folder: str) -> None:
    cfg = {"name": "llava15_7b", "pretrained": folder, "dtype": "float32", "device": "cpu", "attention": "eager"}
    backbone = load(cfg)
    assert backbone.shape == shape_of(cfg)
    assert backbone.shape.visual_tokens == 16 and backbone.shape.grid == (4, 4) and backbone.shape.kv_heads == 2
    assert backbone.dtype == torch.float32 and not backbone.model.training
    assert backbone.decoder.config._attn_implementation == "eager"
    plain = tiny_backbone()
    inputs = plain.inputs(["what is this ?"], [[Image.new("RGB", (9, 9), "red")]])
    with torch.no_grad():
        assert torch.allclose(backbone.model(**inputs).logits, plain.model(**inputs).logits, atol=1e-5)
    assert load(cfg | {"dtype": "bfloat16"}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "depth", "width", "mlp", "heads"), [("7b", 32, 4096, 11008, 32), ("13b", 40, 5120, 13824, 40)]
)
def test_sizes_of_llava_15_need_no_network(name: str, depth: int, width: int, mlp: int, heads: int) -> None:
    """What is known of the two equals what their configuration comes to."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        vocab_size=32064,
    )
    expected = Llava.shape_from(LlavaConfig(vision_config=vision, text_config=text), f"llava15_{name}")
    assert shape_of({"name": f"llava15_{name}"}) == expected
    assert shape_of({"name": f"llava15_{name}", "pretrained": f"llava-hf/llava-1.5-{name}-hf"}) == expected


def test_prompts_are_llava_15s() -> None:
    backbone = tiny_backbone()
    assert backbone.prompt("What is it?") == "USER: <image>\nWhat is it? ASSISTANT:"
    assert backbone.prompt("What is it?", 0) == "USER: What is it? ASSISTANT:"
    assert backbone.prompt("Same?", 2) == "USER: <image>\n<image>\nSame? ASSISTANT:"


def test_inputs_are_left_padded_rows_with_any_number_of_images() -> None:
    backbone = tiny_backbone()
    red, grey = Image.new("RGB", (30, 20), "red"), Image.new("L", (5, 5))
    inputs = backbone.inputs(["what is this", "one", "two three one two"], [[red], [], [red, grey]])
    count = (inputs["input_ids"] == backbone.image_token_id).sum(1)
    assert count.tolist() == [16, 0, 32] and inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"][1, 0]
    assert "pixel_values" not in backbone.inputs(["one"], [[]])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pretrained": "/no/such/folder"}, "backbone.pretrained=/no/such/folder: no config.json"),
        ({"dtype": "float31"}, "backbone.dtype=float31: .*did you mean 'float32'"),
        ({"attention": "spda"}, "backbone.attention=spda: .*did you mean 'sdpa'"),
        ({"device": "tpu0"}, "backbone.device=tpu0"),
    ],
)
def test_mistakes_are_answered_in_one_line(folder: str, change: dict, text: str) -> None:
    cfg = {"name": "llava15_7b", "pretrained": folder, "device": "cpu"} | change
    with pytest.raises(UserError, match=text) as error:
        load(cfg)
    assert "\n" not in str(error.value)


def test_another_family_and_broken_weights_are_refused(folder: str, tmp_path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a llama model; this backbone reads llava"):
        shape_of({"name": "llava15_7b", "pretrained": str(tmp_path)})
    tiny_backbone().model.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no weights there"):
        load({"name": "llava15_7b", "pretrained": str(tmp_path), "device": "cpu"})


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"model_type": "llava"', b"[]"])
def test_a_damaged_config_is_one_clear_line(tmp_path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"backbone\.pretrained=.*: can't be read"):
        shape_of({"name": "llava15_7b", "pretrained": str(tmp_path)})
