"""The decoder runner beyond what the contracts of `vtc.testing` cover."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from vtc.backbones import recomputation
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Compressor
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import packed
from vtc.testing.runs import generation, logits


def test_static_cache_is_refused_in_one_line() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    with compressing(backbone, build("fastv", 4, backbone.shape)):
        with pytest.raises(UserError, match="StaticCache") as error:
            cache = StaticCache(config=backbone.decoder.config, max_cache_len=64)
            backbone.model(**inputs, past_key_values=cache, use_cache=True)
        with pytest.raises(UserError, match="StaticCache"):
            generation(backbone, inputs, cache_implementation="static")
    assert "\n" not in str(error.value)


def test_sliding_windows_are_refused() -> None:
    backbone = tiny_backbone()
    backbone.decoder.config.layer_types = ["sliding_attention"] * 4
    with (
        pytest.raises(UserError, match="sliding_attention"),
        compressing(backbone, build("none", None, backbone.shape)),
    ):
        pass
    assert "forward" not in backbone.decoder.__dict__


def test_a_cache_of_another_method_is_refused() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    cache = DynamicCache(config=backbone.decoder.config)
    with compressing(backbone, build("fastv", 4, backbone.shape)):
        backbone.model(**inputs, past_key_values=cache)
    with compressing(backbone, build("random", 4, backbone.shape)), pytest.raises(UserError, match="cache"):
        backbone.model(input_ids=torch.tensor([[11]] * 3), past_key_values=cache)


def test_a_conversation_may_begin_without_an_image() -> None:
    backbone = tiny_backbone()
    method = build("avgpool", 4, backbone.shape)
    inputs = batch(backbone, before=(4, 4), after=(5, 5), images=(1, 1))
    with torch.no_grad(), compressing(backbone, method):
        whole = backbone.model(**inputs).logits
        cache = DynamicCache(config=backbone.decoder.config)
        backbone.model(input_ids=inputs["input_ids"][:, :4], past_key_values=cache)
        rest = backbone.model(
            input_ids=inputs["input_ids"][:, 4:], pixel_values=inputs["pixel_values"], past_key_values=cache
        )
    assert (whole[:, -5:] - rest.logits[:, -5:]).abs().max() < 1e-4


def test_padding_on_the_right_makes_no_difference() -> None:
    backbone = tiny_backbone()
    for name, tokens in (("fastv", 4), ("victor", 4), ("avgpool", 4), ("fwd2bot", 4)):
        method = build(name, tokens, backbone.shape)
        results = []
        for padding in ("left", "right"):
            inputs = batch(backbone, padding=padding)
            with compressing(backbone, method):
                out = logits(backbone, inputs)
            text = inputs["attention_mask"].bool() & (inputs["input_ids"] != backbone.image_token_id)
            results.append(out[text])
        assert (results[0] - results[1]).abs().max() < 1e-4, name


def test_hidden_states_can_be_asked_for() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, before=(2, 2), after=(5, 5), images=(1, 1))
    with compressing(backbone, build("fastv", 4, backbone.shape)), torch.no_grad():
        out = backbone.model(**inputs, output_hidden_states=True)
    assert [h.shape[1] for h in out.hidden_states[:-1]] == [23, 23, 23, 11]  # embeddings, layers 0-2
    assert out.hidden_states[-1].shape[1] == 23


def test_engines_nest() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    plain = logits(backbone, inputs)
    fastv, victor = build("fastv", 4, backbone.shape), build("victor", 4, backbone.shape)
    with compressing(backbone, fastv):
        outer = logits(backbone, inputs)
        with compressing(backbone, victor):
            inner = logits(backbone, inputs)
        assert torch.equal(logits(backbone, inputs), outer)
    with compressing(backbone, victor):
        assert torch.equal(logits(backbone, inputs), inner)
    assert torch.equal(logits(backbone, inputs), plain) and not torch.equal(inner, outer)


def test_a_bare_transformers_model_will_do() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    with compressing(backbone.model, build("fastv", 4, backbone.shape)) as engine:
        backbone.model(**inputs)
        assert engine.report.tokens_out == [4, 4, 4]
    with (
        pytest.raises(UserError, match="no backbone adapter"),
        compressing(torch.nn.Linear(2, 2), build("none", None, backbone.shape)),
    ):
        pass


def test_no_backend_is_asked_for_attentions() -> None:
    """The probe works where attention weights don't exist, and the layer's attention isn't replaced."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    backbone = tiny_backbone()
    before, calls = dict(ALL_ATTENTION_FUNCTIONS.items()), []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(*args, **kwargs):
        calls.append(kwargs.get("output_attentions"))
        return sdpa(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = spy
    try:
        with compressing(backbone, build("fastv", 4, backbone.shape)):
            logits(backbone, batch(backbone))
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert dict(ALL_ATTENTION_FUNCTIONS.items()) == before
    assert calls and not any(calls)


def test_blocks_see_the_prefix_and_themselves_only() -> None:
    """Against a mask written out pair by pair."""
    from vtc.engine.layout import pair_mask
    from vtc.interface import TokenSequence

    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0]]).bool()
    block = torch.tensor([[0, 0, 1, 1, 2, 2, 0]])
    text = torch.zeros_like(block)
    tokens = TokenSequence(torch.zeros(1, 7, 2), mask, text[None], role=text, origin=text, block=block, image=text - 1)
    got = pair_mask(tokens, mask[:, :0])[0, 0] == 0
    for q in range(7):
        for k in range(7):
            want = q == k or (k <= q and bool(mask[0, k]) and int(block[0, k]) in (0, int(block[0, q])))
            assert bool(got[q, k]) == want, (q, k)


