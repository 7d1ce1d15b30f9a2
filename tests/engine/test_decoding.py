"""The compiled step gives the tokens of `generate()`, whatever the method has left in the cache."""

from __future__ import annotations

import pytest
import torch

from vtc.engine import compressing, decoding
from vtc.errors import NotFinite
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.runs import instance
from vtc.testing.tiny_gemma import tiny_gemma3
from vtc.testing.tiny_llava import tiny_llava_next
from vtc.testing.tiny_qwen import tiny_qwen2_vl, tiny_qwen3_5, tiny_qwen3_vl, tiny_qwen3_vl_moe
from vtc.testing.tiny_tiles import tiny_internvl

NEW = 20
FAMILIES = {
    "llava": tiny_backbone,
    "llava_next": tiny_llava_next,
    "qwen2_vl": tiny_qwen2_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "qwen3_vl_moe": tiny_qwen3_vl_moe,
    "internvl": tiny_internvl,
}
METHODS = {
    "none": None,
    "divprune": 3,  # before the LLM: the positions of what follows shift
    "fastv": 3,  # between layers: two segments
    "pyramiddrop": 3,  # several segments
    "pact": 3,  # merged tokens count several times
    "victor": 2,  # inserts, and removes behind a layer
    "voco": 2,  # visual tokens leave the cache
}


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """The step is traced as for the compiler, and run as it is: that takes no compiler and a fraction of the time."""
    monkeypatch.setattr(decoding, "BACKEND", "eager")


def prompts(backbone, *images):
    """Rows of so many images, with words before and behind them: of different lengths, padded."""
    before = [2 + 3 * (i % 2) for i in range(len(images))]
    return batch(backbone, before, [4] * len(images), list(images))


def answers(backbone, method, inputs, compiled, **options):
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    with torch.inference_mode(), compressing(backbone, method, compiled) as engine:
        return backbone.model.generate(**inputs, **options), engine.decoding


CASES = [("llava", name) for name in METHODS] + [(family, n) for family in FAMILIES for n in ("divprune", "fastv")][2:]


@pytest.mark.parametrize("family, name", CASES)
def test_the_tokens_are_those_of_generate(family, name):
    backbone = FAMILIES[family]()
    method = instance(backbone, lambda b, tokens: build(name, tokens, b.shape), METHODS[name])
    inputs = prompts(backbone, 1, 2, 1)  # rows of different lengths, with padding
    expected, how = answers(backbone, method, inputs, False)
    assert how is None
    for _ in range(2):  # compiled, and replayed with buffers that hold the first answers
        tokens, how = answers(backbone, method, inputs, True)
        assert how == decoding.COMPILED
        assert torch.equal(tokens, expected)


def test_an_accelerator_reads_whole_buffers_and_gives_the_same_tokens(monkeypatch):
    """A step is replayed there as it was recorded, whatever the buffers hold."""
    monkeypatch.setattr(decoding.Runner, "_rulers", lambda self, count: [])
    backbone = tiny_backbone()
    method = build("fastv", 3, backbone.shape).eval()
    inputs = prompts(backbone, 1, 2)
    tokens, how = answers(backbone, method, inputs, True)
    assert torch.equal(tokens, answers(backbone, method, inputs, False)[0]) and how == decoding.COMPILED


def test_no_length_is_compiled_in():
    """Nor that two of them are the same, as they are in the first call."""

    class Reader:
        buffer = torch.arange(20.0)

        def sums(self, *rulers):
            return torch.stack([self.buffer[: len(ruler)].sum() for ruler in rulers])

    reader, unit = Reader(), torch.zeros(1)
    sums = decoding.compiled(reader, Reader.sums, unit.device, replayed=True)
    for lengths in ((5, 5), (6, 6), (5, 7), (9, 3)):
        rulers = [unit.expand(length) for length in lengths]
        for ruler in rulers:
            torch._dynamo.mark_dynamic(ruler, 0, min=2, max=19)
        assert torch.equal(sums(*rulers), reader.sums(*rulers))


def test_other_rows_of_a_bucket_take_the_same_step():
    backbone = tiny_backbone()
    method = build("fastv", 3, backbone.shape).eval()
    for counts in ((1, 1), (2, 1), (1, 2)):
        inputs = prompts(backbone, *counts)
        assert torch.equal(answers(backbone, method, inputs, True)[0], answers(backbone, method, inputs, False)[0])
    assert len(backbone.runners) == 1
    for rows in range(3, 9):
        answers(backbone, method, prompts(backbone, *[1] * rows), True)
    assert len(backbone.runners) == decoding.RUNNERS


