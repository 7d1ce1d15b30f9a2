"""`docs/ablations.md`: what the papers' ablations claim beside what pocket shows, from committed results.

python -m vtc.ablations.page                      # the page from benchmarks/results/ablations/
python -m vtc.ablations.page --check              # exit code 1 if the page would change
python -m vtc.ablations.page --collect outputs    # first copies what action=ablate left under outputs/
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtc import results, shipped
from vtc.ablations import claims, experiments
from vtc.ablations.claims import AGREES, DISAGREES, MISSING, OPEN, Outcome, Verdict
from vtc.ablations.experiments import Experiment
from vtc.report import tables

PAGE = "docs/ablations.md"
RESULTS = "benchmarks/results/ablations"
RUN = re.compile(r"(?P<variant>.+)-s(?P<seed>\d+)")
ABSOLUTE = re.compile(r"(?<![\w.~/-])/(?:[\w.@+=-]+/)*[\w.@+=-]+")
HEAD = """\
# The papers' ablations on pocket

Each section is one table or figure: what the paper claims, with its numbers as printed; what its variants score on
pocket; and whether that agrees. The comparisons are in [conf/experiment](../conf/experiment); the page is made by
`python -m vtc.ablations.page` from `{results}`, and no number on it is typed by hand but the papers'.

Pocket is a miniature and its trainings here are short: an agreement says that the effect shows in a small model as
well, a disagreement that it doesn't, or not yet. "Agrees" and "disagrees" mean that the paired difference on the same
samples is beyond chance at 5 %, after Holm's correction for the claims of its section; all else is "can't tell". A
claim of "no worse" comes with a margin, which is ours, as the papers give none. With one seed (n samples, 1 training
of each variant) the test speaks of these weights on other samples, not of other trainings; with several, the variance
between trainings is part of it.
"""


def main(argv: Sequence[str]) -> int:
    root = shipped.root()
    if "--collect" in argv:
        given = [a for a in argv if not a.startswith("--")]
        for folder in given or ["outputs"]:
            for copied in collect(Path(folder), root / RESULTS):
                print(f"collected {copied.relative_to(root)}")
    text = page(root)
    path = root / PAGE
    stale = not path.is_file() or path.read_text(encoding="utf-8") != text
    if "--check" in argv:
        print(f"{PAGE} is {'out of date: python -m vtc.ablations.page' if stale else 'up to date'}")
        return int(stale)
    if stale:
        results.write_text(path, text)
    print(f"{PAGE}: {'changed' if stale else 'as it was'}")
    return 0


# Results -------------------------------------------------------------------------------------------------------------


def runs_of(folder: Path) -> dict[str, dict[int, Outcome]]:
    """Variant → seed → outcome, of the `<variant>-s<seed>` folders of an experiment."""
    found: dict[str, dict[int, Outcome]] = {}
    for path in sorted(folder.glob("*-s*")):
        name = RUN.fullmatch(path.name)
        if name and (path / results.RESULT).is_file():
            found.setdefault(name["variant"], {})[int(name["seed"])] = Outcome.read(path)
    return found


def collect(output: Path, target: Path) -> list[Path]:
    """Copies the results of `action=ablate` under `output` to `target`; paths of this machine become relative ones."""
    copied = []
    for experiment in experiments.names():
        for source in sorted((output / "ablations" / experiment).glob("*-s*")):
            if not RUN.fullmatch(source.name) or not (source / results.RESULT).is_file():
                continue
            folder = target / experiment / source.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / results.SAMPLES, folder / results.SAMPLES)
            (folder / "training.json").unlink(missing_ok=True)
            for name in (results.RESULT, "training.json"):
                if (source / name).is_file():
                    content = json.loads((source / name).read_text(encoding="utf-8"))
                    results.write_json(folder / name, without_paths(content))
            copied.append(folder)
    return copied


def without_paths(value: Any) -> Any:
    """`value` with its absolute paths relative to the working folder, or, elsewhere, cut to their last three parts."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v) for v in value]
    return ABSOLUTE.sub(lambda m: _relative(m[0]), value) if isinstance(value, str) else value


