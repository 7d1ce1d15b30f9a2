"""The tables of a report: which runs may stand in one, what it is called, and what tells its rows apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc import results
from vtc.allowed import brief
from vtc.errors import UserError
from vtc.identity import digest
from vtc.report import agreements
from vtc.report.runs import ALL, Run

BUDGETS = ("tokens", "ratio", "compression", "flops")
USUAL = "auto"  # what is chosen where a user says nothing
NAMED = 6  # runs in a note
SAME = 0.98  # a time to the first token that isn't told from that without compression

SUBJECT = ("backbone", "benchmark")  # what names a table, where there is but one of these
# Sections of a configuration that say which run of a table it is; of several with the same the newest is shown.
CONFIGURATION = ("backbone", "method", *BUDGETS, "budget", "checkpoint", "layer_scale", "seed", "batch_size")
# Sections that tell no two runs of one table apart.
ALIKE = {
    "action",
    "output_dir",
    "resume",
    "dry_run",
    "report",
    "compare",
    "training",
    "profile",
    "schedule",
    "hydra",
    "benchmark",
}


@dataclass
class Setting:
    """Runs that may be compared: the same backbone on the same questions, asked and scored in the same way.

    Attributes:
        about: which questions these are, in a sentence.
        runs: the baseline first, then by method and budget.
    """

    name: str
    about: str
    runs: list[Run]
    tasks: list[str]
    groups: list[str]
    notes: list[str] = field(default_factory=list)

    def reference(self, group: str = ALL) -> float | None:
        """Mean score of the baseline that most rows name."""
        means = Counter(mean for run in self.runs if (mean := run.mean("baseline", group)) is not None)
        baselines = (r.score(group).value for r in self.runs if r.is_baseline)
        return means.most_common(1)[0][0] if means else next(baselines, None)

    @property
    def methods(self) -> list[str]:
        """Labels of the methods that compress, in the order of the runs."""
        return list(dict.fromkeys(r.label for r in self.runs if not r.is_baseline))


def collect(
    inputs: Iterable[Path], track: Callable[[list[Path]], Iterable[Path]] = iter
) -> tuple[list[Setting], list[str]]:
    """Every result under `inputs`, newest of each configuration, grouped; and what the reader should know of them.

    Args:
        track: shows how far the reading of these files is.

    Raises:
        UserError: an input doesn't exist, or there is no result in any.
    """
    inputs, hint = list(inputs), "make some with python -m vtc method=fwd2bot tokens=16"
    for path in inputs:
        if not os.path.lexists(path):
            raise UserError(f"report.inputs={path}: no such file or folder (no results yet; {hint})")
    runs, notes = [], []
    forbidden: list[OSError] = []
    for path in track(list(results.find(inputs, forbidden.append))):
        try:
            runs.append(run := Run.read(path))
        except (ValueError, OSError) as error:
            notes.append(f"left out: {error}")
            continue
        notes += [run.note] if run.note else []
    notes += [f"left out: {error.filename}: {error.strerror}" for error in forbidden]
    if not runs:
        why = "".join(f"; {note}" for note in notes[:3]) + (f"; {len(notes) - 3} more" if len(notes) > 3 else "")
        raise UserError(f"report.inputs={', '.join(map(str, inputs))}: no results there{why or f'; {hint}'}")
    tables, doubles = settings(runs)
    return tables, notes + doubles


def commonest_budget(setting: Setting) -> float | None:
    """The number of tokens that most methods have a run of."""
    left = [(run.label, run.tokens) for run in setting.runs if not run.is_baseline]
    counts = Counter(tokens for _, tokens in set(left) if tokens is not None)
    return max(counts, key=lambda tokens: (counts[tokens], -tokens)) if counts else None


# Tables --------------------------------------------------------------------------------------------------------------


def questions(run: Run) -> dict[str, Any]:
    """What two runs must have in common to stand in one table."""
    config, data = run.config.get("benchmark") or {}, {task: row.get("data") for task, row in run.rows.items()}
    metrics = {t: [r.get("metric"), float(r.get("scale") or 1.0), r.get("version")] for t, r in run.rows.items()}
    return {
        "backbone": run.result["backbone"]["name"],
        "pretrained": (run.config.get("backbone") or {}).get("pretrained"),
        "benchmark": config.get("name"),
        "tasks": sorted(run.rows),
        "limit": config.get("limit"),
        "prompt": config.get("prompt"),
        **{key: config.get(key) for key in ("subset", "split", "columns")},
        "metric": metrics,
        # Results of earlier versions don't state what their data hold: those go by the path.
        "data": digest(data)[:12] if all(data.values()) else {"path": config.get("data")},
    }


def settings(runs: Sequence[Run]) -> tuple[list[Setting], list[str]]:
    """Runs in tables of the same questions, each with labels that tell its runs apart; and notes on those left out."""
    together: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        key = questions(run)
        together.setdefault(digest(key), (key, []))[1].append(run)
    notes: list[str] = []
    joined: dict[str, str] = {}
    alike_but: dict[str, list[str]] = {}  # what is asked, whatever the data → tables
    for name, (key, _) in together.items():
        alike_but.setdefault(digest({**key, "data": None}), []).append(name)
    for names in alike_but.values():
        # Data that come with the benchmark are those of the one table that is the same in all else, if there is one.
        unstated = [name for name in names if together[name][0]["data"] == {"path": None}]
        if len(unstated) == 1 and len(names) == 2:
            (fitting,) = [name for name in names if name not in unstated]
            key, members = together.pop(unstated[0])
            together[fitting][1].extend(members)
            joined[fitting] = f"{len(members)} rows of an earlier version don't state their data"
    titles = _titles([key for key, _ in together.values()], [members for _, members in together.values()])
    out: list[Setting] = []
    order = sorted(zip(together.items(), titles, strict=True), key=lambda item: str(item[0][1][0]))
    taken: Counter[str] = Counter()
    for (name, (key, members)), title in order:
        members, doubles = newest(members)
        label(members)
        agreements.complete(members)
        members.sort(key=lambda r: (not r.is_baseline, r.label, r.tokens or 0))
        taken[title] += 1
        title += f" · {taken[title]}" if taken[title] > 1 else ""
        tasks = list(members[0].rows)
        groups = list(dict.fromkeys(map(members[0].group_of, tasks)))
        provenance = ([joined[name]] if name in joined else []) + _provenance(members)
        out.append(Setting(title, _about(key, members), members, tasks, groups, provenance))
        notes += doubles
    return out, notes


def _titles(keys: Sequence[Mapping[str, Any]], members: Sequence[Sequence[Run]]) -> list[str]:
    """What each table is called: its subject, and its words that differ from those of others of that subject."""
    words = [_words(*table) for table in zip(keys, members, strict=True)]
    different: dict[tuple, dict[str, set[str]]] = {}
    for key, said in zip(keys, words, strict=True):
        for part, word in said.items():
            different.setdefault(tuple(key[x] for x in SUBJECT), {}).setdefault(part, set()).add(word)
    titles = []
    for key, said in zip(keys, words, strict=True):
        subject = tuple(key[x] for x in SUBJECT)
        telling = [word for part, word in said.items() if word and len(different[subject][part]) > 1]
        titles.append(" on ".join(map(str, subject)) + (f" ({', '.join(telling)})" if telling else ""))
    return titles


def newest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same configuration the newest; and a note where they were not the same run."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(digest(_configuration(run)), []).append(run)
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


def _configuration(run: Run) -> dict[str, Any]:
    """What says which run of a table it is."""
    return {key: run.config.get(key) for key in CONFIGURATION} | {"picture": run.picture}


def _words(key: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, str]:
    """What the questions of a table are, part by part; empty where there is nothing to say."""
    files = dict.fromkeys(_tail(data) for r in runs if (data := (r.config.get("benchmark") or {}).get("data")))
    metrics = dict.fromkeys(str(metric) for metric, _, _ in key["metric"].values() if metric)
    return {
        "pretrained": brief(key["pretrained"] or "", 60),
        "tasks": f"{len(key['tasks'])} task{'s' if len(key['tasks']) > 1 else ''}",
        "limit": f"{key['limit']} samples each" if key["limit"] else "",
        "data": f"data {', '.join(files)}" if files else "",
        "prompt": f"prompt {brief(key['prompt'], 60)}" if key["prompt"] else "the default prompt",
        **{p: f"{p} {brief(key[p], 60)}" if key[p] else "" for p in ("subset", "split", "columns")},
        "metric": f"metric {', '.join(metrics)}" if metrics else "",
    }


def _about(key: Mapping[str, Any], runs: Sequence[Run]) -> str:
    stated = f"hash {key['data']}" if isinstance(key["data"], str) else "the data are not stated"
    what = ", ".join(word for word in _words(key, runs).values() if word)
    return (
        f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {key['backbone']} on the same questions: "
        f"{key['benchmark']}, {what} ({', '.join(key['tasks'])}; {stated}). Other questions, prompts or metrics are "
        "another table."
    )


# Rows ----------------------------------------------------------------------------------------------------------------


def label(runs: Sequence[Run]) -> None:
    """Sets each run's label: its method, and the settings in which it differs from most runs of that method; where that
    leaves two rows of one number of tokens alike, all in which these differ; then the budget, at last the run's id."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    for mine in methods.values():
        _tell_apart(mine, [_flat(r.config, {*ALIKE, *BUDGETS}) for r in mine], usual=True)
    for same in _twins(runs):
        _tell_apart(same, [_flat(r.config, {*ALIKE, *BUDGETS}) for r in same])
    for same in _twins(runs):
        _tell_apart(same, [_flat(r.config, ALIKE) for r in same])
    for same in _twins(runs):
        _tell_apart(same, [{"run": r.id or str(r.path.parent)} for r in same])


