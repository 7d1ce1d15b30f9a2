"""What a training at full size would train, counted on torch's meta device, against arithmetic on the papers' sizes."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import pytest

from vtc.configuration import parse
from vtc.errors import UserError
from vtc.training.plan import StagePlan, count, describe, plan_stages


@dataclass(frozen=True)
class Sizes:
    """LLaVA-1.5 by hand: Vicuna's published sizes, CLIP ViT-L/14 at 336 pixels, 32,064 rows of embeddings."""

    depth: int
    width: int
    mlp: int

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer: q, k, v, o; gate, up, down."""
        return [(self.width, self.width)] * 4 + [(self.width, self.mlp)] * 2 + [(self.mlp, self.width)]

    @property
    def decoder(self) -> int:
        """Layers with their two norms, the last norm, embeddings, head: no biases."""
        layer = sum(i * o for i, o in self.linears) + 2 * self.width
        return self.depth * layer + self.width + 2 * 32064 * self.width

    @property
    def projector(self) -> int:
        return (1024 + 1) * self.width + (self.width + 1) * self.width

    @property
    def tower(self) -> int:
        layer = 4 * (1024 + 1) * 1024 + (1024 + 1) * 4096 + (4096 + 1) * 1024 + 2 * 2 * 1024
        patches = 3 * 14 * 14 * 1024
        return 24 * layer + patches + 1024 + (24 * 24 + 1) * 1024 + 2 * 2 * 1024

    @property
    def total(self) -> int:
        return self.decoder + self.projector + self.tower

    def lora(self, rank: int) -> int:
        """One adapter: A [rank, in] and B [out, rank] for each linear layer."""
        return self.depth * sum(rank * (i + o) for i, o in self.linears)


SIZES = {"llava15_7b": Sizes(32, 4096, 11008), "llava15_13b": Sizes(40, 5120, 13824)}
SOURCES = "training.data.sources=[{path: a.json}, {path: b.json, kind: caption}]"
PATHS = ["training.data.path=x", "training.stages.0.data.path=y"]


def planned(backbone: str, *overrides: str) -> list[StagePlan]:
    return plan_stages(parse(["action=train", f"backbone={backbone}", *overrides]))


@pytest.mark.parametrize(("backbone", "billions"), [("llava15_7b", "7.06 B"), ("llava15_13b", "13.35 B")])
def test_victor_at_256_registers_adds_m_times_d(backbone: str, billions: str) -> None:
    """Table 1 of the paper prints 1.78 M at M = 256; M·d is 1.05 M. docs/train.md says what was looked for."""
    sizes = SIZES[backbone]
    first, second = planned(backbone, "method=victor", "tokens=256", "training=llava_victor", *PATHS)
    registers = 256 * sizes.width
    assert (first.name, second.name) == ("pretrain", "finetune")
    assert first.trained == {"method": registers, "projector": sizes.projector}
    assert second.trained == first.trained | {"decoder": sizes.decoder}
    assert first.total == second.total == sizes.total + registers
    assert count(sizes.total) == billions
    if backbone == "llava15_7b":
        assert registers == 1_048_576 and sizes.total == 7_063_427_072  # what llava-hf/llava-1.5-7b-hf has


@pytest.mark.parametrize("rank", [1, 128])
def test_fwd2bot_trains_two_adapters_and_its_summary_tokens(rank: int) -> None:
    sizes = SIZES["llava15_7b"]
    given = ("method=fwd2bot", "tokens=16", f"method.rank={rank}", "training=llava_fwd2bot", SOURCES)
    (stage,) = planned("llava15_7b", *given)
    assert stage.trained == {"method": 16 * 4096, "adapters": 2 * sizes.lora(rank)}
    assert stage.total == sizes.total + 16 * 4096 + 2 * sizes.lora(rank)


def test_lora_on_a_method_that_brings_none() -> None:
    sizes = SIZES["llava15_7b"]
    (stage,) = planned("llava15_7b", "method=avgpool", "tokens=64", "training=llava_lora", "training.data.path=x")
    assert stage.trained == {"method": 0, "projector": sizes.projector, "adapters": sizes.lora(128)}
    assert stage.total == sizes.total + sizes.lora(128)


@pytest.mark.parametrize("backbone", SIZES)
def test_llavas_own_two_stages(backbone: str) -> None:
    sizes = SIZES[backbone]
    first, second = planned(backbone, "method=avgpool", "tokens=64", "training=llava", *PATHS)
    assert first.trained == {"method": 0, "projector": sizes.projector}
    assert second.trained == {"method": 0, "projector": sizes.projector, "decoder": sizes.decoder}
    assert first.total == second.total == sizes.total


def test_memory_is_weights_gradients_and_two_moments() -> None:
    stage = StagePlan("s", {"method": 3, "decoder": 7}, 100)
    assert stage.learning == 10 and stage.memory == {"weights": 400, "gradients": 40, "AdamW": 80}


def test_the_lines_say_what_is_counted() -> None:
    given = ["action=train", "backbone=llava15_7b", "method=victor", "tokens=256", "training=llava_victor", *PATHS]
    lines = describe(parse(given))
    assert lines[0] == "pretrain: trains method 1.05 M, projector 20.98 M: 22.03 M of 7.06 B (0.31%)"
    assert "weights 28.3 GB + gradients 27.0 GB + AdamW 54.1 GB = 109.4 GB" in lines[3]


def test_a_plan_takes_no_memory_of_the_weights() -> None:
    """13B with two adapters in float32 would be 55 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planned("llava15_13b", "method=fwd2bot", "tokens=16", "method.rank=128", "training=llava_fwd2bot", SOURCES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes, or bytes on a Mac


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("training.stages.1.train=[tower]", r"training.stages\[\].train=tower: unknown"),
        ("tokens=0", "tokens=0"),
        ("+training.lora.rank=0", "training.lora.rank=0"),
    ],
)
def test_a_mistake_is_told_by_name(change: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        planned("llava15_7b", "method=victor", "tokens=8", "training=llava_victor", *PATHS, change)
