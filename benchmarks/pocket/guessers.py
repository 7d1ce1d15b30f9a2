"""Models that guess: from the text of a sample alone, or knowing besides WHICH colours, names and sizes are shown.

Each is a classifier of scikit-learn, trained on samples of the training split. An answer of several words is guessed
word by word; of two captions the one that is more like right ones, the order of the two being random.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from vtc.pocket.second import Sample

Features = dict[str, float]
Guess = Callable[[Sequence[Sample]], np.ndarray]  # which samples are guessed right
FEW = 4  # answers to choose from, up to which boosted trees are tried too


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+|[?.,]", text)


def bag(sample: Sample) -> Features:
    """Which colours, names and sizes there are in any of the frames, and how many of each kind."""
    things = [t for scene in sample.scenes for t in scene.things]
    shown = {"color": {t.color for t in things}, "name": {t.name for t in things}}
    shown["size"] = {t.size for t in things if not t.is_digit}
    features = {f"shows {word}": 1.0 for group in shown.values() for word in group}
    return features | {f"{len(group)} of {of}": 1.0 for of, group in shown.items()}


def text(line: str) -> Features:
    """Words, pairs of neighbours, and where in the line a word stands; how long it is, and what comes twice."""
    tokens = words(line)
    features = Counter(tokens) + Counter(f"{a} {b}" for a, b in zip(tokens, tokens[1:], strict=False))
    features.update(f"{at}: {token}" for at, token in enumerate(tokens[:24]))
    parts = Counter(part.strip(" .") for part in line.split(","))
    counts = {"length": len(tokens), "repeated": sum(n - 1 for n in parts.values()), "different": len(set(tokens))}
    return {**features, **counts}


def features(sample: Sample, knows_bag: bool) -> Features:
    """Of a question: its text; with a bag what it shows, and of each word of the question whether it is shown."""
    own = text(sample.question)
    if not knows_bag:
        return own
    shown = bag(sample)
    asked = words(sample.question)
    met = {f"{word} is shown": 1.0 for word in asked if f"shows {word}" in shown}
    option = "".join(t if t in "ABCD" else "+" if f"shows {t}" in shown else "-" for t in asked if t != "?")
    met |= {f"option {letter} is shown": 1.0 for letter in re.findall(r"([ABCD])\+", option)}
    return own | shown | met | {f"{sum(word.endswith('is shown') for word in met)} asked are shown": 1.0}


def _classifiers(answers: int, seed: int) -> list[object]:
    linear = [LogisticRegression(C=c, max_iter=300) for c in (0.03, 1.0)]
    trees = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, random_state=seed)
    return [*linear, trees] if answers <= FEW else linear


def _dense(model: object, x: csr_matrix) -> csr_matrix | np.ndarray:
    return x.toarray() if isinstance(model, HistGradientBoostingClassifier) else x


def fitted(x: csr_matrix, y: np.ndarray, held: csr_matrix, right: np.ndarray, seed: int) -> object:
    """The classifier that does best on held-out samples, of those that there are."""
    if len(set(y)) == 1:
        return None
    models = _classifiers(len(set(y)), seed)
    for model in models:
        model.fit(_dense(model, x), y)  # type: ignore[attr-defined]
    scores = [float(np.mean(m.predict(_dense(m, held)) == right)) for m in models]  # type: ignore[attr-defined]
    return models[int(np.argmax(scores))]


def learn_answers(train: Sequence[Sample], validation: Sequence[Sample], knows_bag: bool, seed: int) -> Guess:
    """A guesser of answers, word by word; kinds of questions have words of their own, so that one serves them all."""
    vectors = DictVectorizer()
    x = vectors.fit_transform([features(s, knows_bag) for s in train])
    held = vectors.transform([features(s, knows_bag) for s in validation])
    longest = max(len(s.answer.split()) for s in train)

    def slot(samples: Sequence[Sample], at: int) -> np.ndarray:
        return np.array([(s.answer.split() + [""] * longest)[at] for s in samples])

    models = []
    for at in range(longest):
        y = slot(train, at)
        models.append((fitted(x, y, held, slot(validation, at), seed), y[0]))

    def guess(samples: Sequence[Sample]) -> np.ndarray:
        inputs = vectors.transform([features(s, knows_bag) for s in samples])
        right = np.ones(len(samples), dtype=bool)
        for at, (model, only) in enumerate(models):
            said = np.full(len(samples), only) if model is None else model.predict(_dense(model, inputs))
            right &= said == slot(samples, at)
        return right

    return guess


def learn_captions(train: Sequence[Sample], validation: Sequence[Sample], knows_bag: bool, seed: int) -> Guess:
    """A guesser of the right one of two captions: of the differences of what they say, in an order that is drawn."""

    def sides(sample: Sample) -> tuple[Features, Features]:
        first, second = (text(c) for c in (sample.answer, sample.more["options"][0]))
        if knows_bag:
            shown = bag(sample)
            for each, caption in ((first, sample.answer), (second, sample.more["options"][0])):
                each |= {f"{word} is shown": 1.0 for word in words(caption) if f"shows {word}" in shown}
                each |= {f"{key} & length": each["length"] for key in shown}
        return first, second

    rng = np.random.default_rng(seed)

    def table(samples: Sequence[Sample]) -> tuple[list[Features], np.ndarray]:
        rows, answers = [], rng.random(len(samples)) < 0.5
        for sample, swapped in zip(samples, answers, strict=True):
            right, wrong = sides(sample)
            difference = {k: right.get(k, 0.0) - wrong.get(k, 0.0) for k in right | wrong}
            rows.append({k: -v if swapped else v for k, v in difference.items()})
        return rows, answers

    vectors = DictVectorizer()
    rows, y = table(train)
    x = vectors.fit_transform(rows)
    rows, right = table(validation)
    model = fitted(x, y, vectors.transform(rows), right, seed)

    def guess(samples: Sequence[Sample]) -> np.ndarray:
        rows, answers = table(samples)
        return model.predict(_dense(model, vectors.transform(rows))) == answers  # type: ignore[attr-defined, union-attr]

    return guess
