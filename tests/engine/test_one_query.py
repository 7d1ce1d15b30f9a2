"""Attention of one query is transformers' own, and takes its place for no longer than a run of steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vtc.engine import one_query
from vtc.testing import tiny_backbone


@pytest.mark.parametrize("heads, shared, value_width", [(4, 4, 8), (6, 2, 8), (6, 1, 8), (4, 2, 5)])
@pytest.mark.parametrize("scaling", (None, 0.3))
def test_it_is_what_sdpa_gives(heads, shared, value_width, scaling):
    torch.manual_seed(0)
    query, key = torch.randn(3, heads, 1, 8).double(), torch.randn(3, shared, 11, 8).double()
    value, mask = torch.randn(3, shared, 11, value_width).double(), torch.zeros(3, 1, 1, 11).double()
    mask[0, ..., :4], mask[1, ..., 9:] = torch.finfo(mask.dtype).min, torch.finfo(mask.dtype).min
    mask[2, ..., 3] = 0.7  # a token that counts twice
    module = SimpleNamespace(num_key_value_groups=heads // shared, is_causal=True)
    for each in (mask, None):
        expected, _ = sdpa_attention_forward(module, query, key, value, each, scaling=scaling)
        out, _ = one_query.attention(module, query, key, value, each, scaling=scaling)
        assert out.shape == (3, 1, heads, value_width) == expected.shape
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_halves_are_summed_in_float32():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, n, 16).bfloat16() for n in (1, 300, 300))
    out, _ = one_query.attention(None, query, key, value, None)
    exact, _ = one_query.attention(None, query.double(), key.double(), value.double(), None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, exact.bfloat16())


def test_layers_have_it_while_steps_run():
    decoder = tiny_backbone().decoder
    own = decoder.layers[0].self_attn.config
    assert own._attn_implementation == one_query.REPLACED
    with pytest.raises(ZeroDivisionError), one_query.replacing(decoder):
        assert own._attn_implementation == one_query.NAME
        raise ZeroDivisionError
    assert own._attn_implementation == one_query.REPLACED
    own._attn_implementation = "eager"  # what it wouldn't be the same as stays
    with one_query.replacing(decoder):
        assert own._attn_implementation == "eager"
