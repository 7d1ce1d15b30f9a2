"""The costs of a job: beside its scores, and by themselves (`action=profile`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import profiling, results
from vtc.job import Job
from vtc.settings import ProfileSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor


def efficiency_of(backbone: Backbone, method: Compressor, job: Job) -> dict[str, Any]:
    """The efficiency section: seconds on a CPU, for a section that `action=profile` measures at leisure."""
    quick = ProfileSettings(repeats=2, first_token_repeats=7) if backbone.device.type == "cpu" else ProfileSettings()
    return profiling.efficiency(backbone, method, job.profile or quick)


def profile(job: Job) -> Path:
    """`action=profile`: measure a method without scoring it; writes `profile.json` and returns its path."""
    from rich.console import Console

    from vtc.profiling.display import table

    console = Console()
    backbone, method = job.load()
    with console.status("measuring, in turns with the uncompressed model"):
        costs = profiling.efficiency(backbone, method, job.profile)
    console.print(table(costs, backbone.name, method.name, method.tokens))
    name = f"{backbone.name}-{method.name}" + (f"-{method.tokens}" if method.tokens is not None else "")
    path = job.output_dir / "profiles" / name / "profile.json"
    results.write_json(path, {"config": job.config(), "efficiency": costs})
    console.print(f"[dim]{path}[/dim]")
    return path
