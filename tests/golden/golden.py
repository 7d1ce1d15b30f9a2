"""Golden numbers: what each component computed when its version was last raised.

A run's identity counts a component by the version that it declares, not by its code: a new docstring keeps every result
that a user has, and a change of numbers under an old version would show results that nobody would get any more. So the
numbers of small inputs are committed beside the versions, and `tests/test_golden.py` holds both against the code.

    python tests/golden/golden.py     # after raising a version: writes the new numbers; refuses numbers that changed
                                       # under the same version

Weights and pictures are sines, so that they don't hang on a random number generator.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from method_cases import BACKBONES, FIRST, Case  # noqa: E402

from vtc import engine, profiling  # noqa: E402
from vtc.backbones.base import Backbone  # noqa: E402
from vtc.engine import compressing  # noqa: E402
from vtc.evaluation import answers, scoring  # noqa: E402
from vtc.interface import Compressor  # noqa: E402
from vtc.profiling.run import count_passes  # noqa: E402
from vtc.registry import methods, parts  # noqa: E402
from vtc.testing.models import collate, image_row, text_row  # noqa: E402

TOLERANCE = 2e-3  # of logits of magnitude 1: processors and versions of torch differ in the last digits
Numbers = dict[str, Any]


def sines(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers between -1 and 1 that follow from a name alone."""
    phase = zlib.crc32(name.encode()) % 10_000
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(index * 1.618 + index.square() * 0.0137 + phase).view(shape).float()


def fill(module: nn.Module) -> None:
    """Weights of matrices with a spread like that of trained ones, scales near 1, offsets near 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = sines(name, tuple(parameter.shape)).to(parameter)
            if parameter.ndim > 1:
                values = values * (2.0 / math.sqrt(parameter[0].numel()))
            elif name.endswith("weight"):
                values = 1.0 + 0.1 * values
            else:
                values = 0.1 * values
            parameter.copy_(values)


def backbone_of(name: str) -> Backbone:
    backbone = BACKBONES[name]()
    fill(backbone.model)
    return backbone


def inputs_of(backbone: Backbone) -> dict[str, Tensor]:
    """Two rows: a picture between words, and words alone."""
    from PIL import Image

    side = backbone.image_size or backbone.shape.vision.image_size
    values = (sines("picture", (side, side, 3)) * 127 + 128).round().to(torch.uint8)
    rows = [
        text_row([10, 11]) + image_row(backbone, Image.fromarray(values.numpy())) + text_row([12, 13, 14, 15]),
        text_row([16, 17, 18]),
    ]
    return collate(backbone, rows)


def prefill(backbone: Backbone, method: Compressor) -> Numbers:
    """What is kept, what each layer sees, and the logits behind the picture's row."""
    inputs = inputs_of(backbone)
    with torch.no_grad(), compressing(backbone, method) as installed:
        logits = backbone.model(**inputs, position_ids=backbone.positions(inputs)).logits
        report = installed.report
    assert report is not None
    return {
        "kept": report.kept[0],
        "layers": [layer[0] for layer in report.layers],
        "logits": logits[0, -1, :8].tolist(),
        "text": logits[1, -1, :4].tolist(),
    }


def method_of(case: Case, backbone: Backbone) -> Compressor:
    method = case.make(backbone, case.tokens).eval()
    method.attach(backbone)
    fill(method)
    for name, parameter in backbone.model.named_parameters():
        if ".lora_" in name:
            with torch.no_grad():
                parameter.copy_(sines(name, tuple(parameter.shape)) * 0.2)
    backbone.model.eval()
    return method


BEHIND = {"ppe": Case("kmeans+ppe", 5, {"ppe": {"positions": 3}})}  # what has nothing to do by itself


def of_methods() -> Iterator[tuple[str, Any, Callable[[], Numbers]]]:
    """(name, version, how the numbers are computed) of every method, compositions apart."""
    for case in FIRST:
        if len(parts(case.name)) == 1:
            run = BEHIND.get(case.name, case)
            yield case.name, methods.get(case.name).version, lambda run=run: _method(run)


def _method(case: Case) -> Numbers:
    backbone = backbone_of("gqa")
    return prefill(backbone, method_of(case, backbone))


def of_families() -> Iterator[tuple[str, Any, Callable[[], Numbers]]]:
    """Every family, uncompressed and with two kinds of reduction."""
    for name in BACKBONES:
        yield name, BACKBONES[name]().version, lambda name=name: _family(name)


def _family(name: str) -> Numbers:
    numbers = {}
    for case in (Case("none", 0), Case("random", 3), Case("fastv", 3)):
        backbone = backbone_of(name)
        method = case.make(backbone, case.tokens or backbone.shape.visual_tokens)
        numbers[case.name] = prefill(backbone, method.eval())
    inputs = inputs_of(backbone)
    prompt = backbone.prompt("what is this")
    return numbers | {"ids": inputs["input_ids"][0].tolist(), "prompt": prompt}


