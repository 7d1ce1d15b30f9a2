"""What one training step costs in each stage of LLaVolta's four-stage scheme, beside an uncompressed step.

    python benchmarks/speed/llavolta_stages.py [--rounds 12] [--out benchmarks/results/llavolta-stages.json]

Steps of all stages are interleaved, one of each a round, so that a slow moment of the machine hits all of them; times
are given as ratios to the uncompressed step of the same round. FLOPs are counted by torch's FlopCounterMode.

Beside them what the compression ratio (eq. 3) predicts: only what visual tokens cost in the decoder shrinks, by CR;
the tower, the questions and the optimizer cost what they did. A share v of an uncompressed step is that cost, so a
stage should cost 1 - v (1 - 1/CR) of it. By arithmetic, v is the decoder on the packed rows less the decoder on the
same rows without visual tokens: matrices once forward and twice backward, attention once and two and a half times (its
two products have four in the backward pass, and the scores are computed again).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from vtc.configuration import parse
from vtc.interface.flops import layer as flops_of
from vtc.pocket.source import PocketSource
from vtc.profiling.counter import flop_counter
from vtc.training.method_stage import MethodStage

STAGES = ("layer 2, stride 8", "layer 2, stride 2", "layer 16, stride 2", "uncompressed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    job = parse(["action=train", "method=llavolta", "method.scheme=four_wider_then_deeper"])
    backbone, method = job.load(trained=False)
    data = job.training.data
    source = PocketSource("instruct", data, seed=0, embed=True)
    stage = MethodStage("instruct", backbone, method, ["projector", "decoder"], source, contrastive=data.contrastive)
    optimizer = torch.optim.AdamW([p for _, p in stage.named_parameters()], lr=1e-4)

    def step(index: int, batch) -> None:
        stage.start_step(index, len(STAGES))  # four steps in all: step i is in stage i
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.stack(list(stage.losses(batch).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    batch = stage.batch(0)
    flops, ratios, compression = [], [[] for _ in STAGES], []
    full = backbone.shape.visual_tokens
    for index in range(len(STAGES)):
        with flop_counter() as counter:
            step(index, batch)
        flops.append(counter.get_total_flops())
        pooled, depth = method.stage, backbone.shape.depth
        left = -(-full // pooled.stride) if pooled.compresses else full
        layer = pooled.layer if pooled.compresses else 0
        compression.append(depth * full / ((depth - layer) * left + layer * full))
    shape, length = backbone.shape, batch.input_ids.shape[1]
    # packed questions are masked, not skipped: every token is multiplied with every other
    matrices = full * (flops_of(shape, 1, causal=False) - 4 * shape.width)
    attention = 4 * shape.width * (length**2 - (length - full) ** 2)
    visual = (3 * matrices + 3.5 * attention) * shape.depth * source.batch_size / flops[-1]
    for number in range(options.rounds):
        batch = stage.batch(number)
        seconds = []
        for index in range(len(STAGES)):
            began = time.perf_counter()
            step(index, batch)
            seconds.append(time.perf_counter() - began)
        for index, value in enumerate(seconds):
            ratios[index].append(value / seconds[-1])
    rows = [
        {
            "stage": name,
            "compression_ratio": round(compression[i], 3),
            "predicted_ratio": round(1 - visual * (1 - 1 / compression[i]), 4),
            "step_flops_ratio": round(flops[i] / flops[-1], 4),
            "step_time_ratio": {
                "median": round(statistics.median(ratios[i]), 4),
                "min": round(min(ratios[i]), 4),
                "max": round(max(ratios[i]), 4),
            },
        }
        for i, name in enumerate(STAGES)
    ]
    whole = {
        "predicted_ratio": round(statistics.mean(r["predicted_ratio"] for r in rows), 4),
        "step_flops_ratio": round(statistics.mean(r["step_flops_ratio"] for r in rows), 4),
        "step_time_ratio": round(statistics.mean(r["step_time_ratio"]["median"] for r in rows), 4),
    }
    result = {
        "command": "python benchmarks/speed/llavolta_stages.py",
        "rounds": options.rounds,
        "batch": {"pictures": source.batch_size, "questions": source.questions},
        "visual_share": round(visual, 4),
        "threads": torch.get_num_threads(),
        "stages": rows,
        "four_stages_against_single": whole,
    }
    for row in rows:
        spread = row["step_time_ratio"]
        print(
            f"{row['stage']:20s} CR {row['compression_ratio']:5.2f}   predicted x{row['predicted_ratio']:.3f}   "
            f"FLOPs x{row['step_flops_ratio']:.3f}   "
            f"time x{spread['median']:.3f} ({spread['min']:.3f} to {spread['max']:.3f})"
        )
    print(
        f"four stages against one: predicted x{whole['predicted_ratio']:.3f}, FLOPs x{whole['step_flops_ratio']:.3f}, "
        f"time x{whole['step_time_ratio']:.3f}"
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
