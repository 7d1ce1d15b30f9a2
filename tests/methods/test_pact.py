"""PACT against loops in float64 over the tokens of one image, as the paper's two algorithms walk through them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import decoder, embedded
from sequences import layout, sequence

from vtc.budget import Budget
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context, LayerStates
from vtc.methods import build
from vtc.registry import methods
from vtc.testing import batch, tiny_backbone


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def walked(order: list[int], distance, cutoff: float) -> list[int]:
    """Algorithm 2: from the densest on, what is near no centre so far is one."""
    chosen: list[int] = []
    for i in order:
        if all(distance[i][c] > cutoff for c in chosen):
            chosen.append(i)
    return chosen


def clustered(
    queries: np.ndarray,
    keys: np.ndarray,
    rotated: np.ndarray,
    hidden: np.ndarray,
    tokens: int,
    keep: float,
    alpha: float,
) -> dict[int, list[int]]:
    """Centre → members, of the n tokens of one image: queries [n, H, d], keys [n, Hkv, d], rotated, hidden [n, D]."""
    n, heads, d = queries.shape
    score = [0.0] * n
    for head in range(heads):
        mean = sum(queries[i, head] for i in range(n)) / n
        logits = [float(keys[i, head * keys.shape[1] // heads] @ mean) / math.sqrt(d) for i in range(n)]
        total = sum(math.exp(x - max(logits)) for x in logits)
        for i in range(n):
            score[i] += math.exp(logits[i] - max(logits)) / total / heads
    score = [s * math.sqrt(float(h @ h)) for s, h in zip(score, hidden, strict=True)]
    ranked = sorted(range(n), key=lambda i: (-score[i], i))
    kept = sorted(ranked[: max(int(n * keep), 1, tokens)])

    flat = rotated.reshape(n, -1)
    distance = [[min(2.0, max(0.0, cosine_distance(flat[i], flat[j]))) for j in range(n)] for i in range(n)]
    density = {i: sum(math.exp(-((distance[i][j] / 2) ** 2)) for j in kept) for i in kept}
    order = sorted(kept, key=lambda i: (-density[i], i))
    low, high = 0.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        if len(walked(order, distance, middle)) > tokens:
            low = middle
        else:
            high = middle
    centres = walked(order, distance, high)
    while len(centres) < tokens:
        rest = [i for i in kept if i not in centres]
        centres.append(max(rest, key=lambda i: (min(distance[i][c] for c in centres), -i)))
    clusters = {c: [c] for c in centres}
    for i in range(n):
        if i in centres:
            continue
        nearest = min(sorted(centres), key=lambda c: distance[i][c])
        if i in kept or distance[i][nearest] <= alpha * high:
            clusters[nearest].append(i)
    assert all(distance[i][c] <= high for c, members in clusters.items() for i in members if i in kept)
    return clusters


def states(backbone, x: torch.Tensor, position: torch.Tensor, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[L, H, d] queries and keys before rotation and keys after it, in float64, from the weights of a layer."""
    module, d = backbone.decoder.layers[layer], backbone.decoder.layers[layer].self_attn.head_dim
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = normed * module.input_layernorm.weight.double()
    q = (normed @ module.self_attn.q_proj.weight.double().T).view(len(x), -1, d)
    k = (normed @ module.self_attn.k_proj.weight.double().T).view(len(x), -1, d)
    angle = (position.double()[:, None] * backbone.decoder.rotary_emb.inv_freq.double()[None])[:, None]
    a, b = k[..., : d // 2], k[..., d // 2 :]
    rotated = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
    return q.numpy(), k.numpy(), rotated.numpy()


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(
    ("layer", "tokens", "keep", "alpha", "proportional"),
    [(1, 5, 0.55, 1.5, True), (2, 3, 0.8, 3.0, True), (3, 4, 1.0, 0.0, False), (2, 12, 0.5, 1.5, True)],
)
def test_equals_the_equations_by_loops(
    kv_heads: int, layer: int, tokens: int, keep: float, alpha: float, proportional: bool
) -> None:
    """The whole of it, row by row: what is set aside, clusters, means at their centres, attention by sizes."""
    backbone, n = tiny_backbone(kv_heads=kv_heads), 16
    inputs = batch(backbone)
    options = {"layer": layer, "layer_scale": "none", "keep": keep, "alpha": alpha, "proportional": proportional}
    method = build("pact", tokens, backbone.shape, **options)
    with torch.no_grad(), compressing(backbone, method):
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    members: list[int] = []
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first = int((ids == backbone.image_token_id).nonzero()[0])

        def change(x, position, first: int = first):
            image = slice(first, first + n)
            q, k, rotated = (t[image] for t in states(backbone, x, position, layer))
            clusters = clustered(q, k, rotated, x[image].double().numpy(), tokens, keep, alpha)
            members.extend(len(c) for c in clusters.values())
            at = sorted(clusters)
            means = torch.stack([x[[first + i for i in clusters[c]]].mean(0) for c in at])
            place = torch.tensor([*range(first), *(first + c for c in at), *range(first + n, len(x))])
            size = torch.ones(len(place))
            if proportional:
                size[first : first + tokens] = torch.tensor([float(len(clusters[c])) for c in at])
            return torch.cat([x[:first], means, x[first + n :]]), position[place], size

        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            out = decoder(backbone, x, torch.arange(len(ids)), changes={layer: change})
            expected = backbone.model.lm_head(out[first + tokens :])
        assert (got[row, real.nonzero()[first + n :, 0]] - expected).abs().max() < 1e-4
    assert len(members) == 3 * tokens
    assert max(members) > 1 or tokens == 12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 2), (4, 1)])