def _relative(text: str) -> str:
    path = Path(text)
    for base in (Path.cwd(), shipped.root()):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return "/".join(path.parts[1:][-3:])


# The page ------------------------------------------------------------------------------------------------------------


def page(root: Path) -> str:
    """The whole page from the results under `root`; an experiment without any says so."""
    chosen = [experiments.load(name) for name in experiments.names()]
    runs = {e.name: runs_of(root / RESULTS / e.name) for e in chosen}
    verdicts = {e.name: claims.judge(e.claims, runs[e.name]) for e in chosen}
    parts = [HEAD.format(results=RESULTS), summary(chosen, verdicts)]
    parts += [section(e, runs[e.name], verdicts[e.name]) for e in chosen]
    return "\n".join(parts)


def summary(chosen: Sequence[Experiment], verdicts: dict[str, list[Verdict]]) -> str:
    """Every claim with its verdict, and how many of each there are."""
    every = [v for e in chosen for v in verdicts[e.name]]
    counts = {kind: sum(v.verdict == kind for v in every) for kind in (AGREES, DISAGREES, OPEN, MISSING)}
    told = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    rows = [
        [f"[{e.source}](#{e.name})", v.claim.text, v.claim.paper, f"**{v.verdict}**", _effect(v)]
        for e in chosen
        for v in verdicts[e.name]
    ]
    header = ["experiment", "claim", "the paper's numbers", "here", "difference here (95 % interval)"]
    return f"## All claims\n\n{len(every)} claims: {told}.\n\n{_left(header, rows)}\n"


def section(
    experiment: Experiment,
    runs: dict[str, dict[int, Outcome]],
    verdicts: Sequence[Verdict] | None = None,
    heading: str = "##",
) -> str:
    """One experiment: the claim, the paper's numbers, the table, the verdicts, the command."""
    verdicts = claims.judge(experiment.claims, runs) if verdicts is None else verdicts
    lines = [f"{heading} {experiment.name}", "", f"{experiment.title}", ""]
    lines += [f"**{experiment.source}.** {experiment.claim}", ""]
    if experiment.rows:
        lines += [tables.markdown(experiment.header, experiment.rows), ""]
    lines += [f"**Here.** {experiment.here}", "", f"    {experiment.command}", ""]
    known = [name for name in experiment.variants if name in runs]
    missing = [name for name in experiment.variants if name not in runs]
    if not known:
        lines += ["Not run.", ""]
    else:
        lines += [means_table(experiment, runs), ""]
        lines += ["<details><summary>task by task</summary>", "", task_table(experiment, runs), "", "</details>", ""]
        lines += [f"Not run: {', '.join(missing)}.", ""] if missing else []
        lines += [f"{note}\n" for note in _notes(runs)]
    lines += [verdict_line(v) for v in verdicts]
    return "\n".join(lines) + "\n"


def means_table(experiment: Experiment, runs: dict[str, dict[int, Outcome]]) -> str:
    """A row a variant: what it keeps, what it costs, the means of its scores; over seeds with the range."""
    columns: list[tuple[str, Callable[[Outcome], float | None], str]] = [
        ("tokens", lambda o: o.result["budget"].get("visual_tokens_out"), ".4g"),
        ("CR", lambda o: o.result["budget"].get("compression_ratio"), ".0%"),
        ("prefill FLOPs", lambda o: (o.result.get("efficiency") or {}).get("prefill_flops"), ".3g"),
        ("training FLOPs/step", lambda o: o.cost("training_flops"), ".3g"),
        ("training s/step", lambda o: o.cost("training_seconds"), ".2f"),
    ]
    rows, groups = [], _groups(runs)
    known = [c for c in columns if any(c[1](o) is not None for by_seed in runs.values() for o in by_seed.values())]
    for name, variant in experiment.variants.items():
        if name not in runs:
            continue
        by_seed = runs[name]
        row = [f"{name}: {variant.about}", ", ".join(map(str, by_seed))]
        row += [_ranged([get(o) for o in by_seed.values()], form) for _, get, form in known]
        for group in groups:
            found = [(o.result.get("means") or {}).get(group) or {} for o in by_seed.values()]
            row.append(_ranged([f.get("value") for f in found], ".3f", found[0].get("stderr")))
        rows.append(row)
    return tables.markdown(["variant", "seed", *[c[0] for c in known], *groups], rows)


