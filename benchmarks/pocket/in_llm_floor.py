"""What is answered when nothing of the picture is left behind a layer of the LLM: the floor of methods that act there.

    python benchmarks/pocket/in_llm_floor.py

Shares of exactly right answers on 64 validation scenes with 16 questions each, by task: uncompressed; every visual
token withdrawn before layer 1, 2 and 3 of 6; Victor at 4 tokens, and with its registers withdrawn too.
"""

from __future__ import annotations

import numpy as np
import torch

from vtc.configuration import parse
from vtc.pocket.data import draw_scenes
from vtc.pocket.questions import KINDS, TASK_OF_KIND
from vtc.pocket.scenes import scene_rng
from vtc.pocket.source import PocketSource, exact_answers
from vtc.settings import DataSettings
from vtc.training.method_stage import MethodStage

SCENES, QUESTIONS, STEPS = 32, 16, 2
ROWS = [
    ["method=none"],
    *(["method=vtw", f"method.layer={layer}", "layer_scale=none"] for layer in (1, 2, 3)),
    ["method=victor", "tokens=4"],
    ["method=victor", "tokens=4", "method.withdraw=true"],
]


@torch.no_grad()
def main() -> None:
    weights = {kind: 1.0 for kind in KINDS if kind != "captions"}
    data = DataSettings(batch_size=SCENES, questions=QUESTIONS, weights=weights)
    for words in ROWS:
        backbone, method = parse(words).load()
        source = PocketSource("floor", data, seed=0)
        stage = MethodStage("floor", backbone, method, ["projector", "decoder"], source)
        method.eval()
        right: dict[str, list[float]] = {}
        for step in range(STEPS):
            rng = scene_rng(1, "floor", step)
            batch = source.pack(rng, draw_scenes(rng, SCENES, "validation"), weights, QUESTIONS)
            for kind, values in exact_answers(stage.answers(batch)[0], batch).items():
                right.setdefault(TASK_OF_KIND[kind], []).extend(values)
        shares = "  ".join(f"{task} {np.mean(values):.3f} of {len(values)}" for task, values in sorted(right.items()))
        print(f"{' '.join(words)}: {shares}", flush=True)


if __name__ == "__main__":
    main()
