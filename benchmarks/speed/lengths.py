"""What does transformers itself gain from a shorter prompt, as a share of what the FLOPs promise?

    python benchmarks/speed/lengths.py --out benchmarks/results/speed/lengths.json

No method and no engine: tower and projector as ever, and the decoder on as many tokens as would be left, from layer 0
or from a later layer on. It is what a method could realise at most on this machine, where a matrix product of few rows
may run at another rate than one of many. Shape and times as in `promised.py`; `realised` is the gain over the promise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from promised import prefill
from turns import TEXT, Session, arguments, quartiles

from vtc.interface import flops
from vtc.profiling import latency

LAYERS = (0, 2, 3)  # avgpool's, FastV's, Victor's


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64, 192])
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    options = parser.parse_args()
    session = Session(options, ("batch",), text_tokens=TEXT)
    for case in session.missing([{"batch": batch} for batch in options.batch]):
        session.add({**case, "rounds": options.rounds, "gains": measure(session, options.tokens, case["batch"])})


def measure(session: Session, budgets: list[int], batch: int) -> list[dict[str, Any]]:
    backbone = session.load()
    inputs, shape = latency.example(backbone, batch, TEXT), backbone.shape
    full, width = shape.visual_tokens or 0, shape.width
    whole = torch.randn(batch, full + TEXT, width, dtype=backbone.dtype, device=backbone.device)

    def decode(tokens: int) -> Callable[[], Any]:
        embeddings = whole[:, : tokens + TEXT]

        def run() -> None:
            with torch.inference_mode():
                backbone.decoder(inputs_embeds=embeddings, use_cache=True)

        return run

    def see() -> None:
        with torch.inference_mode():
            backbone.core.get_image_features(pixel_values=inputs["pixel_values"])

    runs: dict[Any, Callable[[], Any]] = {"plain": prefill(backbone, inputs, None), "see": see}
    turns = list(session.turns(runs | {n: decode(n) for n in [full, *budgets]}, session.options.rounds))
    gains = []
    for tokens in budgets:
        for layer in LAYERS:
            early, vision = layer / shape.depth, flops.vision(shape)
            ratios = []
            for t in turns:
                other = t["plain"] - t["see"] - t[full]  # the head and what is around the decoder
                ratios.append(t["plain"] / (t["see"] + other + early * t[full] + (1 - early) * t[tokens]))
            seen = layer * flops.layer(shape, full + TEXT) + (shape.depth - layer) * flops.layer(shape, tokens + TEXT)
            head = flops.head(shape)
            promised = (vision + flops.uncompressed(shape, TEXT)) / (vision + seen + head)
            median = statistics.median(ratios)
            row = {"tokens": tokens, "layer": layer, "promised": round(promised, 4), "gained": quartiles(ratios)}
            gains.append(row | {"realised": round(median / promised, 4)})
    return gains


if __name__ == "__main__":
    main()