def test_blocks_work_without_compression_too() -> None:
    backbone = tiny_backbone()
    inputs, blocks = packed(backbone)
    none = build("none", None, backbone.shape)
    with torch.no_grad(), compressing(backbone, none) as engine, engine.blocks(blocks):
        apart = backbone.model(**inputs, use_cache=False).logits
        inputs["input_ids"][:, 19] = 12  # a word of the first question
        changed = backbone.model(**inputs, use_cache=False).logits
    own = blocks == 1
    own[:, 17] = True  # the last of the prefix predicts the first word of the first question
    others = inputs["attention_mask"].bool() & (blocks != 1)
    assert torch.equal(apart[others], changed[others])
    assert not torch.equal(apart[own], changed[own])


def test_checkpointing_recomputes_under_the_adapter_of_its_pass() -> None:
    """Plain `checkpoint`, without the memory of the adapter, recomputes another pass than the one that ran."""
    from torch.utils.checkpoint import CheckpointError

    from vtc.backbones import adapters
    from vtc.testing.runs import instance

    backbone = tiny_backbone()
    method = instance(backbone, lambda b, t: build("fwd2bot", t, b.shape, rank=4), 4).train()
    backbone.model.train()
    recomputation.start(backbone.model)
    inputs, blocks = packed(backbone)

    def gradient() -> torch.Tensor:
        backbone.model.zero_grad()
        method.zero_grad()
        with compressing(backbone, method) as engine, engine.blocks(blocks):
            loss = backbone.model(**inputs, use_cache=False).loss
        loss.backward()
        return method.summary.grad.clone()

    gradient()
    remembering = adapters._remembering
    adapters._remembering = lambda checkpoint, layers, names: checkpoint
    try:
        with pytest.raises(CheckpointError):  # outside the passes no adapter is active
            gradient()
    finally:
        adapters._remembering = remembering


class DoublesUp(Compressor):
    """Inserts registers before layer 2, to see positions that change between segments."""

    name = "doubles"

    def layers(self) -> set[int]:
        return {2}

    def reduce(self, tokens, layer, context):
        return tokens.insert(torch.full((3, self.shape.width), 0.5))


