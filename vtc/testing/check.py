"""Whether a method is right: every contract by itself, and of one that is violated the smallest case that shows it.

`python -m vtc action=check method=fastv` says it on the screen, `check_compressor` in Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vtc.backbones.base import Backbone
from vtc.backbones.quiet import quiet
from vtc.errors import UserError
from vtc.interface import Compressor
from vtc.job import Job
from vtc.methods import build
from vtc.registry import imported
from vtc.testing.contracts import CONTRACTS
from vtc.testing.models import Extent, extent
from vtc.testing.runs import Make
from vtc.testing.verb_contracts import devices_and_dtypes_stay, it_runs

Contract = Callable[[Backbone, Make, int], "str | None"]
PAGE = "docs/contracts.md"
SUBSETS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))  # of the three rows that a contract has at most
BASIC = (it_runs, devices_and_dtypes_stay)  # say what is wrong where nothing else can be said
# A model of random weights for each family, as the contracts need it.
TINY = {
    "llava": "vtc.testing.models:tiny_backbone",
    "llava_next": "vtc.testing.tiny_llava:tiny_llava_next",
    "llava_onevision": "vtc.testing.tiny_llava:tiny_llava_onevision",
    "video_llava": "vtc.testing.tiny_llava:tiny_video_llava",
    "qwen2_vl": "vtc.testing.tiny_qwen:tiny_qwen2_vl",
    "qwen2_5_vl": "vtc.testing.tiny_qwen:tiny_qwen2_5_vl",
    "qwen3_5": "vtc.testing.tiny_qwen:tiny_qwen3_5",
    "qwen3_vl": "vtc.testing.tiny_qwen:tiny_qwen3_vl",
    "qwen3_vl_moe": "vtc.testing.tiny_qwen:tiny_qwen3_vl_moe",
    "internvl": "vtc.testing.tiny_tiles:tiny_internvl",
    "gemma3": "vtc.testing.tiny_gemma:tiny_gemma3",
    "idefics3": "vtc.testing.tiny_tiles:tiny_idefics3",
    "smolvlm": "vtc.testing.tiny_tiles:tiny_smolvlm",
}
# A picture as small as a tile is seen twice, and each token would have its double: choices would be rounding's.
TINY_OPTIONS: dict[str, dict[str, Any]] = {"llava_onevision": {"image_size": 24}, "video_llava": {"frames": True}}


@dataclass(frozen=True)
class Finding:
    """What became of one contract.

    Attributes:
        contract: its name; about: what must be true.
        state: `holds`, `violated`, `does not apply`, or `not run` where the method doesn't run at all.
        violation: what was seen instead; the reason, where it doesn't apply.
        case: the smallest case that shows it.
        read: where more is said about the contract.
    """

    contract: str
    about: str
    state: str
    violation: str = ""
    case: str = ""

    @property
    def read(self) -> str:
        return f"{PAGE}#{self.contract}"

    def __str__(self) -> str:
        mark = {"holds": "ok", "violated": "FAIL", "does not apply": "-", "not run": "?"}[self.state]
        line = f"  {mark:<5} {self.contract:<36} {self.about}"
        if self.state == "does not apply":
            return f"  {mark:<5} {self.contract:<36} doesn't apply: {self.violation}"
        if self.state != "violated":
            return line
        said = {"violated": self.violation, "smallest": self.case, "read": self.read}
        return "\n".join([line, *(f"          {key:<10}{words}" for key, words in said.items())])


@dataclass(frozen=True)
class CheckReport:
    """What became of all contracts of a method on one backbone."""

    method: str
    backbone: str
    tokens: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every contract held."""
        return not self.violated

    @property
    def violated(self) -> tuple[str, ...]:
        """The names of the contracts that don't hold."""
        return tuple(finding.contract for finding in self.findings if finding.state == "violated")

    def __str__(self) -> str:
        counts = [f"{sum(f.state == state for f in self.findings)} {words}" for state, words in (
            ("holds", "hold"), ("violated", "violated"), ("does not apply", "don't apply"), ("not run", "not run"),
        )]  # fmt: skip
        head = f"{self.method} tokens={self.tokens} on {self.backbone}"
        tail = f"{len(self.findings)} contracts: {', '.join(count for count in counts if not count.startswith('0 '))}"
        return "\n".join([head, *map(str, self.findings), tail])


