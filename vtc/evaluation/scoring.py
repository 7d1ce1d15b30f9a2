"""The metrics of the pocket tasks: pure functions of predictions and references. What an answer says, `answers` knows.

`benchmarks/tasks/utils.py` gives them to lmms-eval, so that a score is the same whether vtc or the `lmms-eval` command
computes it. BLEU, ROUGE and CIDEr are pycocoevalcap's, after a tokenizer of our own: its PTB tokenizer needs Java.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vtc.evaluation.answers import normalise, words

VERSION = 2  # raise it with any change that gives an answer another score, here or in how a task is read
TIE = 1e-9  # cosines this close are equal


def f1(pairs: Sequence[tuple[str, str]], positive: str = "yes") -> float:
    """F1 of the positive answer over (prediction, answer) pairs; 0 where it is never right."""
    hit = sum(p == positive and a == positive for p, a in pairs)
    wrong = sum((p == positive) != (a == positive) for p, a in pairs)
    return 2 * hit / (2 * hit + wrong) if hit else 0.0


# Captions ------------------------------------------------------------------------------------------------------------


def _coco(records: Sequence[dict[str, Any]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    references = {i: [" ".join(words(r)) for r in record["references"]] for i, record in enumerate(records)}
    return references, {i: [" ".join(words(record["prediction"]))] for i, record in enumerate(records)}


def cider_samples(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """CIDEr-D of each caption divided by 10, its greatest value: `[n]` in 0..1.

    The weights of the n-grams are those of the references given, so a value belongs to its set of samples.

    Args:
        records: dicts with `prediction` and `references`.
    """
    from pycocoevalcap.cider.cider import Cider

    if not records:
        return np.zeros(0)
    return np.clip(np.asarray(Cider().compute_score(*_coco(records))[1], dtype=float) / 10.0, 0.0, 1.0)


def cider(records: Sequence[dict[str, Any]]) -> float:
    """The captions task's score: CIDEr-D / 10, in 0..1."""
    return float(cider_samples(records).mean()) if records else 0.0


def bleu4(records: Sequence[dict[str, Any]]) -> float:
    """Corpus BLEU-4, in 0..1."""
    from pycocoevalcap.bleu.bleu import Bleu

    return float(Bleu(4).compute_score(*_coco(records), verbose=0)[0][3])


def rouge_l(records: Sequence[dict[str, Any]]) -> float:
    """ROUGE-L (F, beta 1.2), mean over captions, in 0..1."""
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(*_coco(records))[0])


# Embeddings ----------------------------------------------------------------------------------------------------------


def unit(vectors: Any) -> np.ndarray:
    """Rows of length 1, `[n, D]`; rows of zeros stay zeros."""
    v = np.asarray(vectors, dtype=float)
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def similarities(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Cosine of every image (rows) and every caption (columns), `[n, n]`.

    Args:
        records: dicts with `image` and `text`, embeddings of a matching pair.
    """
    return unit([r["image"] for r in records]) @ unit([r["text"] for r in records]).T


def hits(records: Sequence[dict[str, Any]], k: int, direction: str) -> np.ndarray:
    """1 for each query whose match is among the first `k`, `[n]`.

    Two scenes may have the same caption; either counts as the match. Ties count against the model, so that one
    embedding for everything finds nothing.

    Args:
        direction: `image_to_text` or `text_to_image`.
    """
    scores = similarities(records) if direction == "image_to_text" else similarities(records).T
    captions = np.asarray([normalise(r["caption"]) for r in records])
    relevant = captions[:, None] == captions[None, :]
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best - TIE) & ~relevant).sum(axis=1)
    return (ahead < k).astype(float)


def recall(records: Sequence[dict[str, Any]], k: int, direction: str) -> float:
    return float(hits(records, k, direction).mean()) if records else 0.0


def retrieval_samples(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Mean of the two R@1 of each pair, `[n]` of 0, 0.5 and 1."""
    if not records:
        return np.zeros(0)
    return (hits(records, 1, "image_to_text") + hits(records, 1, "text_to_image")) / 2


def retrieval(records: Sequence[dict[str, Any]]) -> float:
    """The retrieval task's score: mean of R@1 image to text and text to image."""
    return float(retrieval_samples(records).mean()) if records else 0.0


def group_hits(records: Sequence[dict[str, Any]], k: int, direction: str) -> np.ndarray:
    """1 for each query whose match is among the first `k`: an image's is any of its captions, [n]; a caption's its
    image, [m]. Ties count against the model.

    Args:
        records: dicts with `image` [D] and `texts`, embeddings [c, D] of its own captions, as many as it has.
        direction: `image_to_text` or `text_to_image`.
    """
    owner = np.repeat(np.arange(len(records)), [len(r["texts"]) for r in records])
    scores = unit([r["image"] for r in records]) @ unit([text for r in records for text in r["texts"]]).T
    own = owner[None] == np.arange(len(records))[:, None]
    if direction == "text_to_image":
        scores, own = scores.T, own.T
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    return (((scores >= best - TIE) & ~own).sum(axis=1) < k).astype(float)


def group_recall(records: Sequence[dict[str, Any]], k: int, direction: str) -> float:
    return float(group_hits(records, k, direction).mean()) if records else 0.0


def group_retrieval_samples(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Mean of the two R@1 of each image with its captions, `[n]`; its captions count as much as one."""
    if not records:
        return np.zeros(0)
    counts = [len(r["texts"]) for r in records]
    parts = np.split(group_hits(records, 1, "text_to_image"), np.cumsum(counts)[:-1])
    return (group_hits(records, 1, "image_to_text") + np.array([part.mean() for part in parts])) / 2


def nearest_captions(records: Sequence[dict[str, Any]]) -> list[str]:
    """For each image the nearest one of all captions."""
    captions = [caption for r in records for caption in r["captions"]]
    scores = unit([r["image"] for r in records]) @ unit([text for r in records for text in r["texts"]]).T
    return [captions[at] for at in scores.argmax(axis=1)]


def group_retrieval(records: Sequence[dict[str, Any]]) -> float:
    """Mean of R@1 image to text and text to image, where an image has several captions."""
    return float(group_retrieval_samples(records).mean()) if records else 0.0


def prefers(image: Sequence[float], right: Sequence[float], wrong: Sequence[float]) -> float:
    """1 where the image is closer to the right caption than to the wrong one; a tie is not."""
    v, a, b = unit([image, right, wrong])
    return float(v @ a > v @ b + TIE)


def by_kind(records: Sequence[tuple[str, float]]) -> float:
    """Mean over the kinds of the mean within each: kinds count alike (SugarCrepe)."""
    kinds = {kind for kind, _ in records}
    return float(np.mean([np.mean([x for kind, x in records if kind == k]) for k in kinds])) if kinds else 0.0


# Samples -------------------------------------------------------------------------------------------------------------

# How a sample's share of its task's score is found where it needs the other samples; else it is the metric itself.
# `captions` is CIDEr-D / 10, a share; `cider` as the papers give it.
OVER_ALL = {
    "captions": cider_samples,
    "cider": lambda records: 10.0 * cider_samples(records),
    "retrieval": retrieval_samples,
    "group_retrieval": group_retrieval_samples,
}
