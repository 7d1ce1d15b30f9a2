"""What a store's rounding costs in score: pocket's questions answered from float16 and from int8 tokens.

    python benchmarks/store/precision.py --out benchmarks/store/precision.json

Every question of the seven tasks that are asked about a picture is answered from what a store of that precision would
hold: compressed, rounded, packed as a row's, unpacked, asked. The harness and the metrics are those of any run.
Retrieval and hard captions compare embeddings, which are float16 in either store. `picture` is a run of the same
weights that answers from the pictures. Differences are paired over the same samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

TASKS = tuple(
    f"pocket2_{kind}"
    for kind in ("existence", "counting", "attributes", "relations", "reading", "choice", "captions")
)  # fmt: skip
BUDGETS = (4, 16)


def scores(words: list[str], limit: int | None) -> dict[str, dict[str, Any]]:
    """`picture`, or a precision → task → its `TaskScores`; those of a precision are answered from rows of a store, for
    which each picture is compressed once."""
    import torch

    from vtc.configuration import parse
    from vtc.data.pictures import hash_picture
    from vtc.engine import answer, compress_images
    from vtc.evaluation import harness
    from vtc.evaluation import model as adapter
    from vtc.evaluation.sources import source_of
    from vtc.store.packing import packed, unpacked

    job = parse([*words, f"benchmark.tasks=[{','.join(TASKS)}]", f"benchmark.limit={limit or 'null'}"])
    specs = source_of(job.benchmark).specs(job.seed)
    manager = harness.task_manager([spec.scored_as for spec in specs])
    backbone, method = job.load()

    known: dict[str, Any] = {}

    class FromStore(adapter.VtcModel):
        precision = "float16"

        def _generate(self, questions):
            names = [hash_picture(q.images[0]) for q in questions]
            new = {name: q.images[0] for name, q in zip(names, questions, strict=True) if name not in known}
            if new:
                known.update(zip(new, compress_images(backbone, method, list(new.values()))[0], strict=True))
            compressed = [known[name] for name in names]
            rows = [Packed(**packed(image, self.precision)) for image in compressed]
            kept = [unpacked(row, backbone.shape.width, backbone.position_axes) for row in rows]
            options = questions[0].options
            with torch.inference_mode():
                ids = answer(backbone, method, [q.text for q in questions], kept, int(options["max_new_tokens"]))
            texts = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
            none, until = adapter.TokenCounts(input_tokens=0, output_tokens=0), options.get("until")
            return [(adapter.GenerationResult(adapter._until(text, until), none), None) for text in texts]

    class Packed:
        def __init__(self, **values):
            vars(self).update(values)

    model, told = FromStore(backbone, method, job.batch_size), {}
    for name in ("picture", "float16", "int8"):
        model.precision = name
        asked = adapter.VtcModel(backbone, method, job.batch_size) if name == "picture" else model
        told[name] = {spec.name: harness.run_task(asked, spec, manager) for spec in specs}
    return told


def frame(told: dict[str, Any]) -> pd.DataFrame:
    samples = [
        {"task": task, "id": s.id, "score": s.score, "prediction": s.prediction, "stratum": s.stratum}
        for task, own in told.items()
        for s in own.samples
    ]
    return pd.DataFrame(samples).astype({"score": float})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from vtc import statistics
    from vtc.evaluation.record import git_commit

    rows = []
    for tokens in BUDGETS:
        words = ["method=fwd2bot", f"tokens={tokens}"]
        told = scores(words, arguments.limit)
        frames = {precision: frame(own) for precision, own in told.items()}
        groups = [{"task": task, "group": "understanding", "scale": 1.0} for task in TASKS]
        paired = statistics.compare_samples(frames["int8"], frames["float16"], groups)
        for task in TASKS:
            both = frames["int8"][frames["int8"].task == task].merge(
                frames["float16"][frames["float16"].task == task], on="id"
            )
            ours = frames["float16"][frames["float16"].task == task].merge(
                frames["picture"][frames["picture"].task == task], on="id"
            )
            difference = both.score_x - both.score_y
            row = {
                "tokens": tokens,
                "task": task,
                "n": len(both),
                "picture": told["picture"][task].value,
                "float16": told["float16"][task].value,
                "int8": told["int8"][task].value,
                "loss": round(told["float16"][task].value - told["int8"][task].value, 5),
                "loss_stderr": round(float(difference.std(ddof=1) / len(both) ** 0.5), 5),
                "p_value": paired[task]["p_value"],
                "same_answers": round(float((both.prediction_x == both.prediction_y).mean()), 4),
                "same_answers_as_picture": round(float((ours.prediction_x == ours.prediction_y).mean()), 4),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    content = {
        "command": "python benchmarks/store/precision.py" + (f" --limit {arguments.limit}" if arguments.limit else ""),
        "commit": git_commit(),
        "rows": rows,
        "mean_loss": {str(n): round(sum(r["loss"] for r in rows if r["tokens"] == n) / len(TASKS), 5) for n in BUDGETS},
    }
    print(json.dumps(content["mean_loss"]))
    if arguments.out:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
