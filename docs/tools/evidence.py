"""What stands behind each method: a reference, its authors' code, trained weights, the orders that papers report.

The first is what its class names (`vtc.interface.evidence`), the others are read from committed files: what authors'
code kept (benchmarks/results/parity.json), weights (benchmarks/pocket/weights), orders (benchmarks/orders.yaml against
the rows of the one table). What there isn't is said to be none.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalogue
import equal
import orders

from vtc.ablations import claims
from vtc.interface import Compressor
from vtc.registry import methods

PARITY = "benchmarks/results/parity.json"
WEIGHTS = "benchmarks/pocket/weights"
NONE = "none"


@dataclass(frozen=True)
class Standing:
    """What stands behind a method, in words; `none` where nothing does.

    Attributes:
        reference: the test that holds it to its equations.
        parity: whether its authors' code keeps the same tokens, at which commit, or why that can't be compared.
        weights: the budgets of the trained weights that are shipped.
        order: how many of the papers' orders that it is in pocket agrees with.
    """

    reference: str
    parity: str
    weights: str
    order: str


def of(name: str, root: Path) -> Standing:
    """What stands behind a built-in method."""
    cls: type[Compressor] = methods.get(name)
    reference = vars(cls).get("reference") or ""
    return Standing(
        f"`{reference}`" if reference else NONE,
        _parity(name, cls, root),
        _weights(name, cls, root),
        _order(name, root),
    )


def _parity(name: str, cls: type[Compressor], root: Path) -> str:
    recorded = parity(root).get(name)
    if recorded is None:
        why = vars(cls).get("incomparable")
        return f"{NONE}: {why}" if why else NONE
    cases = recorded["cases"]
    equal = sum(case["equal"] for case in cases)
    at = f"[{recorded['repository']}](https://github.com/{recorded['repository']}) at `{recorded['commit'][:7]}`"
    return f"{equal} of {len(cases)} cases equal, {recorded['what']}, {at}"


@functools.cache
def parity(root: Path) -> dict[str, Any]:
    """What was recorded of authors' code, by method."""
    file = root / PARITY
    recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["methods"] if file.is_file() else {}
    return recorded


def _weights(name: str, cls: type[Compressor], root: Path) -> str:
    ends = [folder.name.rpartition("-")[2] for folder in (root / WEIGHTS).glob(f"{name}-*")]
    budgets = sorted(int(end) for end in ends if end.isdigit())
    named = [f"{', '.join(map(str, budgets))} tokens"] if budgets else []
    named += ["any budget"] if "elastic" in ends else []
    named += ["four stages"] if "four" in ends else []
    if named:
        return f"pocket, {', '.join(named)}"
    return NONE if cls.needs_training else "needs none"


def _order(name: str, root: Path) -> str:
    counts = Counter(one.judgement.verdict for one in judged(root) if name in one.methods)
    kinds = (claims.AGREES, claims.DISAGREES, claims.OPEN, claims.MISSING)
    words = {claims.AGREES: "as in the papers", claims.DISAGREES: "the other way round", claims.OPEN: "can't be told",
             claims.MISSING: "not run"}  # fmt: skip
    return ", ".join(f"{counts[kind]} {words[kind]}" for kind in kinds if counts[kind]) or NONE


@functools.cache
def judged(root: Path) -> list[orders.Judged]:
    """The papers' orders, judged once for all pages."""
    return orders.judged(root, equal.outcomes(root))


def section(name: str, root: Path) -> str:
    """The rows of a method's page."""
    standing = of(name, root)
    rows = [
        ["a reference from the equations, in tests/methods", standing.reference],
        ["the same tokens as its authors' code", standing.parity],
        ["trained weights", standing.weights],
        ["pairs of methods whose order papers report, on pocket", standing.order],
    ]
    return catalogue.text_table(["what stands behind it", ""], rows)


def part(root: Path) -> str:
    """The table of docs/methods.md."""
    header = ["method", "reference, in tests/methods", "authors' code", "weights", "papers' orders on pocket"]
    rows = []
    for name in methods.names():
        if methods.path(name):
            standing = of(name, root)
            rows.append([f"`{name}`", standing.reference, standing.parity, standing.weights, standing.order])
    return catalogue.text_table(header, rows) + "\n"
