"""The papers' ablations as data: what `conf/experiment/<name>.yaml` says under `ablation`.

An experiment is a base configuration (the rest of its file) and named variants of it, each with overrides as one would
type them; and the paper's claims, as comparisons of variants that results can agree or disagree with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vtc import results, shipped
from vtc.errors import UserError, unknown

FLOORS = ("blind", "bag")  # what a model reaches that sees nothing, or attributes but not which belong together
COSTS = {
    "prefill_flops": "prefill FLOPs",
    "training_seconds": "seconds a training step",
    "training_flops": "FLOPs a training step",
}
SHIPPED = "shipped"


@dataclass(frozen=True)
class Variant:
    """One row of the paper's table.

    Attributes:
        both: overrides of its training and its evaluation; `train` and `test` those of one of them.
        weights: None: of its own training. `shipped`: those that come with vtc for its method and budget;
            `shipped/<folder>` a certain one. Anything else: those of the variant of that name.
    """

    name: str
    about: str
    both: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def trains(self) -> bool:
        return self.weights is None


@dataclass(frozen=True)
class Claim:
    """`better` scores higher than `worse` on `on`, or with `within`: not lower by more than that.

    Attributes:
        text: the claim in words; `paper`: the paper's numbers for it.
        on: a group of tasks, or the tasks; with `cost`, what costs less (`better` is the cheaper one then).
        within: how much lower still counts as not worse; 0 for a claim of more.
        untested: why it can't be tested at this scale; such a claim compares nothing.
    """

    text: str
    paper: str
    better: str
    worse: str
    on: tuple[str, ...]
    within: float = 0.0
    cost: bool = False
    untested: str = ""

    @property
    def subject(self) -> str:
        return COSTS[self.on[0]] if self.cost else ", ".join(self.on)


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper.

    Attributes:
        title: one line about it; `source`: paper and table.
        claim: what the paper concludes; `header`, `rows`: its numbers, as printed.
        here: what differs on pocket.
    """

    name: str
    title: str
    source: str
    claim: str
    here: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    variants: dict[str, Variant] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @property
    def command(self) -> str:
        return f"python -m vtc experiment={self.name}"


def names() -> list[str]:
    """Every experiment that has an `ablation`."""
    stems = [path.stem for path in _folder().glob("*.yaml") if "ablation" in _read(path)]
    return sorted(stems, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def load(name: str) -> Experiment:
    """The experiment of a file.

    Raises:
        UserError: no such experiment, or its file is wrong.
    """
    if name not in names():
        raise unknown("experiment", name, names())
    path = _folder() / f"{name}.yaml"
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return parse(_read(path)["ablation"], comments[1].lstrip("# "))


def parse(node: Mapping[str, Any], title: str = "") -> Experiment:
    """The experiment of an `ablation` node, plain dicts and lists.

    Raises:
        UserError: an unknown key, or a claim about a variant that isn't there.
    """
    where = f"ablation {node.get('name')}"
    _known(node, ("name", "source", "claim", "here", "paper", "variants", "claims"), where)
    variants = {str(n): _variant(str(n), v or {}, where) for n, v in node["variants"].items()}
    for variant in variants.values():
        of = variant.weights
        if of and of.split("/")[0] != SHIPPED and not (of in variants and variants[of].trains):
            trained = [n for n, v in variants.items() if v.trains]
            raise unknown(f"{where}: weights of {variant.name}", of, [*trained, SHIPPED])
    paper = node.get("paper") or {}
    return Experiment(
        str(node["name"]),
        title,
        str(node["source"]),
        " ".join(str(node["claim"]).split()),
        " ".join(str(node.get("here", "")).split()),
        tuple(map(str, paper.get("header", ()))),
        tuple(tuple(map(str, row)) for row in paper.get("rows", ())),
        variants,
        tuple(_claim(c, variants, where) for c in node["claims"]),
    )


def _variant(name: str, node: Mapping[str, Any], where: str) -> Variant:
    _known(node, ("about", "both", "train", "test", "weights"), f"{where}.{name}")
    lists = {key: tuple(map(str, node.get(key) or ())) for key in ("both", "train", "test")}
    if node.get("weights") and lists["train"]:
        raise UserError(f"{where}: {name} takes the weights of {node['weights']} and so has nothing to train")
    return Variant(name, str(node.get("about", "")), weights=node.get("weights"), **lists)


def _claim(node: Mapping[str, Any], variants: Mapping[str, Variant], where: str) -> Claim:
    _known(
        node, ("text", "paper", "tasks", "better", "worse", "not_worse", "cheaper", "than", "within", "untested"), where
    )
    if "untested" in node:
        return Claim(str(node["text"]), str(node.get("paper", "")), "", "", (), untested=str(node["untested"]))
    cost, margin = "cheaper" in node, float(node.get("within", 0.0))
    if "better" in node:
        better, worse = node["better"], node["worse"]
    else:
        better, worse = node["cheaper" if cost else "not_worse"], node["than"]
        if not cost and margin <= 0:
            raise UserError(f"{where}: {node['text']!r}: not_worse needs within=…, more than 0")
    for name in (better, worse):
        if name not in variants and not (name == worse and name in FLOORS):
            raise unknown(f"{where}: variant of {node['text']!r}", name, variants)
    on = (node["tasks"],) if isinstance(node["tasks"], str) else tuple(node["tasks"])
    if cost and on[0] not in COSTS:
        raise unknown(f"{where}: tasks", on[0], COSTS)
    if not cost and len(on) == 1 and on[0] not in (*results.GROUPS, "all") and "_" not in on[0]:
        raise unknown(f"{where}: tasks", on[0], (*results.GROUPS, "all"))
    return Claim(str(node["text"]), str(node.get("paper", "")), better, worse, on, margin, cost)


def _known(node: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in node:
        if key not in allowed:
            raise unknown(where, key, allowed)


def _folder() -> Path:
    return shipped.path("conf/experiment")


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
