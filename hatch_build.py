"""Puts `conf/` and `benchmarks/` into the wheel, without results, which no run needs; an editable installation reads
those of the checkout."""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version == "editable":  # force-include in pyproject.toml would leave a copy that grows stale there
            return
        for path in ("conf", *sorted(f"benchmarks/{p.name}" for p in Path(self.root, "benchmarks").iterdir())):
            if path != "benchmarks/results":
                build_data["force_include"][path] = f"vtc/_shipped/{path}"
