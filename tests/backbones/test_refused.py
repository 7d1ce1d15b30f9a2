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


def test_qwen3_5_is_refused_for_what_its_layers_are() -> None:
    model = SimpleNamespace(config=transformers.AutoConfig.for_model("qwen3_5"))
    for refuses in (lambda: wrap(model), lambda: compressing(model, None).__enter__()):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="^model=qwen3_5: no backbone adapter for it: .*linear attention") as error:
            refuses()
        assert "\n" not in str(error.value)


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
