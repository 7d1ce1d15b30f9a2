"""Results as the report sees them: without doubles, in groups that may be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc import results
from vtc.errors import UserError
from vtc.identity import digest
from vtc.statistics import Estimate

BASELINE = "none"
BUDGETS = ("tokens", "ratio", "compression", "flops")
ALL = "all"
SAME = 0.98  # a time to the first token that isn't told from that without compression

# Sections of a configuration that say which run it is; of several with the same the newest is shown.
CONFIGURATION = ("backbone", "method", "benchmark", *BUDGETS, "checkpoint", "layer_scale", "seed", "batch_size")

# Sections that tell no two runs of one setting apart.
ALIKE = {
    *BUDGETS,
    *("action", "output_dir", "resume", "dry_run", "report", "training", "profile", "schedule", "hydra", "benchmark"),
}


@dataclass
class Run:
    """One result file.

    Attributes:
        label: the method, with what tells it from other runs of the same method.
        rows: task → its row of `scores`, that of its headline metric.
    """

    path: Path
    result: Mapping[str, Any]
    label: str
    rows: dict[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run of a result file. Raises ValueError where it isn't one."""
        result = results.load(path)
        rows: dict[str, Mapping[str, Any]] = {}
        for row in result["scores"]:
            if row.get("value") is not None:
                rows.setdefault(row["task"], row)  # a task's first row is its headline metric
        if not rows:
            raise ValueError(f"{path}: no scores")
        return cls(path, result, _name(result["method"]), rows)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.result["config"]

    @property
    def id(self) -> str:
        return str(self.result["run"].get("id", ""))

    @property
    def created(self) -> str:
        return str(self.result["run"].get("created", ""))

    @property
    def method(self) -> str:
        return _name(self.result["method"])

    @property
    def tokens(self) -> float | None:
        """Visual tokens an image has left at the end."""
        return self.result["budget"].get("visual_tokens_out")

    @property
    def flops_ratio(self) -> float | None:
        """Prefill FLOPs relative to the uncompressed backbone."""
        return self.result["budget"].get("flops_ratio")

    def cost(self, key: str) -> float | None:
        """A number of `efficiency`; None where it wasn't measured."""
        return (self.result.get("efficiency") or {}).get(key)

    @property
    def is_baseline(self) -> bool:
        return self.method == BASELINE

    @property
    def scores(self) -> dict[str, Estimate]:
        """Task → headline score."""
        return {task: Estimate(row["value"], row.get("stderr")) for task, row in self.rows.items()}

    def group_of(self, task: str) -> str:
        return self.rows[task].get("group") or "understanding"

    def members(self, group: str) -> list[str]:
        """The tasks of a group; every task for `all`."""
        return [t for t in self.rows if group in (ALL, self.group_of(t))]

    def mean(self, key: str, group: str = ALL) -> float | None:
        """Mean of a number over the tasks of a group, as shares of their full scores; None where a task lacks it."""
        shares = [results.share(self.rows[task], key) for task in self.members(group)]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known and len(known) == len(shares) else None

    def score(self, group: str = ALL) -> Estimate:
        """Mean over the tasks of a group, as shares of their full scores."""
        rows = [self.rows[task] for task in self.members(group)]
        return Estimate.mean([Estimate(results.share(r) or 0.0, results.share(r, "stderr")) for r in rows])

    def retained(self, group: str = ALL) -> float | None:
        """Mean score relative to the uncompressed backbone's mean on the same tasks."""
        if self.is_baseline:
            return 1.0
        whole = self.mean("baseline", group)
        return self.score(group).value / whole if whole else None


@dataclass
class Setting:
    """Runs that may be compared: the same backbone on the same tasks.

    Attributes:
        runs: the baseline first, then by method and budget.
    """

    name: str
    runs: list[Run]
    tasks: list[str]
    groups: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Run | None:
        return next((r for r in self.runs if r.is_baseline), None)

    @property
    def methods(self) -> list[str]:
        """Labels of the methods that compress, in the order of the runs."""
        return list(dict.fromkeys(r.label for r in self.runs if not r.is_baseline))


def collect(inputs: Iterable[Path]) -> tuple[list[Setting], list[str]]:
    """Every result under `inputs`, newest of each configuration, grouped; and what the reader should know of them.

    Raises:
        UserError: an input doesn't exist, or there is no result in any.
    """
    inputs, hint = list(inputs), "make some with python -m vtc method=fwd2bot tokens=16"
    for path in inputs:
        if not path.exists():
            raise UserError(f"report.inputs={path}: no such file or folder (no results yet; {hint})")
    runs, notes = [], []
    for path in results.find(inputs):
        try:
            runs.append(Run.read(path))
        except ValueError as error:
            notes.append(f"left out: {error}")
    if not runs:
        raise UserError(f"report.inputs={', '.join(map(str, inputs))}: no results there; {hint}")
    runs, doubles = newest(runs)
    return settings(runs), notes + doubles


