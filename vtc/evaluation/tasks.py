"""What vtc's own task files (`benchmarks/tasks`) build on."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.task import ConfigurableMessagesTask


class OwnDownload(ConfigurableMessagesTask):
    """A task with a `download` of its own, which a YAML names with `class:`; that key is none of lmms-eval's."""

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
        model_name: str | None = None,
    ) -> None:
        config = {k: v for k, v in (config or {}).items() if k != "class"}
        super().__init__(data_dir, cache_dir, download_mode, config, model_name)