@pytest.mark.parametrize(
    ("images", "tokens", "keep"), [([[20, 12], [13]], 5, 0.55), ([[16], [24]], 2, 0.9), ([[30], [8, 11]], 8, 0.3)]
)
def test_clusters_of_images_of_several_sizes(
    images: list[list[int]], tokens: int, keep: float, heads: int, kv_heads: int, seed: int
) -> None:
    """On states whose keys lie in bunches, as many as there are centres or fewer."""
    shape, d = tiny_backbone().shape, 6
    rows = sequence([layout(*row, after=2 + n) for n, row in enumerate(images)], seed=seed)
    random = torch.Generator().manual_seed(seed)
    b, length = rows.mask.shape
    q, k = (torch.randn(b, length, h, d, generator=random) for h in (heads, kv_heads))
    bunch = torch.randint(6, (b, length), generator=random)
    rotated = torch.randn(6, kv_heads, d, generator=random)[bunch] + 0.2 * torch.randn(k.shape, generator=random)
    context = Context(shape, next_layer_states=lambda tokens: LayerStates(q * d**-0.5, k, rotated))
    method = build("pact", tokens, shape, keep=keep, alpha=2.0)
    left = method.reduce(rows, method.layer, context)
    assert left.size is not None
    for row, sizes in enumerate(images):
        expected: list[tuple[int, int, torch.Tensor]] = []
        for place in range(length):
            if rows.mask[row, place] and not rows.visual[row, place]:
                expected.append((place, 1, rows.hidden[row, place]))
        for image in range(len(sizes)):
            at = (rows.visual[row] & (rows.image[row] == image)).nonzero()[:, 0]
            own = [t[row, at].double().numpy() for t in (q, k, rotated, rows.hidden)]
            for centre, members in clustered(*own, tokens, keep, 2.0).items():
                expected.append((int(at[centre]), len(members), rows.hidden[row, at[members]].mean(0)))
        there = left.mask[row]
        assert left.place[row, there].tolist() == sorted(place for place, _, _ in expected)
        for place, size, mean in expected:
            column = int((left.place[row] == place).nonzero()[-1])
            assert int(left.size[row, column]) == size
            assert int(left.position[0, row, column]) == int(rows.position[0, row, place])
            assert torch.allclose(left.hidden[row, column], mean, atol=1e-5)


def test_tokens_that_are_all_alike_still_leave_the_budget() -> None:
    shape = tiny_backbone().shape
    rows = sequence([layout(16)])
    one = torch.ones(1, rows.mask.shape[1], 2, 4)
    context = Context(shape, next_layer_states=lambda tokens: LayerStates(one, one, one))
    left = build("pact", 5, shape, keep=1.0).reduce(rows, 4, context)
    assert int(left.visual.sum()) == 5 and int(left.size[left.visual].sum()) == 16


def test_keeping_everything_changes_nothing() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    with torch.no_grad():
        plain = backbone.model(**inputs).logits
        with compressing(backbone, build("pact", 16, backbone.shape)):
            assert torch.equal(backbone.model(**inputs).logits, plain)


def test_sizes_go_on_in_the_cache() -> None:
    """Tokens decoded one by one see the sizes that the prefill left, and so does a method behind it."""
    backbone = tiny_backbone()
    inputs = batch(backbone)
    words = torch.tensor([[11, 12, 13]] * 3)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], words], 1)}
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(words)], 1)
    logits = {}
    for proportional in (True, False):
        method = build("pact", 4, backbone.shape, layer=1, keep=1.0, proportional=proportional)
        with torch.no_grad(), compressing(backbone, method):
            whole = backbone.model(**longer).logits[:, -3:]
            cache = backbone.model(**inputs, use_cache=True).past_key_values
            steps = []
            for i in range(3):
                mask = longer["attention_mask"][:, : inputs["input_ids"].shape[1] + i + 1]
                step = backbone.model(input_ids=words[:, i : i + 1], attention_mask=mask, past_key_values=cache)
                steps.append(step.logits[:, 0])
            assert (torch.stack(steps, 1) - whole).abs().max() < 1e-4
        logits[proportional] = whole
    assert (logits[True] - logits[False]).abs().max() > 1e-3


def test_defaults_and_bad_options() -> None:
    shape = tiny_backbone(grid=24, depth=32).shape
    method = build("pact", None, shape)
    assert (method.tokens, method.layer, method.layer_tokens()) == (165, 4, [576] * 4 + [165] * 28)
    assert methods.get("pact")(Budget(ratio=0.1).resolve, shape).tokens
    for options in ({"keep": 0.0}, {"keep": 1.1}, {"alpha": -1.0}, {"layer": 0}):
        with pytest.raises(UserError, match=f"method.{next(iter(options))}="):
            build("pact", 5, shape, **options)


def test_attention_without_masks_is_refused() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)

    def change(*_: object) -> None:  # it is refused where sizes begin: before that an implementation has to run
        backbone.decoder.config._attn_implementation = "flash_attention_2"

    backbone.decoder.layers[0].register_forward_hook(change)
    refused = pytest.raises(UserError, match="method=pact: its mask needs attention=sdpa or eager")
    with torch.no_grad(), compressing(backbone, build("pact", 5, backbone.shape, layer=1)), refused:
        backbone.model(**inputs)
