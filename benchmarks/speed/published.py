"""FastV here against FastV as it was published: how long does the same choice of tokens take up to the first one?

    python benchmarks/speed/published.py --out benchmarks/results/speed/published.json

Here the one row of attention that FastV needs is computed beside attention kernels that give no weights away, and
dropped tokens are gone. As published, attention is computed in full (`eager`), every layer hands out its weights
(`output_attentions`), and dropped tokens are either taken out of the sequence (`eager, dropped`) or stay and are hidden
by a mask (`eager, masked`): the two ways of the authors' code, written here to behave like them. All of them keep the
same tokens; `difference` is the largest between the logits behind the prompt.

Shape and times as in `promised.py`, ratios to the uncompressed model with the kernels that it has by default (`sdpa`).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from promised import built, prefill
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from turns import TEXT, Session, arguments, quartiles

from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.engine.cache import CACHE, cache_among
from vtc.engine.tower_watch import stand_in
from vtc.profiling import latency

WAYS = ("eager", "eager, dropped", "eager, masked", "vtc")


@contextlib.contextmanager
def published(backbone: Backbone, visual: Tensor, layer: int, tokens: int | None, drops: bool) -> Iterator[None]:
    """The decoder as FastV's authors change it, on rows with their visual tokens in the same places.

    Args:
        visual: [N] places of the visual tokens. tokens: how many are kept before `layer`; None: all.
        drops: False: the others are hidden by a mask.
    """
    decoder = backbone.decoder

    def forward(self: Any, inputs_embeds: Tensor, use_cache: bool = True, **kwargs: Any) -> BaseModelOutputWithPast:
        hidden, cache = inputs_embeds, cache_among(kwargs)
        cache = DynamicCache(config=self.config) if cache is None else cache
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device)
        lowest = torch.finfo(hidden.dtype).min
        mask = hidden.new_full((length, length), lowest).triu_(1).expand(len(hidden), 1, -1, -1)
        cos, sin = (t.expand(len(hidden), -1, -1) for t in self.rotary_emb(hidden, places[None]))
        for number, block in enumerate(self.layers):
            if number == layer and tokens is not None:
                score = weights[-1].mean(1)[:, -1, visual]
                best = visual[score.topk(tokens, dim=1).indices].sort(1).values  # [B, tokens]
                hides = torch.zeros(len(hidden), length, dtype=torch.bool, device=hidden.device)
                hides[:, visual] = True
                hides.scatter_(1, best, False)
                if drops:
                    left = (~hides).nonzero()[:, 1].view(len(hidden), -1, 1)
                    hidden, cos, sin = (t.take_along_dim(left, 1) for t in (hidden, cos, sin))
                    mask = mask[..., : left.shape[1], : left.shape[1]]
                else:
                    mask = mask.masked_fill(hides[:, None, None], lowest)
            given = {"attention_mask": mask, "position_embeddings": (cos, sin), CACHE: cache, "use_cache": True}
            hidden = block(hidden, **given)
        weights.clear()
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **{CACHE: cache})

    weights: list[Tensor] = []
    implementation = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, decoder.config, "_attn_implementation", implementation)
        stand_in(stack, decoder, "forward", types.MethodType(forward, decoder))
        for block in decoder.layers:
            hook = block.self_attn.register_forward_hook(lambda *seen: weights.append(seen[-1][1]))
            stack.callback(hook.remove)
        yield


def logits(backbone: Backbone, inputs: Any, around: contextlib.AbstractContextManager) -> Tensor:
    with torch.inference_mode(), around:
        return backbone.model(**inputs, use_cache=True, logits_to_keep=1).logits


def measure(session: Session, tokens: int, batch: int) -> None:
    """Adds a row for each of the ways."""
    backbone = session.load()
    inputs = latency.example(backbone, batch, TEXT)
    method = built("fastv", tokens, backbone)
    layer, visual = max(method.layers()), backbone.visual(inputs["input_ids"][0]).nonzero()[:, 0]

    def as_published(kept: int | None, drops: bool) -> contextlib.AbstractContextManager:
        return published(backbone, visual, layer, kept, drops)

    def run(kept: int | None, drops: bool) -> Callable[[], Any]:
        return lambda: logits(backbone, inputs, as_published(kept, drops))

    reference = logits(backbone, inputs, compressing(backbone, method))
    plain = logits(backbone, inputs, contextlib.nullcontext())
    differences = {
        "eager": (logits(backbone, inputs, as_published(None, True)) - plain).abs().max(),
        "eager, dropped": (logits(backbone, inputs, as_published(tokens, True)) - reference).abs().max(),
        "eager, masked": (logits(backbone, inputs, as_published(tokens, False)) - reference).abs().max(),
        "vtc": torch.zeros(()),
    }
    runs = {
        "plain": prefill(backbone, inputs, None),
        "eager": run(None, True),
        "eager, dropped": run(tokens, True),
        "eager, masked": run(tokens, False),
        "vtc": prefill(backbone, inputs, method),
    }
    spent = list(session.turns(runs, session.options.rounds))
    for way in WAYS:
        session.add({
            "way": way,
            "asked": tokens,
            "batch": batch,
            "speedup": quartiles([turn["plain"] / turn[way] for turn in spent]),
            "vtc_is_faster": quartiles([turn[way] / turn["vtc"] for turn in spent]),
            "difference": float(f"{float(differences[way]):.2g}"),
            "plain_s": quartiles([turn["plain"] for turn in spent])[1],
            "rounds": len(spent),
        })  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 192])
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    options = parser.parse_args()
    session = Session(options, ("way", "asked", "batch"), text_tokens=TEXT)
    cases = [{"way": WAYS[-1], "asked": n, "batch": b} for b in options.batch for n in options.tokens]
    for case in session.missing(cases):
        measure(session, case["asked"], case["batch"])


if __name__ == "__main__":
    main()
