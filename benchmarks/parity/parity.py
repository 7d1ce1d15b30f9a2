"""What methods keep, held against the code that their authors published, on inputs drawn from a seed.

    python benchmarks/parity/parity.py --sources FOLDER --out benchmarks/results/parity.json

FOLDER has a clone of each repository of `AUTHORS`, as owner/name. Nothing of theirs is copied: the named functions are
read from the file at the named commit and run on small tensors in the place of a model's. What they keep is recorded,
and whether vtc keeps the same; tests/methods/test_parity.py repeats vtc's side against the record.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import subprocess
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.interface import BackboneShape
from vtc.methods import make
from vtc.methods.cdpruner import most_diverse, scaled
from vtc.methods.divprune import farthest_first
from vtc.methods.tome import merged
from vtc.testing import tiny_backbone

WIDTH, HEADS = 128, 4
Kept = list[Any]


@dataclass(frozen=True)
class Authors:
    """Where the code of a method's authors is.

    Attributes:
        names: of the classes, whose methods are taken out, and functions that are run.
        what: what is compared, in words.
    """

    repository: str
    commit: str
    file: str
    names: tuple[str, ...]
    what: str


AUTHORS = {
    "cdpruner": Authors(
        "Theia-4869/CDPruner", "9541616c40fcd5625de1cdb8ea6c33c129eb7864", "llava/model/llava_arch.py",
        ("encode_images",), "kept tokens for a given relevance"),
    "divprune": Authors(
        "vbdi/divprune", "799e2d950aa01ba7860907f5a6d86061f885dca6", "LLaVA/llava/model/llava_arch.py",
        ("DivPrune", "pairwise_cosine_similarity"), "kept tokens"),
    "fastervlm": Authors(
        "Theia-4869/FasterVLM", "f5d5f12037e105a51865ecb4b28a73cd86eb4921", "llava/model/llava_arch.py",
        ("encode_images",), "kept tokens"),
    "tome": Authors(
        "facebookresearch/ToMe", "af95e4b1befa172dadccd8c81e223b10090f9579", "tome/merge.py",
        ("do_nothing", "bipartite_soft_matching", "merge_wavg"), "which patches merge in a layer"),
    "vidcom2": Authors(
        "xuyang-liu16/VidCom2", "944a17d14f4848ad080a65eab2b0711a760fa154", "token_compressor/vidcom2/vidcom2.py",
        ("select_low_var_channels", "compute_gaussian_scores", "_multi_scale_gaussian", "compute_scales",
         "select_outlier_indices"), "kept tokens of each frame, as many as theirs"),
    "vispruner": Authors(
        "Theia-4869/VisPruner", "aefa01adc7c7ce6334e880c88225e90cede760d1", "llava/model/llava_arch.py",
        ("encode_images",), "kept tokens"),
    "visionzip": Authors(
        "dvlab-research/VisionZip", "3151f6df4fca36a4cd1c985e5956e725b1f9ad02", "visionzip/clip_encoder.py",
        ("forward",), "dominant tokens, and contextual ones by their sums, to 1e-4"),
}  # fmt: skip
CASES = [
    {"seed": seed, "patches": patches, "tokens": tokens}
    for seed in range(3)
    for patches, tokens in ((64, 16), (144, 16), (144, 36), (576, 64))
]


def drawn(seed: int, *shape: int) -> Tensor:
    """Normally distributed numbers, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Inputs:
    """What a tower would give of an image of n patches, and a question about it.

    Attributes:
        features: [1, n, C]; keys: [1, n, C]; attention: [1, H, n] of CLS; question: [1, C].
    """

    features: Tensor
    keys: Tensor
    attention: Tensor
    question: Tensor

    @classmethod
    def of(cls, case: dict[str, int]) -> Inputs:
        seed, n = 10 * case["seed"], case["patches"]
        attention = drawn(seed + 2, 1, HEADS, n).softmax(-1)
        return cls(drawn(seed, 1, n, WIDTH), drawn(seed + 1, 1, n, WIDTH), attention, drawn(seed + 3, 1, WIDTH))

    # -- what `vtc.interface.Tower` has, as far as the methods ask
    heads = HEADS

    def patch_attention(self, layer: int) -> Tensor:
        return self.attention

    def patch_features(self) -> Tensor:
        return self.features

    def patch_keys(self, layer: int) -> Tensor:
        return self.keys