def check_compressor(
    method: str | type[Compressor] | Make,
    backbone: str | Callable[[], Backbone] = "llava",
    tokens: int | None = None,
    options: Mapping[str, Any] | None = None,
    contracts: Sequence[Contract] = tuple(CONTRACTS),
) -> CheckReport:
    """Whether a method holds the contracts on a tiny model of random weights, in about half a minute.

    Args:
        method: its name, its class, or a function of a backbone and a number of tokens that makes one.
        backbone: the name of a family, or a function that makes a backbone: each contract gets one of its own.
        tokens: the budget; None: about a third of the visual tokens, as the method offers them.
        options: of the method.

    Raises:
        UserError: an unknown method or family; a budget, an option or a backbone that the method refuses.
    """
    fresh = partial(tiny, backbone) if isinstance(backbone, str) else backbone
    make = _make(method, options or {})
    model = fresh()
    tokens = _budget(make(model, None)) if tokens is None else tokens
    name = make(model, tokens).name or getattr(method, "__name__", "method")
    shape = model.shape
    where = f"a tiny {model.model_type} ({shape.visual_tokens} visual tokens, {shape.depth} layers)"
    findings: list[Finding] = []
    runs = True
    for contract in contracts:
        if runs or contract in BASIC:
            findings.append(_finding(contract, fresh, make, tokens))
            runs = runs and not (contract is it_runs and findings[-1].state == "violated")
        else:
            findings.append(Finding(contract.__name__, _about(contract), "not run"))
    return CheckReport(name, where, tokens, tuple(findings))


def tiny(family: str) -> Backbone:
    """A model of random weights of a family.

    Raises:
        UserError: a family without one.
    """
    if family not in TINY:
        raise UserError(
            f"backbone.family={family}: vtc has no tiny model of it to check on; in Python, "
            "vtc.testing.check_compressor(…, backbone=<a function that makes one>)"
        )
    model: Backbone = imported(TINY[family])(**TINY_OPTIONS.get(family, {}))
    return model


def check(job: Job) -> CheckReport:
    """`action=check`: prints what became of each contract.

    Raises:
        UserError: as `check_compressor`; contracts that are violated, by name.
    """
    tokens = None
    if job.budget.requested:
        tokens = build(
            job.method.name, job.budget.resolve, tiny(job.backbone.family).shape, **job.method.options
        ).tokens
    with quiet():  # of tiny models with settings that no checkpoint has
        report = check_compressor(job.method.name, job.backbone.family, tokens, job.method.options)
    print(report, flush=True)
    if not report.passed:
        names = ", ".join(report.violated)
        raise UserError(f"action=check, method={job.method.name}: {len(report.violated)} contracts violated: {names}")
    return report


def _make(method: str | type[Compressor] | Make, options: Mapping[str, Any]) -> Make:
    if isinstance(method, str):
        return lambda backbone, tokens: build(method, tokens, backbone.shape, **options)
    if isinstance(method, type):
        return lambda backbone, tokens: method(tokens, backbone.shape, **options).build()
    return method


def _budget(method: Compressor) -> int:
    """About a third of the visual tokens, of what the method offers; all, of one that acts nowhere."""
    whole = method.shape.visual_tokens or 0
    offers = [count for count in method.offers() if 0 < count < whole]
    if not method.layers() or not offers:
        return whole
    return min(offers, key=lambda count: abs(count - whole / 3))


def _about(contract: Contract) -> str:
    return " ".join((inspect.getdoc(contract) or "").split("\n\n")[0].split())


def _finding(contract: Contract, fresh: Callable[[], Backbone], make: Make, tokens: int) -> Finding:
    limits = Extent()
    reason, error = _outcome(contract, fresh, make, tokens, limits)
    if error is None:
        return Finding(contract.__name__, _about(contract), "does not apply" if reason else "holds", reason or "")
    limits, tokens, error = _smallest(contract, fresh, make, tokens, limits, error)
    return Finding(contract.__name__, _about(contract), "violated", _words(error), f"{limits}, tokens={tokens}")


def _outcome(
    contract: Contract, fresh: Callable[[], Backbone], make: Make, tokens: int, limits: Extent
) -> tuple[str | None, Exception | None]:
    """Why the contract doesn't apply, or how it is violated."""
    try:
        with extent(limits):
            return contract(fresh(), make, tokens), None
    except Exception as error:
        return None, error


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (AssertionError, UserError)) else f"{type(error).__name__}: {text}"


def _smallest(
    contract: Contract, fresh: Callable[[], Backbone], make: Make, tokens: int, limits: Extent, error: Exception
) -> tuple[Extent, int, Exception]:
    """Fewer rows, fewer words, fewer tokens, as long as the contract is violated.

    A smaller case counts where random dropping holds the contract in it, so that the case itself is sound.
    """
    for smaller, count in _candidates(limits, tokens, make, fresh):
        _, random = _outcome(contract, fresh, _reference, count, Extent(smaller.chosen, smaller.words))
        _, still = (None, None) if random else _outcome(contract, fresh, make, count, smaller)
        if still is not None and type(still) is type(error):
            limits, tokens, error = smaller, count, still
            break
    return limits, tokens, error


def _candidates(limits: Extent, tokens: int, make: Make, fresh: Callable[[], Backbone]) -> Iterator[tuple[Extent, int]]:
    """Cases from the smallest on."""
    offers = [count for count in make(fresh(), tokens).offers() if count <= tokens]
    counts = [*dict.fromkeys([min(offers, default=tokens), tokens])]
    for chosen in (*SUBSETS, None):
        for words in (1, None):
            for count in counts:
                if (chosen, words, count) != (None, None, tokens):
                    yield Extent(chosen, words), count


def _reference(backbone: Backbone, tokens: int | None) -> Compressor:
    return build("random", tokens, backbone.shape)