def of_engine() -> Iterator[tuple[str, Any, Callable[[], Numbers]]]:
    """Greedy answers from a compressed cache, a method at a time."""
    yield "generation", engine.VERSION, _generation


def _generation() -> Numbers:
    numbers = {}
    for case in (
        Case("fastv", 5),
        Case("avgpool", 4),
        Case("victor", 3),
        Case("voco", 1),
        Case("fwd2bot", 4, {"rank": 4}),
    ):
        backbone = backbone_of("gqa")
        method, inputs = method_of(case, backbone), inputs_of(backbone)
        with torch.no_grad(), compressing(backbone, method):
            out = backbone.model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        numbers[case.name] = out[:, -6:].tolist()
    return numbers


def of_costs() -> Iterator[tuple[str, Any, Callable[[], Numbers]]]:
    """FLOPs of every method, as the profiler counts them."""
    for case in FIRST:
        yield case.name, profiling.VERSION, lambda case=case: _costs(case)


def _costs(case: Case) -> Numbers:
    from vtc.interface import flops

    backbone = backbone_of("gqa")
    method, inputs = method_of(case, backbone), inputs_of(backbone)
    one = {name: value[:1] for name, value in inputs.items()}
    ran = count_passes(backbone, method, one)
    return {
        "prefill": flops.total(backbone.shape, ran.prefill) + flops.head(backbone.shape),
        "step": flops.total(backbone.shape, ran.steps),
        "method": ran.method_flops,
        "vision": ran.vision_flops,
        "extra_parameters": method.extra_parameters,
    }


def of_scoring() -> Iterator[tuple[str, Any, Callable[[], Numbers]]]:
    """The metrics on a few answers."""
    yield "metrics", scoring.VERSION, _metrics


def _metrics() -> Numbers:
    said = ["a red circle left of a blue square", "a dog", "two small green triangles"]
    right = [["a red circle left of a blue square"], ["a black cat"], ["two green triangles", "small triangles"]]
    captions = [{"prediction": p, "references": r} for p, r in zip(said, right, strict=True)]
    vectors = sines("embeddings", (6, 5)).tolist()
    pairs = [{"image": vectors[i], "text": vectors[i + 3], "caption": f"caption {i}"} for i in range(3)]
    return {
        "exact_match": [
            answers.exact_match(a, b) for a, b in (("Red.", "red"), ("5", "-5"), ("C++", "C"), ("狗", "猫"))
        ],
        "letter": [answers.letter(a) for a in ("B", "the answer is c", "A cat, so B", "(D) red")],
        "yes_no": [answers.yes_no(a) for a in ("Yes.", "no, it isn't", "maybe")],
        "cider": scoring.cider_samples(captions).tolist(),
        "bleu4": scoring.bleu4(captions),
        "rouge_l": scoring.rouge_l(captions),
        "recall": [scoring.recall(pairs, k, way) for k in (1, 2) for way in ("image_to_text", "text_to_image")],
    }


FILES: dict[str, Callable[[], Iterator[tuple[str, Any, Callable[[], Numbers]]]]] = {
    "methods": of_methods,
    "families": of_families,
    "engine": of_engine,
    "costs": of_costs,
    "scoring": of_scoring,
}


def differs(a: Any, b: Any, where: str = "") -> str | None:
    """Where two trees of numbers differ by more than the tolerance, in words; None where they don't."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for key in a if (d := differs(a[key], b[key], f"{where}.{key}"))), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next(
            (d for n, (x, y) in enumerate(zip(a, b, strict=True)) if (d := differs(x, y, f"{where}[{n}]"))), None
        )
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return None if math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else f"{where}: {a} against {b}"
    return None if a == b else f"{where}: {a} against {b}"


def stored(file: str) -> dict[str, dict[str, Any]]:
    path = HERE / f"{file}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> int:
    """Writes the numbers of versions that were raised, and of components that are new."""
    refused = 0
    for file, components in FILES.items():
        before, after = stored(file), {}
        for name, version, compute in components():
            numbers = json.loads(json.dumps(compute()))
            old = before.get(name)
            if old is not None and old["version"] == version and (difference := differs(old["numbers"], numbers)):
                print(f"{file}: {name}{difference}: raise its version (it is {version})")
                refused += 1
                numbers = old["numbers"]
            after[name] = {"version": version, "numbers": numbers}
        text = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in after.items())
        (HERE / f"{file}.json").write_text("{\n" + text + "\n}\n", encoding="utf-8")
    return min(refused, 1)


if __name__ == "__main__":
    sys.exit(main())
