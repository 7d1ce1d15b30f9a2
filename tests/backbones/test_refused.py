"""Models that no family reads are refused in one line that says what stands in the way."""

from __future__ import annotations

import json

import pytest
import transformers
from checkpoints import shape_of

from vtc.backbones import refused, wrap
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.registry import families
from vtc.testing.models import TOWER, drawn

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def tiny_gemma3():
    text = SMALL | {"head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4, **TOWER},
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=4,
        eoi_token_index=5,
    )
    return drawn(lambda: transformers.Gemma3ForConditionalGeneration(config))


def test_gemma3_is_refused_for_what_its_layers_are() -> None:
    """What is said is so: windows in some layers, and rotary frequencies by kind."""
    model = tiny_gemma3()
    text = model.config.text_config
    assert {*text.layer_types} == {"sliding_attention", "full_attention"}
    assert {*text.rope_parameters} >= {"sliding_attention", "full_attention"}
    for refuses in (lambda: wrap(model), lambda: compressing(model, None).__enter__()):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="^model=gemma3: no backbone adapter for it: .*sliding window") as error:
            refuses()
        assert "both ways" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", refused.WHY)
def test_a_folder_of_one_says_why_under_any_backbone(kind: str, tmp_path) -> None:
    assert kind not in families.names()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=f"a {kind} model; this backbone reads qwen3_vl ones, and none reads") as error:
        shape_of({"name": "qwen3vl_4b", "pretrained": str(tmp_path)})
    assert refused.WHY[kind] in str(error.value) and "\n" not in str(error.value)


def test_qwen3_5_has_the_layers_that_it_is_refused_for() -> None:
    kinds = transformers.AutoConfig.for_model("qwen3_5").get_text_config().layer_types
    assert kinds.count("linear_attention") == 3 * kinds.count("full_attention") > 0