# vtc's side ----------------------------------------------------------------------------------------------------------


def sized(patches: int) -> BackboneShape:
    """The sizes of a tiny model, with so many patches."""
    import dataclasses

    shape = tiny_backbone().shape
    side = math.isqrt(patches)
    vision = dataclasses.replace(shape.vision, image_size=side * shape.vision.patch_size, tokens=patches + 1)
    return dataclasses.replace(shape, visual_tokens=patches, grid=(side, side), vision=vision)


def condensed(name: str) -> Callable[[dict[str, int]], Kept]:
    def ours(case: dict[str, int]) -> Kept:
        inputs = Inputs.of(case)
        out = make(name, case["tokens"], sized(case["patches"])).condense(inputs, case["tokens"])
        kept: Kept = places(out.kept[0])
        return kept if out.added is None else [kept, rounded(out.added[0])]

    return ours


def places(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def rounded(values: Tensor) -> list[float]:
    """A few numbers that stand for all: sums over each vector."""
    return [round(float(value), 6) for value in values.double().sum(-1)]


def ours_divprune(case: dict[str, int]) -> Kept:
    features = Inputs.of(case).features
    return places(farthest_first(features, torch.ones(features.shape[:2], dtype=torch.bool), case["tokens"])[0] > 0)


def ours_cdpruner(case: dict[str, int]) -> Kept:
    inputs = Inputs.of(case)
    real = torch.ones(inputs.features.shape[:2], dtype=torch.bool)
    unit = F.normalize(inputs.features, dim=-1)
    relevance = scaled(-(F.normalize(inputs.keys, dim=-1) @ F.normalize(inputs.question, dim=-1).T)[..., 0], real)
    kernel = relevance[..., None] * (unit @ unit.transpose(1, 2)) * relevance[:, None]
    return places(most_diverse(kernel, real, case["tokens"])[0] > 0)


def ours_tome(case: dict[str, int]) -> Kept:
    keys = Inputs.of(case).keys
    size = torch.ones(keys.shape[:2])
    out, _ = merged(torch.eye(keys.shape[1])[None], keys[:, None], size, case["tokens"], 0)
    return groups(out[0])


def groups(rows: Tensor) -> Kept:
    """Which patches each row is made of."""
    return sorted(places(row > 0) for row in rows)


FRAMES = 6


def ours_vidcom2(case: dict[str, int]) -> Kept:
    frames = drawn(case["seed"], FRAMES, case["patches"], WIDTH)
    method = make("vidcom2", case["tokens"], sized(case["patches"]))
    claims = method.claims(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    counts = case["counts"]
    return [sorted(c.topk(k).indices.tolist()) for c, k in zip(claims, counts, strict=True)]  # type: ignore[arg-type]


OURS: dict[str, Callable[[dict[str, Any]], Kept]] = {
    "cdpruner": ours_cdpruner,
    "divprune": ours_divprune,
    "fastervlm": condensed("fastervlm"),
    "tome": ours_tome,
    "vidcom2": ours_vidcom2,
    "vispruner": condensed("vispruner"),
    "visionzip": condensed("visionzip"),
}


def equal(a: Kept, b: Kept) -> bool:
    """Whether both keep the same: places exactly, sums of features to 1e-4."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return math.isclose(a, b, abs_tol=1e-4) if isinstance(a, float) else a == b


# Their side ----------------------------------------------------------------------------------------------------------


def functions(authors: Authors, sources: Path) -> types.SimpleNamespace:
    """The named functions of a file at a commit, methods as plain functions, without the rest of it."""
    folder = sources / authors.repository
    shown = subprocess.run(["git", "-C", str(folder), "show", f"{authors.commit}:{authors.file}"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    wanted = []
    for node in ast.walk(ast.parse(shown.stdout)):
        if isinstance(node, ast.FunctionDef) and node.name in authors.names:
            node.decorator_list = []
            wanted.append(node)
    module = ast.Module([ast.parse("from typing import *").body[0], *wanted], [])
    names: dict[str, Any] = {"torch": torch, "F": F, "math": math}
    exec(compile(ast.fix_missing_locations(module), authors.file, "exec"), names)
    return types.SimpleNamespace(**{name: names[name] for name in authors.names if name in names})


def tower_of(*outputs: Any) -> types.SimpleNamespace:
    """A LLaVA around a tower that gives these outputs."""
    model = types.SimpleNamespace(get_vision_tower=lambda: lambda *_, **__: outputs, mm_projector=lambda x: x)
    return types.SimpleNamespace(get_model=lambda: model)


def theirs(name: str, code: types.SimpleNamespace, case: dict[str, Any]) -> Kept:
    """What the authors' functions keep."""
    inputs, tokens = Inputs.of(case), case["tokens"]
    if name == "divprune":
        whole = types.SimpleNamespace(pairwise_cosine_similarity=lambda m: code.pairwise_cosine_similarity(None, m))
        picked, _ = code.DivPrune(whole, inputs.features[0], case["patches"], None, tokens / case["patches"])
        return sorted(picked.tolist())
    if name == "cdpruner":
        whole = tower_of(inputs.features, inputs.keys, inputs.question)
        whole.visual_token_num = tokens
        return places(code.encode_images(whole, None)[1][0])
    if name in ("fastervlm", "vispruner"):
        whole = tower_of(inputs.features, inputs.attention)
        whole.get_visual_token_num, whole.get_important_ratio = lambda: tokens, lambda: 0.5
        return places(code.encode_images(whole, None)[1][0])
    if name == "tome":
        merge, _ = code.bipartite_soft_matching(inputs.keys, tokens)
        return groups(merge(torch.eye(case["patches"])[None], mode="sum")[0])
    if name == "vidcom2":
        frames = drawn(case["seed"], FRAMES, case["patches"], WIDTH)
        chosen = code.select_low_var_channels(frames.flatten(0, 1))
        video, own = code.compute_gaussian_scores(chosen, case["patches"])
        scales = code.compute_scales(-video.mean(dim=-1), tokens / case["patches"])
        kept = [sorted(i.tolist()) for i in code.select_outlier_indices(video + own, scales, case["patches"])]
        case["counts"] = [len(k) for k in kept]
        return kept
    return theirs_visionzip(code, inputs, tokens)


def theirs_visionzip(code: types.SimpleNamespace, inputs: Inputs, tokens: int) -> Kept:
    """Its tower's forward, over a tower whose CLS is a vector of its own."""
    few = round(10 / 64 * tokens)
    n = inputs.features.shape[1]
    first = torch.zeros(1, HEADS, n + 1, 1)
    attention = torch.cat([first, torch.cat([inputs.attention[:, :, None], torch.zeros(1, HEADS, n, n)], 2)], 3)
    hidden = torch.cat([drawn(99, 1, 1, WIDTH), inputs.features], 1)
    keys = torch.cat([drawn(98, 1, 1, WIDTH), inputs.keys], 1).unflatten(-1, (HEADS, -1)).mean(2)
    layers = [types.SimpleNamespace(metric=keys)] * 2

    def tower(*_: Any, **__: Any) -> Any:
        return types.SimpleNamespace(attentions=[attention, None], hidden_states=[hidden, None])

    tower._info = {"dominant": tokens - few, "contextual": few}  # type: ignore[attr-defined]
    tower.vision_model = types.SimpleNamespace(encoder=types.SimpleNamespace(layers=layers))  # type: ignore[attr-defined]
    whole = types.SimpleNamespace(vision_tower=tower, device="cpu", dtype=torch.float32)
    saved, kept = code.forward(whole, torch.zeros(1))
    return [sorted(i - 1 for i in kept[0].tolist() if i), rounded(saved[0, -few:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sources", type=Path, required=True, help="clones of the repositories, as owner/name")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    methods = {}
    for name, authors in AUTHORS.items():
        code, cases = functions(authors, arguments.sources), []
        for given in CASES:
            case: dict[str, Any] = dict(given)
            kept = theirs(name, code, case)
            cases.append(case | {"equal": equal(kept, OURS[name](case)), "kept": kept})
        methods[name] = {"repository": authors.repository, "commit": authors.commit, "file": authors.file,
                         "what": authors.what, "cases": cases}  # fmt: skip
        print(f"{name}: {sum(c['equal'] for c in cases)} of {len(cases)} equal, {authors.repository}")
    command = "python benchmarks/parity/parity.py --sources FOLDER --out benchmarks/results/parity.json"
    arguments.out.write_text(json.dumps({"command": command, "methods": methods}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
