"""LLaVA's two stages, and Fwd2Bot's two losses, on families whose images have any size: from the words of a command to
weights that are scored with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vtc.configuration import parse
from vtc.testing.tiny_gemma import tiny_gemma3
from vtc.testing.tiny_llava import tiny_llava_next
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen3_5, tiny_qwen3_vl, tiny_qwen3_vl_moe
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl
from vtc.training import train

FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma3_4b": tiny_gemma3,
    "idefics3_8b": tiny_idefics3,
    "internvl3_1b": tiny_internvl,
    "llava_next_vicuna_7b": tiny_llava_next,
    "qwen25vl_7b": tiny_qwen2_5_vl,
    "qwen35_4b": tiny_qwen3_5,
    "qwen3vl_30b_a3b": tiny_qwen3_vl_moe,
    "qwen3vl_4b": tiny_qwen3_vl,
}


def saved(name: str, folder: Path) -> list[str]:
    """The words of a command that trains on a tiny model of the family and a dozen conversations in LLaVA's layout."""
    backbone = FAMILIES[name]()
    backbone.model.save_pretrained(folder / "model")
    backbone.processor.save_pretrained(folder / "model")
    draw, entries = np.random.default_rng(0), []
    for n in range(12):
        noise = draw.integers(0, 256, (32 + 8 * (n % 3), 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.png")
        said = [
            ("human", "<image>\nwhat is this ?"),
            ("gpt", "red circle"),
            ("human", "left ?"),
            ("gpt", "blue square"),
        ]
        turns = [{"from": who, "value": text} for who, text in said]
        entries.append({"id": str(n), "image": f"{n}.png", "conversations": turns, "caption": "a red circle"})
    (folder / "mix.json").write_text(json.dumps(entries))
    return [f"backbone={name}", f"pretrained={folder / 'model'}", "dtype=fp32", f"output_dir={folder}"]


BATCH = ["training.data.batch_size=4", "training.workers=0"]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_stages_from_the_command_line(name: str, tmp_path: Path) -> None:
    """Counted in epochs, as the recipe does; what the stages train has moved, and is what is scored with then."""
    words, data, victor = saved(name, tmp_path), tmp_path / "mix.json", ["method=victor", "tokens=4"]
    first = [f"path={data}", "plain=false", "batch_size=4"]
    stages = [f"training.stages.0.data.{pair}" for pair in first]
    recipe = ["action=train", "training=llava_victor", f"training.data.path={data}", *stages, *BATCH]
    folder = train(parse([*recipe, *words, *victor]))
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    losses = [entry["answer"] for entry in log if "answer" in entry]
    assert {entry["stage"] for entry in log} == {"pretrain", "finetune"} and all(np.isfinite(losses))
    weights = load_file(folder / "weights.safetensors")
    backbone, method = parse([*words, *victor, f"checkpoint={folder}"]).load()
    fresh, _ = parse(words).load()
    assert torch.equal(method.registers.detach(), weights["method.registers"].float())
    q = f"layers.{backbone.shape.attending[0]}.self_attn.q_proj.weight"
    assert not torch.equal(backbone.decoder.state_dict()[q], fresh.decoder.state_dict()[q])


def test_both_losses_where_images_have_any_size(tmp_path: Path) -> None:
    """Fwd2Bot summarises images of different sizes together: conversations and captions, 1:1."""
    words, data = saved("qwen25vl_7b", tmp_path), tmp_path / "mix.json"
    sources = f"training.data.sources=[{{path: {data}}}, {{path: {data}, kind: caption}}]"
    recipe = ["action=train", "method=fwd2bot", "tokens=4", "training=llava_fwd2bot", sources, *BATCH]
    folder = train(parse([*recipe, *words]))
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert any("answer" in entry for entry in log) and any("contrastive" in entry for entry in log)
