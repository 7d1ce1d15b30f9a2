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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vtc import results, shipped
from vtc.ablations import claims, experiments
from vtc.ablations.claims import AGREES, DISAGREES, MISSING, OPEN, UNTESTED, Judgement, Outcome
from vtc.ablations.experiments import Experiment
from vtc.report import tables
from vtc.statistics import Z

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
        folders = [argument for argument in argv if not argument.startswith("--")]
        for folder in folders or ["outputs"]:
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


def _folders(experiment: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """The `<variant>-s<seed>` folders of an experiment that hold a result."""
    for path in sorted(experiment.glob("*-s*")):
        if (name := RUN.fullmatch(path.name)) and (path / results.RESULT).is_file():
            yield path, name


def runs_of(folder: Path) -> dict[str, dict[int, Outcome]]:
    """Variant → seed → outcome, of an experiment's folder."""
    runs: dict[str, dict[int, Outcome]] = {}
    for path, name in _folders(folder):
        runs.setdefault(name["variant"], {})[int(name["seed"])] = Outcome.read(path)
    return runs


def collect(output: Path, target: Path) -> list[Path]:
    """Copies the results of `action=ablate` under `output` to `target`; paths of this machine become relative ones."""
    copied = []
    for experiment in experiments.names():
        for source, _ in _folders(output / "ablations" / experiment):
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
    everything = [experiments.load(name) for name in experiments.names()]
    runs = {e.name: runs_of(root / RESULTS / e.name) for e in everything}
    judgements = {e.name: claims.judge(e.claims, runs[e.name]) for e in everything}
    parts = [HEAD.format(results=RESULTS), summary(everything, judgements)]
    parts += [section(e, runs[e.name], judgements[e.name]) for e in everything]
    return "\n".join(parts)


def summary(everything: Sequence[Experiment], judgements: dict[str, list[Judgement]]) -> str:
    """Every claim with its verdict, and how many of each there are."""
    every = [j for e in everything for j in judgements[e.name]]
    counts = {kind: sum(j.verdict == kind for j in every) for kind in (AGREES, DISAGREES, OPEN, MISSING, UNTESTED)}
    totals = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    rows = [
        [f"[{e.source}](#{e.name})", j.claim.text, j.claim.paper, f"**{j.verdict}**", _effect(j)]
        for e in everything
        for j in judgements[e.name]
    ]
    header = ["experiment", "claim", "the paper's numbers", "here", "difference here (95 % interval)"]
    return f"## All claims\n\n{len(every)} claims: {totals}.\n\n{_left(header, rows)}\n"


def section(
    experiment: Experiment,
    runs: dict[str, dict[int, Outcome]],
    judgements: Sequence[Judgement] | None = None,
    heading: str = "##",
) -> str:
    """One experiment: the claim, the paper's numbers, the table, the verdicts, the command."""
    judgements = claims.judge(experiment.claims, runs) if judgements is None else judgements
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
    lines += [verdict_line(j) for j in judgements]
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
            means = [(o.result.get("means") or {}).get(group) or {} for o in by_seed.values()]
            row.append(_ranged([mean.get("value") for mean in means], ".3f", means[0].get("stderr")))
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


def verdict_line(judgement: Judgement) -> str:
    """A claim and what the results say to it, in one item of a list."""
    claim = judgement.claim
    if claim.untested:
        return f"- **{judgement.verdict}**: {claim.text} (paper: {claim.paper}): {claim.untested}."
    margin = f", margin {claim.within:g}" if claim.within else ""
    line = f"- **{judgement.verdict}**: {claim.text} ({claim.better} against {claim.worse}, {claim.subject}{margin}"
    line += f"; paper: {claim.paper})." if claim.paper else ")."
    if judgement.difference is None:
        return f"{line} {judgement.note[:1].upper()}{judgement.note[1:]}."
    if claim.cost:
        return f"{line} Ratio {judgement.difference:.2f}" + (f"; {judgement.note}." if judgement.note else ".")
    seeds = f"{judgement.seeds} seed{'s' if judgement.seeds > 1 else ''}"
    line += f" Difference {_effect(judgement)}, n = {judgement.n}, {seeds}"
    if judgement.seeds > 1:
        line += f" ({', '.join(f'{d:+.3f}' for d in judgement.spread)})"
    return f"{line}, p = {tables.p_text(judgement.p)}, Holm {tables.p_text(judgement.p_holm)}."


def _effect(judgement: Judgement) -> str:
    if judgement.difference is None:
        return "–"
    if judgement.claim.cost:
        return f"{judgement.difference:.2f} times"
    return f"{judgement.difference:+.3f} ({judgement.low:+.3f} to {judgement.high:+.3f})"


def _headline(outcome: Outcome, task: str) -> float | None:
    return next((row["value"] for row in outcome.result["scores"] if row["task"] == task), None)


def _groups(runs: dict[str, dict[int, Outcome]]) -> list[str]:
    scored = {g for by_seed in runs.values() for o in by_seed.values() for g in o.result.get("means") or {}}
    return [g for g in results.GROUPS if g in scored]


def _ranged(values: Sequence[float | None], form: str, stderr: float | None = None) -> str:
    """The mean; of several with their range, of one with half its 95 % interval where that is known."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{sum(known) / len(known):{form}}"
    if len(known) > 1 and min(known) != max(known):
        return f"{mean} ({min(known):{form}} to {max(known):{form}})"
    return f"{mean} ±{Z * stderr:.3f}" if stderr is not None and len(known) == 1 else mean


def _notes(runs: dict[str, dict[int, Outcome]]) -> list[str]:
    """What differs between the rows of a table beside their variant."""
    every = [o for by_seed in runs.values() for o in by_seed.values()]
    notes = []
    for key, words in (("code", "code (hashes of what decides numbers)"), ("device", "devices")):
        distinct = sorted({str(o.result["run"].get(key)) for o in every})
        if len(distinct) > 1:
            notes.append(f"Rows come from different {words}: {', '.join(distinct)}.")
    limits = sorted({str(o.result["config"]["benchmark"].get("limit")) for o in every} - {"None"})
    return notes + ([f"Scored on {', '.join(limits)} samples a task only."] if limits else [])


def _left(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
