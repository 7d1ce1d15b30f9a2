"""Models that no family reads are refused in one line that says what stands in the way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import transformers
from checkpoints import shape_of

from vtc.backbones import refused, wrap
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.registry import families


def test_qwen3_5_with_experts_is_refused_for_what_its_layers_are() -> None:
    model = SimpleNamespace(config=transformers.AutoConfig.for_model("qwen3_5_moe"))
    for refuses in (lambda: wrap(model), lambda: compressing(model, None).__enter__()):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="^model=qwen3_5_moe: no backbone adapter for it: .*shared one") as error:
            refuses()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", refused.WHY)
def test_a_folder_of_one_says_why_under_any_backbone(kind: str, tmp_path) -> None:
    assert kind not in families.names()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=f"a {kind} model; this backbone reads qwen3_vl ones, and none reads") as error:
        shape_of({"name": "qwen3vl_4b", "pretrained": str(tmp_path)})
    assert refused.WHY[kind] in str(error.value) and "\n" not in str(error.value)


def test_qwen3_5_with_experts_has_what_it_is_refused_for() -> None:
    text = transformers.AutoConfig.for_model("qwen3_5_moe").get_text_config()
    assert text.num_experts > text.num_experts_per_tok > 0 and text.shared_expert_intermediate_size > 0