def _twins(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that a reader can't tell apart, together."""
    rows: dict[tuple, list[Run]] = {}
    for run in runs:
        rows.setdefault((run.label, run.tokens), []).append(run)
    return [same for same in rows.values() if len(same) > 1]


def _tell_apart(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]], usual: bool = False) -> None:
    """Adds to the labels those settings in which the runs differ.

    Args:
        usual: leave out a value that more than half of the runs have, or the one that goes without saying.
    """
    names: dict[str, dict[str, str]] = {}
    for key in sorted({key for flat in settings for key in flat}):
        counts = Counter(str(flat[key]) for flat in settings if key in flat)
        if len(counts) > 1:
            # An option that is missing in the file of an earlier version tells nothing apart.
            values = {str(flat[key]) for flat in settings if flat.get(key) is not None}
            depth = next((n for n in range(1, 9) if len({_tail(v, n) for v in values}) == len(values)), 9)
            most, count = counts.most_common(1)[0]
            hidden = None if not usual else most if 2 * count > len(settings) else USUAL
            names[key] = {value: brief(_tail(value, depth), 60) for value in values if value != hidden}
    for run, flat in zip(runs, settings, strict=True):
        extras = [
            f"{key.removeprefix('method.')}={values[str(flat[key])]}"
            for key, values in names.items()
            if flat.get(key) is not None and str(flat[key]) in values
        ]
        head, bracket, rest = run.label.partition(" (")
        said = rest[:-1].split(", ") if bracket else []
        if extras := [extra for extra in dict.fromkeys(extras) if extra not in said]:
            run.label = f"{head} ({', '.join([*said, *extras])})"


