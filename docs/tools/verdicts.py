"""Verdicts on what papers conclude (`benchmarks/claims.yaml`), from the rows of the one table, by one rule.

Each comparison is judged as an ablation's claims are (`vtc.ablations.claims`): paired by sample, all p-values of the
page Holm-corrected; it agrees or disagrees below 0.05, else it can't tell. A conclusion AGREES if every comparison
does, DISAGREES if every one that can tell does, is PARTLY so where some agree and others don't, and else can't be told;
those that aren't run yet are counted, and decide nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vtc.ablations import claims
from vtc.ablations.claims import AGREES, DISAGREES, MISSING, OPEN, Judgement
from vtc.ablations.experiments import Claim
from vtc.report import tables

FILE = "benchmarks/claims.yaml"
PARTLY, UNTESTED = "partly", "not tested"


def comparisons(entry: Mapping[str, Any]) -> list[Claim]:
    """Those of a conclusion; a run is called `method-tokens`, or `none`."""
    out = []
    for test in entry.get("tests", ()):
        for tokens in test.get("at", (None,)):
            better = _named(test["better"], tokens)
            for tasks in test["tasks"]:
                for worse in (_named(method, tokens) for method in test["than"]):
                    text, within = f"{better} against {worse}, {tasks}", float(test.get("within", 0.0))
                    out.append(Claim(text, entry["paper"], better, worse, (tasks,), within))
    return out


def _named(method: str, tokens: int | None) -> str:
    return method if tokens is None or method == "none" else f"{method}-{tokens}"


def verdict(judged: Sequence[str]) -> str:
    """Of a conclusion, from those of its comparisons."""
    run = {each for each in judged if each != MISSING}
    told = run & {AGREES, DISAGREES}
    if not run:
        return MISSING
    if run == {AGREES}:
        return AGREES
    if told == {DISAGREES}:
        return DISAGREES
    return PARTLY if AGREES in told else OPEN


def shown(judged: Sequence[str]) -> str:
    """The verdict, and whether comparisons are missing from it."""
    whole = verdict(judged)
    return f"**{whole}**" + (", so far" if MISSING in judged and whole != MISSING else "")


def interval(judgement: Judgement) -> str:
    if judgement.difference is None:
        return f"{judgement.claim.text}: {judgement.note}"
    allowed = f", allowed -{judgement.claim.within:g}" if judgement.claim.within else ""
    bounds = f"[{judgement.low:+.3f}, {judgement.high:+.3f}]"
    return f"{judgement.claim.text}: {judgement.difference:+.3f} {bounds}{allowed}: {judgement.verdict}"


def part(root: Path, runs: claims.Runs) -> str:
    """The page's table, and its comparisons with their intervals below it.

    Args:
        runs: `method-tokens`, or `none` → seed → outcome (`equal.outcomes`).
    """
    entries = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    every = [comparisons(entry) for entry in entries]
    judgements = claims.judge([claim for each in every for claim in each], runs)
    rows, details, at = [], [], 0
    for entry, each in zip(entries, every, strict=True):
        mine, at = judgements[at : at + len(each)], at + len(each)
        counts = Counter(j.verdict for j in mine)
        said = ", ".join(f"{n} {what}" for what, n in counts.items()) or " ".join(entry["untested"].split())
        whole = shown([j.verdict for j in mine]) if mine else f"**{UNTESTED}**"
        rows.append([entry["claim"], entry["paper"], whole, said])
        if mine:
            details += ["", f"{entry['claim']}:", "", *(f"- {interval(j)}" for j in mine)]
    table = tables.markdown(["conclusion", "paper", "pocket", "comparisons"], rows)
    summary = "<details><summary>Each comparison: difference of means with its 95 % interval</summary>"
    return "\n".join([table, "", summary, *details, "", "</details>", ""])