def newest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same configuration the newest; and a note where they were not the same run."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(digest({key: run.config.get(key) for key in CONFIGURATION}), []).append(run)
    kept, notes = [], []
    for group in same.values():
        group.sort(key=lambda r: r.created)
        last = group[-1]
        kept.append(last)
        older = sorted({r.id for r in group} - {last.id})
        if older:
            notes.append(
                f"{describe(last)}: {len(older) + 1} runs of this configuration with different weights or code; "
                f"the newest ({last.id}) is shown, not {', '.join(older)}"
            )
    return kept, notes


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Runs in groups of the same backbone and the same samples, each with labels that tell its runs apart."""
    together: dict[tuple, list[Run]] = {}
    for run in runs:
        backbone, benchmark = run.config.get("backbone", {}), run.config.get("benchmark", {})
        key = (
            _name(run.result["backbone"]),
            str(backbone.get("pretrained")),
            str(benchmark.get("name")),
            tuple(sorted(run.scores)),
            benchmark.get("limit"),
        )
        together.setdefault(key, []).append(run)
    out = []
    for (backbone, pretrained, benchmark, tasks, limit), members in sorted(together.items(), key=lambda kv: str(kv[0])):
        label(members)
        members.sort(key=lambda r: (not r.is_baseline, r.label, r.tokens or 0))
        several = sum(k[0] == backbone and k[2] == benchmark for k in together) > 1
        name = f"{backbone} on {benchmark}"
        if several:
            parts = [f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}"]
            parts += [f"{limit} samples each"] if limit else []
            parts += [pretrained] if pretrained != "None" else []
            name += f" ({', '.join(parts)})"
        order = list(members[0].scores)
        groups = list(dict.fromkeys(map(members[0].group_of, order)))
        out.append(Setting(name, members, order, groups, _provenance(members)))
    return out


def label(runs: Sequence[Run]) -> None:
    """Sets each run's label: its method, and the settings in which runs of that method differ, the budget aside."""
    for method in {r.method for r in runs}:
        mine = [r for r in runs if r.method == method]
        flat = [_flat(r.config) for r in mine]
        keys = sorted({k for f in flat for k in f})
        # An option that is missing in the file of an earlier version tells nothing apart.
        varying = [k for k in keys if len({str(f[k]) for f in flat if k in f}) > 1]
        for run, values in zip(mine, flat, strict=True):
            extras = [f"{k.removeprefix('method.')}={_short(values[k])}" for k in varying if values.get(k) is not None]
            run.label = method + (f" ({', '.join(extras)})" if extras else "")


def describe(run: Run) -> str:
    """A run in a few words."""
    return f"{run.label}, {number(run.tokens)} tokens" if run.tokens is not None else run.label


def number(value: float | None) -> str:
    """16, 16.5, or a dash."""
    return "–" if value is None else f"{value:.4g}"


def _provenance(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs of a table beside their configuration."""
    notes = []
    # Commits that change no number (docs, weights of another method) are none of a reader's business.
    hashed = all(r.result["run"].get("code") for r in runs)
    about = (
        ("code", "code (hashes of what decides numbers)") if hashed else ("git_commit", "code (git commits)"),
        ("device", "devices"),
        ("dtype", "dtypes"),
        ("attention", "attention implementations"),
    )
    for key, words in about:
        distinct = sorted({str(r.result["run"].get(key)) for r in runs} - {"None"})
        if len(distinct) > 1:
            notes.append(f"rows come from different {words}: {', '.join(name[:12] for name in distinct)}")
    versions = [r.result["run"].get("versions") or {} for r in runs]
    for package in sorted({k for v in versions for k in v}):
        distinct = sorted({str(v.get(package)) for v in versions})
        if len(distinct) > 1:
            notes.append(f"rows come from different versions of {package}: {', '.join(distinct)}")
    timed = [(r, r.cost("ttft_speedup")) for r in runs if not r.is_baseline]
    slower = [f"{describe(r)} ({speedup:.2f}×)" for r, speedup in timed if speedup is not None and speedup < SAME]
    if slower:
        notes.append(f"slower to the first token than no compression on this device: {', '.join(slower)}")
    return notes


def _name(section: Any) -> str:
    return str(section.get("name")) if isinstance(section, Mapping) else str(section)


def _short(value: Any) -> str:
    text = str(value)
    return text.rstrip("/").rsplit("/", 1)[-1] if "/" in text else text


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell two runs of one method on one setting apart: options, checkpoint, seed, dtype and so on."""
    out: dict[str, Any] = {}
    for key in config.keys() - ALIKE:
        out.update(_leaves(key, config[key]))
    out.pop("backbone.name", None)
    if out.get("backbone.quantization") == "none":  # results of before it was an option don't have it
        del out["backbone.quantization"]
    return out


def _leaves(key: str, value: Any) -> dict[str, Any]:
    """Dotted keys → values; the parts of a composition have options of their own."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _leaves(f"{key}.{name}", inner).items()}