@pytest.mark.parametrize("ending", (0, 5, 17))
def test_rows_end_where_generate_ends_them(ending):
    """With the end token that a row makes at this place of its answer; other rows end elsewhere or not at all."""
    backbone, inputs = tiny_backbone(), None
    method = build("divprune", 3, backbone.shape).eval()
    inputs = prompts(backbone, 1, 2, 1)
    free = answers(backbone, method, inputs, False)[0][:, inputs["input_ids"].shape[1] :]
    backbone.model.generation_config.eos_token_id = [int(free[0, ending]), int(free[1, ending])]
    expected = answers(backbone, method, inputs, False, min_new_tokens=None)[0]
    tokens, how = answers(backbone, method, inputs, True, min_new_tokens=None)
    assert torch.equal(tokens, expected) and how == decoding.COMPILED
    expected = answers(backbone, method, inputs, False, min_new_tokens=12)[0]
    assert torch.equal(answers(backbone, method, inputs, True, min_new_tokens=12)[0], expected)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"num_beams": 2}, "no greedy search"),
        ({"do_sample": True}, "no greedy search"),
        ({"max_new_tokens": 4, "min_new_tokens": 4}, "fewer than 16 new tokens"),
        ({"use_cache": False}, "no cache"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is given"),
        ({"suppress_tokens": [5]}, "suppress_tokens is given"),
    ],
)
def test_what_it_cannot_do_is_said(options, why):
    backbone = tiny_backbone()
    with compressing(backbone, build("fastv", 3, backbone.shape).eval()) as engine:
        call = {**prompts(backbone, 1, 1), "max_new_tokens": NEW}
        assert decoding.obstacle(engine, (), call) is None
        assert why in decoding.obstacle(engine, (), call | options)


def test_generate_does_what_it_cannot_do():
    backbone = tiny_backbone()
    method, inputs = build("fastv", 3, backbone.shape).eval(), prompts(backbone, 1, 1)
    tokens, how = answers(backbone, method, inputs, True, num_beams=2)
    assert how == "generate: it is no greedy search"
    assert torch.equal(tokens, answers(backbone, method, inputs, False, num_beams=2)[0])


@pytest.mark.parametrize(
    "family, why",
    [
        (tiny_gemma3, "its layers attend in windows, whose masks change from step to step"),
        (tiny_qwen3_5, "its layers with linear attention hold states, for which the buffers of a step have no place"),
    ],
)
def test_a_family_that_it_cannot_do_is_left_to_generate(family, why):
    backbone = family()
    method, inputs = build("fastv", 3, backbone.shape).eval(), batch(backbone)
    tokens, how = answers(backbone, method, inputs, True)
    assert how == f"generate: {why}"
    assert torch.equal(tokens, answers(backbone, method, inputs, False)[0])


def test_settings_of_a_checkpoint_that_change_the_tokens_are_obstacles():
    backbone = tiny_backbone()
    backbone.model.generation_config.repetition_penalty = 1.3
    method = build("none", None, backbone.shape)
    inputs = prompts(backbone, 1, 1)
    tokens, how = answers(backbone, method, inputs, True)
    assert how == "generate: generation_config has repetition_penalty=1.3"
    assert torch.equal(tokens, answers(backbone, method, inputs, False)[0])


def test_numbers_that_are_none_are_told():
    backbone = tiny_backbone()
    method = build("none", None, backbone.shape)
    rotary = backbone.decoder.rotary_emb.forward

    def spoilt(x, position_ids):
        cos, sin = rotary(x, position_ids)
        return torch.where((position_ids > last)[..., None], float("nan"), cos), sin

    inputs = prompts(backbone, 1, 1)
    last = inputs["input_ids"].shape[1] + 10  # behind what generate itself makes
    backbone.decoder.rotary_emb.forward = spoilt
    with pytest.raises(NotFinite, match="isn't finite"):
        answers(backbone, method, inputs, True)


def test_compiled_by_the_compiler(monkeypatch, tmp_path):
    """In a cache of its own: what another process left there, half written, would be one more reason to fall back."""
    monkeypatch.setattr(decoding, "BACKEND", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    backbone = tiny_backbone(depth=2)
    method = build("fastv", 3, backbone.shape, layer=1, layer_scale="none").eval()
    inputs = prompts(backbone, 1, 2)
    expected = answers(backbone, method, inputs, False)[0]
    tokens, how = answers(backbone, method, inputs, True)
    assert torch.equal(tokens, expected) and how == decoding.COMPILED