def test_insertion_inside_the_decoder_keeps_later_turns_right() -> None:
    from vtc.testing.contracts import batch_equals_singles, cached_equals_uncached, turns_go_on_from_the_cache

    def make(backbone, tokens):
        return DoublesUp(tokens, backbone.shape)

    for contract in (batch_equals_singles, cached_equals_uncached, turns_go_on_from_the_cache):
        contract(tiny_backbone(), make, 16)


def test_input_embeddings_with_images_are_refused() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    embeddings = backbone.decoder.embed_tokens(inputs["input_ids"])
    with compressing(backbone, build("fastv", 4, backbone.shape)), pytest.raises(UserError, match="inputs_embeds"):
        backbone.model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])


def test_adapters_made_in_inference_mode_can_be_trained() -> None:
    backbone = tiny_backbone()
    method = build("fwd2bot", 4, backbone.shape, rank=4)
    inputs = batch(backbone)
    with torch.inference_mode(), compressing(backbone, method):
        backbone.model(**inputs)
    with compressing(backbone, method):
        backbone.model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert method.summary.grad is not None


@pytest.mark.parametrize("name", ["random", "avgpool", "fastv", "llavolta", "victor", "fwd2bot"])
def test_half_precision(name: str) -> None:
    backbone = tiny_backbone()
    method = build(name, 4, backbone.shape).bfloat16().eval()
    backbone.model.bfloat16()
    inputs = batch(backbone)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.no_grad(), compressing(backbone, method) as engine:
        out = generation(backbone, inputs)
        assert engine.report.tokens_out == [4, 4, 4]
    assert all(step.isfinite().all() for step in out.logits)


@pytest.mark.parametrize("way", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
def test_the_ledger_follows_the_rows_of_the_cache(way: str) -> None:
    """Rows of different lengths and images, moved about in the cache, go on as they would have in place."""
    backbone = tiny_backbone()
    inputs = batch(backbone, images=(1, 2, 0))
    rows = torch.tensor([0, 0, 1, 1, 2, 2] if way == "batch_repeat_interleave" else [2, 0, 1])
    word, mask = torch.full((3, 1), 11), torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
    position = mask.sum(1, keepdim=True) - 1
    results = []
    with torch.no_grad(), compressing(backbone, build("victor", 4, backbone.shape)):
        for order in (torch.arange(3), rows):
            cache = backbone.model(**inputs, use_cache=True).past_key_values
            if order is rows:
                getattr(cache, way)(2 if way == "batch_repeat_interleave" else rows)
            out = backbone.model(
                input_ids=word[order], attention_mask=mask[order], position_ids=position[order], past_key_values=cache
            )
            results.append(out.logits)
    assert (results[0][rows] - results[1]).abs().max() < 1e-5


def test_an_image_in_a_second_turn_is_chosen_from_as_in_one_pass() -> None:
    """The probed row reaches back over the first turn, which ran without images and with padding."""
    backbone = tiny_backbone()
    method = build("fastv", 9, backbone.shape)
    inputs = batch(backbone, before=(6, 9, 7), after=(4, 4, 4))
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    cut = 7
    with torch.no_grad(), compressing(backbone, method) as engine:
        whole = backbone.model(**inputs, position_ids=position).logits
        kept = engine.report.kept
        cache = backbone.model(
            input_ids=inputs["input_ids"][:, :cut],
            attention_mask=inputs["attention_mask"][:, :cut],
            position_ids=position[:, :cut],
            use_cache=True,
        ).past_key_values
        rest = backbone.model(
            input_ids=inputs["input_ids"][:, cut:],
            attention_mask=inputs["attention_mask"],
            position_ids=position[:, cut:],
            pixel_values=inputs["pixel_values"],
            past_key_values=cache,
        )
        assert [[i + cut for i in row] for row in engine.report.kept] == kept
    assert (whole[:, -4:] - rest.logits[:, -4:]).abs().max() < 1e-4


def test_a_cache_is_cropped_up_to_the_image_and_no_further() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, after=(6, 6, 6))
    with torch.no_grad(), compressing(backbone, build("victor", 4, backbone.shape)):
        cache = backbone.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="only its last 6 are whole"):
            cache.crop(-7)
        cache.crop(-6)
        with pytest.raises(ValueError, match="only its last 0 are whole"):
            cache.crop(-1)


