"""What the entry point `lmms_eval.models` gives lmms-eval, so that its own command knows `--model vtc`.

The class is the command line's, since it reads a configuration; here stands only where lmms-eval finds it.
"""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """One model, `vtc`: `lmms-eval --model vtc --model_args method=fwd2bot,tokens=16 --tasks …`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="vtc", chat_class_path="vtc.cli.lmms_eval_model.RegisteredModel")]
