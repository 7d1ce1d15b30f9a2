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


@dataclass
class Run:
    """One result file.

    Attributes:
        label: the method, with what tells it from other runs of the same method.
        scores: task → headline score.
        baseline: task → share of the uncompressed backbone, where the result knows it.
        floors: task → (blind, bag-of-attributes), where the result knows them.
        shares: task → score as a share of the full score (`results.share`): averages are made of these.
        scales: task → the full score.
    """

    path: Path
    result: Mapping[str, Any]
    label: str
    scores: dict[str, Estimate]
    baseline: dict[str, float]
    floors: dict[str, tuple[float | None, float | None]]
    groups: dict[str, str]
    shares: dict[str, Estimate]
    scales: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run of a result file. Raises ValueError where it isn't one."""
        result = results.load(path)
        scores, baseline, floors, groups, shares, scales = {}, {}, {}, {}, {}, {}
        for row in result["scores"]:
            task = row["task"]
            if task in scores or row.get("value") is None:  # a task's first row is its headline metric
                continue
            scores[task] = Estimate(float(row["value"]), row.get("stderr"))
            shares[task] = Estimate(float(results.share(row) or 0.0), results.share(row, "stderr"))
            scales[task] = float(row.get("scale") or 1.0)
            groups[task] = row.get("group") or "understanding"
            if row.get("baseline") is not None:
                baseline[task] = float(results.share(row, "baseline") or 0.0)
            floors[task] = (row.get("blind"), row.get("bag"))
        if not scores:
            raise ValueError(f"{path}: no scores")
        name = _name(result["method"])
        return cls(path, result, name, scores, baseline, floors, groups, shares, scales)

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

    @property
    def flops_ratio_with_vision(self) -> float | None:
        """The same with the vision tower and the projector counted in."""
        return self._cost("flops_ratio_with_vision")

    @property
    def speedup(self) -> float | None:
        """How much sooner the first token comes than without compression, measured in turns; one row."""
        return self._cost("ttft_speedup")

    @property
    def method_share(self) -> float | None:
        """The method's own work as a share of the time to the first token."""
        return self._cost("method_share")

    def _cost(self, key: str) -> float | None:
        return (self.result.get("efficiency") or {}).get(key)

    @property
    def is_baseline(self) -> bool:
        return self.method == BASELINE

    def members(self, group: str) -> list[str]:
        """The tasks of a group; every task for `all`."""
        return [t for t in self.scores if group in (ALL, self.groups[t])]

    def score(self, group: str = ALL) -> Estimate:
        """Mean over the tasks of a group, as shares of their full scores."""
        return Estimate.mean([self.shares[t] for t in self.members(group)])

    def retained(self, group: str = ALL) -> float | None:
        """Mean score relative to the uncompressed backbone's mean on the same tasks."""
        tasks = self.members(group)
        if self.is_baseline:
            return 1.0
        if not tasks or any(t not in self.baseline for t in tasks):
            return None
        whole = sum(self.baseline[t] for t in tasks)
        return sum(self.shares[t].value for t in tasks) / whole if whole else None


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
    inputs = list(inputs)
    explicit = [p for p in inputs if not p.exists()]
    if explicit:
        hint = "no results yet; make some with python -m vtc method=fwd2bot tokens=16"
        raise UserError(f"report.inputs={explicit[0]}: no such file or folder ({hint})")
    runs, notes = [], []
    for path in results.find(inputs):
        try:
            runs.append(Run.read(path))
        except ValueError as error:
            notes.append(f"left out: {error}")
    if not runs:
        where = ", ".join(map(str, inputs))
        raise UserError(
            f"report.inputs={where}: no results there; make some with python -m vtc method=fwd2bot tokens=16"
        )
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
        groups = list(dict.fromkeys(members[0].groups[t] for t in order))
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
    timed = [(r, r.speedup) for r in runs if r.speedup is not None and not r.is_baseline]
    slower = [f"{describe(r)} ({speedup:.2f}×)" for r, speedup in timed if speedup < SAME]
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
    skip = {
        *BUDGETS,
        "action",
        "output_dir",
        "resume",
        "dry_run",
        "report",
        "training",
        "profile",
        "schedule",
        "hydra",
        "benchmark",
    }
    out: dict[str, Any] = {}
    for key, value in config.items():
        if key in skip:
            continue
        out.update(_leaves(key, value))
    out.pop("backbone.name", None)
    if out.get("backbone.quantization") == "none":  # results of before it was an option don't have it
        del out["backbone.quantization"]
    return out


def _leaves(key: str, value: Any) -> dict[str, Any]:
    """Dotted keys → values; the parts of a composition have options of their own."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _leaves(f"{key}.{name}", inner).items()}
