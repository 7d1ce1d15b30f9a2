"""The order of methods in the papers' tables, held against the same methods' committed runs at equal tokens.

A paper's table gives every pair of methods in it: the better one is that with the higher mean score relative to the
uncompressed model, over the benchmarks that both report. Whether pocket agrees is judged as an ablation's claims are
(`vtc.ablations.claims`): paired by sample, Holm-corrected over all pairs of all papers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from vtc.ablations import claims
from vtc.ablations.experiments import Claim
from vtc.report import tables
from vtc.report.runs import Run

FILE = "benchmarks/orders.yaml"


def relative(a: Sequence[float | None], b: Sequence[float | None], whole: Sequence[float]) -> tuple[float, float]:
    """Mean scores of two methods relative to the uncompressed model, over the benchmarks that both report."""
    shared = [(x / w, y / w) for x, y, w in zip(a, b, whole, strict=True) if x is not None and y is not None]
    return sum(x for x, _ in shared) / len(shared), sum(y for _, y in shared) / len(shared)


def pairs(order: Mapping[str, Any]) -> list[tuple[int, str, str, str]]:
    """Of one entry of the file: (tokens, better, worse, what the paper says) of each pair of methods."""
    found = [(int(p["at"]), p["better"], p["worse"], "higher") for p in order.get("pairs", ())]
    for group in order.get("groups", ()):
        for (a, of_a), (b, of_b) in combinations(group["rows"].items(), 2):
            x, y = relative(of_a, of_b, order["whole"])
            if x < y:
                a, b, x, y = b, a, y, x
            found.append((int(group["at"]), a, b, f"{100 * x:.1f} % against {100 * y:.1f} %"))
    return found


def chosen(runs: Sequence[Run], method: str, tokens: int) -> Run | None:
    """The run of a method with its own settings at a budget."""
    mine = [r for r in runs if r.method == method and r.tokens == tokens]
    return min(mine, key=lambda r: (r.label != method, r.label), default=None)


def part(root: Path, runs: Sequence[Run]) -> str:
    """The page's tables, one a paper, and how many pairs agree."""
    from omegaconf import OmegaConf

    orders: Any = OmegaConf.to_container(OmegaConf.load(root / FILE))
    asked, rows = [], []
    outcomes: dict[tuple[str, int], dict[int, claims.Outcome]] = {}
    for order in orders:
        for tokens, better, worse, paper in pairs(order):
            for method in (better, worse):
                run = chosen(runs, method, tokens)
                if run is not None and (method, tokens) not in outcomes:
                    outcomes[method, tokens] = {0: claims.Outcome.read(run.path.parent)}
            about = f"{better} over {worse}"
            asked.append(Claim(about, paper, f"{better}-{tokens}", f"{worse}-{tokens}", (order["tasks"],)))
            rows.append((order["source"], tokens))
    verdicts = claims.judge(asked, {f"{method}-{tokens}": found for (method, tokens), found in outcomes.items()})
    lines = []
    for order in orders:
        cells = [
            [str(tokens), v.claim.text, v.claim.paper, *_found(v), v.verdict]
            for (source, tokens), v in zip(rows, verdicts, strict=True)
            if source == order["source"]
        ]
        header = ["tokens", "better over worse", "paper", "difference on pocket", "p (Holm)", "pocket"]
        lines += [f"**{order['source']}**, {order['about']}.", "", tables.markdown(header, cells), ""]
    counts = Counter(v.verdict for v in verdicts)
    told = ", ".join(
        f"{counts[name]} {name}" for name in (claims.AGREES, claims.DISAGREES, claims.OPEN, claims.MISSING)
    )
    return "\n".join([*lines, f"Of {len(verdicts)} pairs: {told}."]) + "\n"


def _found(verdict: claims.Verdict) -> list[str]:
    if verdict.difference is None or verdict.low is None or verdict.high is None:
        return ["–", "–"]
    shown = f"{verdict.difference:+.3f} [{verdict.low:+.3f}, {verdict.high:+.3f}]"
    return [shown, tables.p_text(verdict.p_holm)]