def test_a_cropped_cache_goes_on_as_one_that_was_never_longer() -> None:
    """Padding in the next turn included: the ledger's masks end where the cache does."""
    backbone = tiny_backbone()
    inputs = batch(backbone, after=(6, 6, 6))
    short = {k: v if k == "pixel_values" else v[:, :-4] for k, v in inputs.items()}
    mask = torch.cat([short["attention_mask"], torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])], 1)
    turn = {"input_ids": torch.full((3, 3), 11), "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1)[:, -3:]}
    found = []
    with torch.no_grad(), compressing(backbone, build("victor", 4, backbone.shape)):
        for first in (inputs, short):
            cache = backbone.model(**first, use_cache=True).past_key_values
            if first is inputs:
                cache.crop(-4)
            for segment in cache.ledger.segments:
                assert segment.mask.shape[1] == cache.get_seq_length(segment.start)
            found.append(backbone.model(**turn, past_key_values=cache).logits[mask[:, -3:].bool()])
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_a_reset_cache_is_an_empty_one() -> None:
    backbone = tiny_backbone()
    inputs, others = batch(backbone), batch(backbone, before=(9, 2, 4), seed=2)
    with torch.no_grad(), compressing(backbone, build("victor", 4, backbone.shape)):
        cache = backbone.model(**others, use_cache=True).past_key_values
        cache.reset()
        assert cache.get_seq_length() == 0
        again = backbone.model(**inputs, past_key_values=cache).logits
        assert torch.equal(again, backbone.model(**inputs, use_cache=True).logits)


def test_every_beam_knows_where_the_prompt_of_its_row_ends() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, after=(6, 6, 6))
    end = inputs["input_ids"].shape[1] - torch.tensor([1, 5, 3])
    with torch.no_grad(), compressing(backbone, build("fastv", 4, backbone.shape)) as engine, engine.prompt_ends(end):
        backbone.model(**inputs)
        kept = engine.report.kept
        generation(backbone, inputs, count=1, num_beams=2)
        assert engine.report.kept == [row for row in kept for _ in range(2)]
    with torch.no_grad(), compressing(backbone, build("fastv", 4, backbone.shape)) as engine:
        backbone.model(**inputs)
        assert engine.report.kept != kept  # else this test shows nothing


def test_a_text_is_embedded_in_the_familys_prompt() -> None:
    """One text, by the tokenizer alone: the state of the prompt's last token."""
    from vtc.engine import encode_texts

    backbone = tiny_backbone()
    text = backbone.prompt("red circle\nSummarize the image in a few words.", images=0)
    ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
    words = torch.tensor([backbone.tokenizer("red circle", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        got = encode_texts(backbone, build("none", None, backbone.shape), words, torch.ones_like(words))
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["victor", "avgpool", "fastv"])
def test_an_image_at_the_end_predicts_what_follows(name: str) -> None:
    """Its last slot holds the state of what the method left last, though its own token may be gone."""
    backbone = tiny_backbone()
    inputs = batch(backbone, after=(0, 0, 0))
    end = torch.full((3,), inputs["input_ids"].shape[1] - 1)
    word = torch.full((3, 1), 11)
    longer = inputs | {
        "input_ids": torch.cat([inputs["input_ids"], word], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(word)], 1),
    }
    with compressing(backbone, build(name, 4, backbone.shape)) as engine, engine.prompt_ends(end):
        assert (logits(backbone, inputs)[:, -1] - logits(backbone, longer)[:, -2]).abs().max() < 1e-4