def _tail(text: str, depth: int = 1) -> str:
    """The last parts of a path, without the name that every folder of weights has; of what is no path, all."""
    return "/".join(text.rstrip("/").removesuffix("/weights").split("/")[-depth:])


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
    whole = Counter(f"{mean:.4f}" for r in runs if (mean := r.mean("baseline")) is not None)
    if len(whole) > 1:
        rows = ", ".join(f"{mean} ({n})" for mean, n in whole.most_common())
        notes.append(f"rows are relative to different baselines; mean scores of these (and how many rows): {rows}")
    timed = [(r, r.cost("ttft_speedup")) for r in runs if not r.is_baseline]
    slower = [f"{describe(r)} ({speedup:.2f}×)" for r, speedup in timed if speedup is not None and speedup < SAME]
    if slower:
        more = f" and {len(slower) - NAMED} more" if len(slower) > NAMED else ""
        named = ", ".join(slower[:NAMED]) + more
        notes.append(f"slower to the first token than no compression on this device: {named}")
    return notes


def _flat(config: Mapping[str, Any], alike: set[str]) -> dict[str, Any]:
    """What may tell two runs of one method in one table apart: options, checkpoint, seed, dtype and so on."""
    out: dict[str, Any] = {}
    for key in config.keys() - alike:
        out.update(_leaves(key, config[key]))
    out.pop("backbone.name", None)
    out["budget"] = config.get("budget") or "each"
    out["picture"] = (config.get("benchmark") or {}).get("picture") or "own"
    if out.get("backbone.quantization") == "none":  # results of before it was an option don't have it
        del out["backbone.quantization"]
    return out


def _leaves(key: str, value: Any) -> dict[str, Any]:
    """Dotted keys → values; the parts of a composition have options of their own."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _leaves(f"{key}.{name}", inner).items()}
