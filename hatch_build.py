"""Puts `conf/` and `benchmarks/` into the wheel; an editable installation reads those of the checkout."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version != "editable":  # force-include in pyproject.toml would leave a copy that grows stale there
            for folder in ("conf", "benchmarks"):
                build_data["force_include"][folder] = f"vtc/_shipped/{folder}"