def task_table(experiment: Experiment, runs: dict[str, dict[int, Outcome]]) -> str:
    """Headline scores task by task."""
    tasks = list(dict.fromkeys(t for by_seed in runs.values() for o in by_seed.values() for t in o.groups))
    rows = []
    for name in experiment.variants:
        if name in runs:
            values = [[_headline(o, task) for o in runs[name].values()] for task in tasks]
            rows.append([name, *[_ranged(v, ".3f") for v in values]])
    return tables.markdown(["variant", *[tables.short(t, tasks) for t in tasks]], rows)


def verdict_line(verdict: Verdict) -> str:
    """A claim and what the results say to it, in one item of a list."""
    claim = verdict.claim
    margin = f", margin {claim.within:g}" if claim.within else ""
    told = f"- **{verdict.verdict}**: {claim.text} ({claim.better} against {claim.worse}, {claim.subject}{margin}"
    told += f"; paper: {claim.paper})." if claim.paper else ")."
    if verdict.difference is None:
        return f"{told} {verdict.note[:1].upper()}{verdict.note[1:]}."
    if claim.cost:
        return f"{told} Ratio {verdict.difference:.2f}" + (f"; {verdict.note}." if verdict.note else ".")
    seeds = f"{verdict.seeds} seed{'s' if verdict.seeds > 1 else ''}"
    told += f" Difference {_effect(verdict)}, n = {verdict.n}, {seeds}"
    if verdict.seeds > 1:
        told += f" ({', '.join(f'{d:+.3f}' for d in verdict.spread)})"
    return f"{told}, p = {tables.p_text(verdict.p)}, Holm {tables.p_text(verdict.p_holm)}."


def _effect(verdict: Verdict) -> str:
    if verdict.difference is None:
        return "–"
    if verdict.claim.cost:
        return f"{verdict.difference:.2f} times"
    return f"{verdict.difference:+.3f} ({verdict.low:+.3f} to {verdict.high:+.3f})"


def _headline(outcome: Outcome, task: str) -> float | None:
    return next((row["value"] for row in outcome.result["scores"] if row["task"] == task), None)


def _groups(runs: dict[str, dict[int, Outcome]]) -> list[str]:
    found = {g for by_seed in runs.values() for o in by_seed.values() for g in o.result.get("means") or {}}
    return [g for g in results.GROUPS if g in found]


def _ranged(values: Sequence[float | None], form: str, stderr: float | None = None) -> str:
    """The mean; of several with their range, of one with half its 95 % interval where that is known."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{sum(known) / len(known):{form}}"
    if len(known) > 1 and min(known) != max(known):
        return f"{mean} ({min(known):{form}} to {max(known):{form}})"
    return f"{mean} ±{1.959964 * stderr:.3f}" if stderr is not None and len(known) == 1 else mean


def _notes(runs: dict[str, dict[int, Outcome]]) -> list[str]:
    """What differs between the rows of a table beside their variant."""
    every = [o for by_seed in runs.values() for o in by_seed.values()]
    notes = []
    for key, words in (("code", "code (hashes of what decides numbers)"), ("device", "devices")):
        found = sorted({str(o.result["run"].get(key)) for o in every})
        if len(found) > 1:
            notes.append(f"Rows come from different {words}: {', '.join(found)}.")
    limits = sorted({str(o.result["config"]["benchmark"].get("limit")) for o in every} - {"None"})
    return notes + ([f"Scored on {', '.join(limits)} samples a task only."] if limits else [])


def _left(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
