"""How much of the speed-up that its FLOPs promise does each method realise up to the first token?

    python benchmarks/speed/promised.py --out benchmarks/results/speed/promised.json
    python benchmarks/speed/promised.py --batch 4 --out benchmarks/results/speed/promised-batch-4.json

Random weights in LLaVA-1.5 7B's shape at 1/8 of its width: 32 layers, 576 visual and 64 text tokens. Every method, at
16, 64 and 192 tokens or as near as it offers, takes turns with the model as transformers has it (`plain`); times are
ratios to `plain` of the same round, medians with quartiles. `none` is the engine with nothing to do. On a CPU it is the
time of the process on one thread, on a GPU the wall clock. The promise is the quotient of FLOPs, those of tower,
projector and the method's own work among them. `own` is the time of the method's own work (`vtc.profiling.parts`) as a
share of the plain prefill.

`control` is what transformers gains by itself, no method and no engine: the plain prefill with its decoder's time put
together of passes over as many tokens as are left in each layer, which take turns with all the others. It is what this
machine gives at most, where a matrix product of few rows may run at another rate than one of many; `of_control` is the
share of it that the method reaches. A method that runs passes of its own has none.

For 2,880 visual tokens: `--backbone llava_next_vicuna_7b --image-size 672`; `--width 1 --device cuda --dtype bfloat16`
is the real shape. About 15 minutes on one core; `turns.py` says how to do it bit by bit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from turns import SEED, TEXT, Session, arguments, quartiles

from vtc.backbones.adapters import tuner_layers
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.interface import Compressor, flops
from vtc.methods import build, make
from vtc.profiling import latency, parts
from vtc.profiling.run import count_passes
from vtc.registry import methods

TOGETHER = 12  # cases in a round


def nearest(name: str, tokens: int, backbone: Backbone) -> int | None:
    """The number that the method offers next to `tokens`; None for `none`, and for one that leaves no token at all."""
    if name == "none":
        return None
    return min(make(name, None, backbone.shape).offers(), key=lambda n: abs(n - tokens)) or None


def built(name: str, tokens: int, backbone: Backbone) -> Compressor:
    torch.manual_seed(SEED)  # of weights that would have been trained
    method = build(name, nearest(name, tokens, backbone), backbone.shape)
    method.to(backbone.device, backbone.dtype).eval().attach(backbone)
    return method


def prefill(backbone: Backbone, inputs: Any, method: Compressor | None) -> Callable[[], None]:
    """A pass over the prompt, under `method`; None: as transformers has it."""

    def run() -> None:
        with torch.inference_mode():
            if method is None:
                backbone.model(**inputs, use_cache=True, logits_to_keep=1)
                return
            with compressing(backbone, method):
                backbone.model(**inputs, use_cache=True, logits_to_keep=1)

    return run


def decode(backbone: Backbone, batch: int, tokens: int) -> Callable[[], None]:
    """The decoder as transformers has it, on so many tokens."""
    size = batch, tokens, backbone.shape.width
    embeddings = torch.randn(size, dtype=backbone.dtype, device=backbone.device)

    def run() -> None:
        with torch.inference_mode():
            backbone.decoder(inputs_embeds=embeddings, use_cache=True)

    return run


@dataclass(frozen=True)
class Work:
    """Of one row up to the first token.

    Attributes:
        flops: of all that ran.
        lengths: tokens in each layer of the decoder; None: the method runs passes of its own.
    """

    flops: float
    lengths: tuple[int, ...] | None

    @classmethod
    def of(cls, backbone: Backbone, method: Compressor, inputs: Any) -> Work:
        ran = count_passes(backbone, method, inputs)
        decoder = flops.total(backbone.shape, ran.prefill) + flops.head(backbone.shape)
        single = len(ran.prefill) == backbone.shape.depth
        lengths = tuple(call.queries for call in ran.prefill) if single else None
        return cls(decoder + ran.method_flops + ran.vision_flops, lengths)


def measure(session: Session, cases: list[Mapping[str, Any]]) -> None:
    """Adds a row for each of the cases, all of one batch and in turns with the plain model."""
    if tuner_layers(session.load().model):
        session.load(fresh=True)
    backbone, batch = session.load(), cases[0]["batch"]
    rounds = session.options.rounds * (3 if cases[0]["method"] == "none" else 1)
    inputs, one = latency.example(backbone, batch, TEXT), latency.example(backbone, 1, TEXT)
    under = [built(case["method"], case["asked"], backbone) for case in cases]
    whole = Work.of(backbone, build("none", None, backbone.shape), one)
    needed = [Work.of(backbone, method, one) for method in under]
    lengths = {n for work in (whole, *needed) for n in work.lengths or ()}
    own: list[list[float]] = [[] for _ in cases]

    def metered(number: int) -> Callable[[], None]:
        run = prefill(backbone, inputs, under[number])

        def meter() -> None:
            with parts.metering(backbone, under[number], session.clock, decoder=False) as spent:
                run()
            own[number].append(spent[parts.METHOD])

        return meter

    runs: dict[Any, Callable[[], None]] = {None: prefill(backbone, inputs, None)}
    runs |= {("decoder", n): decode(backbone, batch, n) for n in sorted(lengths)}
    runs |= {number: metered(number) for number in range(len(cases))}
    spent = list(session.turns(runs, rounds))
    for number, (case, method, work) in enumerate(zip(cases, under, needed, strict=True)):
        gains = [turn[None] / turn[number] for turn in spent]
        promised = whole.flops / work.flops
        shares = [mine / turn[None] for mine, turn in zip(own[number][-rounds:], spent, strict=True)]
        session.add({
            **case,
            "tokens": method.tokens,
            "promised": round(promised, 4),
            "measured": quartiles(gains),
            "realised": round(statistics.median(gains) / promised, 4),
            **controlled(spent, number, work, whole),
            "own": quartiles(shares, 5),
            "plain_s": round(statistics.median(turn[None] for turn in spent), 4),
            "rounds": rounds,
        })  # fmt: skip


def controlled(turns: Sequence[Mapping[Any, float]], number: int, work: Work, whole: Work) -> dict[str, Any]:
    """A row's `control` and `of_control`, where it has them: tower, projector and head as in the plain prefill, and the
    layers of the decoder each at its length."""
    if work.lengths is None or whole.lengths is None:
        return {}
    seconds = []
    for turn in turns:
        layers, plain = ([turn["decoder", n] for n in lengths] for lengths in (work.lengths, whole.lengths))
        seconds.append(turn[None] + statistics.mean(layers) - statistics.mean(plain))
    gains = [turn[None] / control for turn, control in zip(turns, seconds, strict=True)]
    shares = [control / turn[number] for turn, control in zip(turns, seconds, strict=True)]
    return {"control": quartiles(gains), "of_control": round(statistics.median(shares), 4)}


def groups(cases: Iterable[Mapping[str, Any]], backbone: Backbone) -> Iterator[list[Mapping[str, Any]]]:
    """Cases that take turns with each other: of one batch, at most `TOGETHER`; a method with adapters is by itself."""
    group: list[Mapping[str, Any]] = []
    for case in cases:
        alone = {each["method"] for each in (*group, case) if each["method"] == "none" or adapted(each, backbone)}
        apart = alone and {each["method"] for each in (*group, case)} != alone
        if group and (len(group) == TOGETHER or group[0]["batch"] != case["batch"] or apart or len(alone) > 1):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def adapted(case: Mapping[str, Any], backbone: Backbone) -> bool:
    return make(case["method"], nearest(case["method"], case["asked"], backbone), backbone.shape).adapter is not None


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--methods", nargs="*", default=[], help="default: every registered one")
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64, 192])
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    options = parser.parse_args()
    session = Session(options, ("method", "asked", "batch"), text_tokens=TEXT)
    cases = [
        {"method": name, "asked": tokens, "batch": batch}
        for batch in options.batch
        for name in ["none", *(n for n in options.methods or methods.names() if n != "none")]
        for tokens in distinct(name, options.tokens, session.load())
    ]
    for group in groups(session.missing(cases), session.load()):
        measure(session, group)


def distinct(name: str, budgets: list[int], backbone: Backbone) -> list[int]:
    """Those of the budgets that are not the same to the method as an earlier one."""
    return list({nearest(name, tokens, backbone): tokens for tokens in reversed(budgets)}.values())[::-1]


if __name__ == "__main__":
    main()
