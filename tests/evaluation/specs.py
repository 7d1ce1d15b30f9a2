"""Tasks as a run would score them."""

from __future__ import annotations


def spec_of(task: str, **benchmark):
    """A task as a run would score it, of the benchmark that its name begins with."""
    from vtc.evaluation.sources import source_of
    from vtc.settings import BenchmarkSettings

    name = benchmark.pop("name", "pocket" if task.startswith("pocket") else "mine")
    return source_of(BenchmarkSettings(name=name, tasks=(task,), **benchmark)).spec(task, seed=0)
