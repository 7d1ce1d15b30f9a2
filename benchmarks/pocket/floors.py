"""What can be guessed at pocket's second edition: measured, with models that see nothing, or a bag of attributes.

    python benchmarks/pocket/floors.py          # writes benchmarks/pocket/floors.json

For each task a model is trained on samples of the training split and chosen on validation ones (`guessers.py`). Its
score on `HELD` samples of the test split that are NOT the test set (seed 1) is the floor that the task states. Another
one, trained on other samples, is then tried on the test set itself: `z` says how many standard errors it is off.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from guessers import bag, learn_answers, learn_captions, words

from vtc.evaluation import scoring
from vtc.pocket import second, splits
from vtc.pocket.second import Sample

FILE = Path(__file__).with_name("floors.json")
TRAIN, VALIDATION, HELD = 4000, 600, 1500
FLOORS = ("blind", "bag")
CANDIDATES = 200  # captions of the training split that are tried as the one for everything


def samples(name: str, split: str, seed: int, count: int) -> list[Sample]:
    return list(itertools.islice(second.drawn(name, split, seed), count))  # type: ignore[arg-type]


def learned(name: str, floor: str, seed: int) -> Any:
    learn = learn_captions if name == "hard_captions" else learn_answers
    train, validation = samples(name, "train", seed, TRAIN), samples(name, "validation", seed, VALIDATION)
    return learn(train, validation, floor == "bag", seed)


def answered(name: str, floor: str, seed: int, sets: Sequence[Sequence[Sample]]) -> list[np.ndarray]:
    guess = learned(name, floor, seed)
    return [guess(each) for each in sets]


def retrieved(name: str, floor: str, seed: int, sets: Sequence[Sequence[Sample]]) -> list[np.ndarray]:
    """R@1 both ways in the gallery of a set: nothing is nearer than anything else, or what shares the bag is; ties are
    broken by a draw."""
    rng, out = np.random.default_rng(seed), []
    for each in sets:
        shown = [{k.removeprefix("shows ") for k in bag(s) if k.startswith("shows")} for s in each]
        said = [set(words(s.answer)) & set().union(*shown) for s in each]
        near = np.array([[float(floor == "bag" and a == b) for b in said] for a in shown])
        near += 1e-3 * rng.random(near.shape)
        captions = np.array([s.answer for s in each])
        own = captions[:, None] == captions[None]
        best = own[np.arange(len(each)), near.argmax(1)], own[near.argmax(0), np.arange(len(each))]
        out.append((best[0].astype(float) + best[1]) / 2)
    return out


def described(name: str, floor: str, seed: int, sets: Sequence[Sequence[Sample]]) -> list[np.ndarray]:
    """CIDEr-D / 10 of one caption for everything, or of the right one with its colours dealt out anew."""
    best = best_caption(seed)
    guess = {"blind": lambda s: best, "bag": lambda s: s.more["bag_prediction"]}[floor]
    return [
        scoring.cider_samples([{"prediction": guess(s), "references": s.more["references"]} for s in each])
        for each in sets
    ]


def best_caption(seed: int) -> str:
    """The caption of the training split that is most like the others."""
    train = samples("captions", "train", seed, 2 * CANDIDATES)
    references = [s.answer for s in train[CANDIDATES:]]
    score = lambda c: scoring.cider([{"prediction": c, "references": [r]} for r in references])  # noqa: E731
    return max((s.answer for s in train[:CANDIDATES]), key=score)


HOW = {"captions": described, "retrieval": retrieved}


def estimate(values: np.ndarray) -> dict[str, float | int]:
    values = values.astype(float)
    return {
        "score": round(float(values.mean()), 4),
        "stderr": round(float(values.std(ddof=1) / np.sqrt(len(values))), 4),
        "n": len(values),
    }


def by_group(values: np.ndarray, sets: Sequence[Sample]) -> np.ndarray:
    """Of look-alikes, which aren't independent, the mean of each group."""
    return values.reshape(-1, splits.GALLERY_GROUP).mean(1) if "group" in sets[0].more else values


def measure(name: str) -> dict[str, Any]:
    test = samples(name, "test", 0, second.SAMPLES[name])
    # A gallery's chance depends on its size, and CIDEr's weights on its references: those are scored set by set.
    many = 5 if name in HOW else 1
    count = second.SAMPLES[name] if name in HOW else HELD
    held = [samples(name, "test", 1 + n, count) for n in range(many)]
    out: dict[str, Any] = {"caption": best_caption(1)} if name == "captions" else {}
    for floor in FLOORS:
        how = HOW.get(name, answered)
        stated = np.concatenate([by_group(v, s) for v, s in zip(how(name, floor, 1, held), held, strict=True)])
        (tried,) = how(name, floor, 2, [test])
        a, b = estimate(stated), estimate(by_group(tried, test))
        # Of yes and no the spread is that of the stated share; where nothing varies there is nothing to be off by.
        spread = float(np.hypot(a["stderr"], max(b["stderr"], a["stderr"] * np.sqrt(a["n"] / b["n"]))))
        out[floor] = a | {"test set": b | {"z": round((b["score"] - a["score"]) / spread, 2) if spread else 0.0}}
        off = out[floor]["test set"]["z"]
        print(f"{name} {floor}: {a['score']:.3f} ± {a['stderr']:.3f}; test set {b['score']:.3f}, z {off}", flush=True)
        if name == "hard_captions":
            kinds = np.array([s.kind for s in test])
            out[floor]["test set"]["kinds"] = {e: estimate(tried[kinds == e]) for e in second.EDITS}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=list(second.SAMPLES), help="these only; others stay as they are")
    named = parser.parse_args().tasks
    stored = json.loads(FILE.read_text()) if FILE.exists() else {"tasks": {}}
    for name in named or [name for name in second.SAMPLES if name not in stored["tasks"]]:
        stored["tasks"][name] = measure(name)
        tasks = {name: stored["tasks"][name] for name in second.SAMPLES if name in stored["tasks"]}
        head = {"command": "python benchmarks/pocket/floors.py", "version": second.VERSION}
        sizes = {"train": TRAIN, "validation": VALIDATION, "held": HELD}
        FILE.write_text(json.dumps(head | {"samples": sizes, "tasks": tasks}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
