"""The order of methods in the papers' tables, held against the same methods' rows of the one table at equal tokens.

A paper's table gives every pair of methods in it: the better one is that with the higher mean score relative to the
uncompressed model, over the benchmarks that both report. Whether pocket agrees is judged as an ablation's claims are
(`vtc.ablations.claims`): paired by sample, Holm-corrected over all pairs of all papers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from vtc.ablations import claims
from vtc.ablations.experiments import Claim
from vtc.report import tables

FILE = "benchmarks/orders.yaml"


def relative(a: Sequence[float | None], b: Sequence[float | None], whole: Sequence[float]) -> tuple[float, float]:
    """Mean scores of two methods relative to the uncompressed model, over the benchmarks that both report."""
    shared = [(x / w, y / w) for x, y, w in zip(a, b, whole, strict=True) if x is not None and y is not None]
    return sum(x for x, _ in shared) / len(shared), sum(y for _, y in shared) / len(shared)


def pairs(order: Mapping[str, Any]) -> list[tuple[int, str, str, str]]:
    """Of one entry of the file: (tokens, better, worse, what the paper says) of each pair of methods."""
    pairs = [(int(p["at"]), p["better"], p["worse"], "higher") for p in order.get("pairs", ())]
    for group in order.get("groups", ()):
        for (a, of_a), (b, of_b) in combinations(group["rows"].items(), 2):
            x, y = relative(of_a, of_b, order["whole"])
            if x < y:
                a, b, x, y = b, a, y, x
            pairs.append((int(group["at"]), a, b, f"{100 * x:.1f} % against {100 * y:.1f} %"))
    return pairs


@dataclass(frozen=True)
class Judged:
    """A pair of methods that a paper puts in order, and what the table says of it.

    Attributes:
        source: the paper and its table; tokens: the budget on pocket.
        methods: the better one in the paper, then the worse.
    """

    source: str
    tokens: int
    methods: tuple[str, str]
    judgement: claims.Judgement


def judged(root: Path, runs: claims.Runs) -> list[Judged]:
    """Every pair of every paper, in the order of the file.

    Args:
        runs: `method-tokens` → seed → outcome (`equal.outcomes`).
    """
    statements, rows = [], []
    for order in entries(root):
        for tokens, better, worse, paper in pairs(order):
            about = f"{better} over {worse}"
            statements.append(Claim(about, paper, f"{better}-{tokens}", f"{worse}-{tokens}", (order["tasks"],)))
            rows.append((order["source"], tokens, (better, worse)))
    judgements = claims.judge(statements, runs)
    return [Judged(*row, judgement) for row, judgement in zip(rows, judgements, strict=True)]


def entries(root: Path) -> list[dict[str, Any]]:
    """The papers' tables."""
    orders: list[dict[str, Any]] = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    return orders


def part(root: Path, runs: claims.Runs) -> str:
    """The page's tables, one a paper, and how many pairs agree."""
    every = judged(root, runs)
    lines = []
    for order in entries(root):
        cells = [
            [str(one.tokens), j.claim.text, j.claim.paper, *difference(j), str(j.seeds or "–"), j.verdict]
            for one in every
            if (j := one.judgement) and one.source == order["source"]
        ]
        header = ["tokens", "better over worse", "paper", "difference on pocket", "p (Holm)", "seeds", "pocket"]
        lines += [f"**{order['source']}**, {order['about']}.", "", tables.markdown(header, cells), ""]
    return "\n".join([*lines, f"Of {len(every)} pairs: {totals(every)}."]) + "\n"


def totals(every: Sequence[Judged]) -> str:
    """`22 agrees, 6 disagrees, …`."""
    counts = Counter(one.judgement.verdict for one in every)
    return ", ".join(
        f"{counts[name]} {name}" for name in (claims.AGREES, claims.DISAGREES, claims.OPEN, claims.MISSING)
    )


def difference(judgement: claims.Judgement) -> list[str]:
    """With its interval, and the corrected p-value."""
    if judgement.difference is None or judgement.low is None or judgement.high is None:
        return ["–", "–"]
    shown = f"{judgement.difference:+.3f} [{judgement.low:+.3f}, {judgement.high:+.3f}]"
    return [shown, tables.p_text(judgement.p_holm)]
