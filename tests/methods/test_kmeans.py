"""K-Means against scikit-learn and against Lloyd's algorithm written as loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.cluster
import torch
from reference import decoder, embedded
from sequences import layout, sequence

from vtc.budget import compression_ratio
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context
from vtc.methods import build
from vtc.methods.avgpool import raster_groups
from vtc.methods.kmeans import lloyd
from vtc.testing import batch, tiny_backbone


def ragged(sizes: list[int], width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(sizes), max(sizes), width, generator=generator)
    real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    return torch.where(real[..., None], points, points[:, :1]), real  # padding repeats token 0


def loops(points: np.ndarray, count: int, iterations: int) -> list[int]:
    """Clusters of one image's points [N, D] in float64."""
    n = len(points)
    groups = [r * count // n for r in range(n)]
    for _ in range(iterations):
        centroids = [points[[g == c for g in groups]].mean(0) for c in range(count)]
        distance = [[float(np.linalg.norm(p - c)) for c in centroids] for p in points]
        new = [int(np.argmin(d)) for d in distance]
        for cluster in range(count):
            if cluster not in new:
                spare = [i for i in range(n) if new.count(new[i]) > 1]
                new[max(spare, key=lambda i: distance[i][new[i]])] = cluster
        if new == groups:
            break
        groups = new
    return groups


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sizes", "count"), [([30, 17, 5], 5), ([24, 24], 23), ([12, 3, 40, 7], 9), ([9], 1)])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_lloyds_algorithm(sizes: list[int], count: int, iterations: int, seed: int) -> None:
    points, real = ragged(sizes, 4, seed)
    groups = lloyd(points, real, raster_groups(real, count), iterations)
    for image, size in enumerate(sizes):
        expected = loops(points[image, :size].double().numpy(), min(count, size), iterations)
        assert groups[image, :size].tolist() == expected
        assert sorted(set(expected)) == list(range(min(count, size)))  # none empty


@pytest.mark.parametrize("seed", range(3))
def test_converges_where_scikit_learn_does(seed: int) -> None:
    points, real = ragged([60, 45], 3, seed)
    start = raster_groups(real, 6)
    groups = lloyd(points, real, start, 300)
    for image, size in enumerate((60, 45)):
        x = points[image, :size].double().numpy()
        means = np.stack([x[start[image, :size].numpy() == c].mean(0) for c in range(6)])
        expected = sklearn.cluster.KMeans(6, init=means, n_init=1, max_iter=300, tol=0).fit(x)
        assert groups[image, :size].tolist() == expected.labels_.tolist()


def test_clusters_of_equal_tokens_are_filled() -> None:
    """An image of one colour: nothing is nearer to one centroid than to another, and the budget holds all the same."""
    points, real = torch.ones(2, 20, 3), torch.ones(2, 20, dtype=torch.bool)
    real[1, 12:] = False
    groups = lloyd(points, real, raster_groups(real, 7), 10)
    assert all(sorted(set(g[r].tolist())) == list(range(7)) for g, r in zip(groups, real, strict=True))


def test_large_channels_do_not_drown_the_others() -> None:
    """One channel of 2,000 for all, as LLMs have: the clusters are those of the other channels."""
    points, real = ragged([50], 4, 0)
    groups = lloyd(points, real, raster_groups(real, 6), 10)
    shifted = torch.cat([points, torch.full((1, 50, 2), 2048.0)], 2)
    assert torch.equal(lloyd(shifted, real, raster_groups(real, 6), 10), groups)


def test_never_farther_from_its_means_than_average_pooling() -> None:
    points, real = ragged([40, 40], 6, 3)

    def inertia(groups: torch.Tensor) -> torch.Tensor:
        member = torch.nn.functional.one_hot(groups).float()
        means = member.transpose(1, 2) @ points / member.sum(1)[..., None]
        return (points - means.gather(1, groups[..., None].expand(-1, -1, 6))).square().sum((1, 2))

    worst = [inertia(raster_groups(real, 7))]
    worst += [inertia(lloyd(points, real, raster_groups(real, 7), n)) for n in (1, 2, 5, 20)]
    assert all((b <= a + 1e-4).all() for a, b in zip(worst, worst[1:], strict=False)) and (worst[-1] < worst[0]).all()


@pytest.mark.parametrize("layer", [0, 2])
def test_the_decoder_reads_the_means(layer: int) -> None:
    backbone = tiny_backbone()
    inputs, n = batch(backbone), 16
    method = build("kmeans", 5, backbone.shape, layer=layer, layer_scale="none")
    with torch.no_grad(), compressing(backbone, method):
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first = int((ids == backbone.image_token_id).nonzero()[0])

        def cluster(x: torch.Tensor, position: torch.Tensor, first: int = first) -> tuple[torch.Tensor, torch.Tensor]:
            groups = loops(x[first : first + n].double().numpy(), 5, 10)
            members = [[i for i in range(n) if groups[i] == g] for g in dict.fromkeys(groups)]  # by first member
            means = torch.stack([x[[first + i for i in m]].mean(0) for m in members])
            places = torch.tensor([sum(first + i for i in m) // len(m) for m in members])
            x = torch.cat([x[:first], means, x[first + n :]])
            return x, (
                torch.arange(len(x)) if layer == 0 else torch.cat([position[:first], places, position[first + n :]])
            )

        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            out = decoder(backbone, x, torch.arange(len(ids)), changes={layer: cluster})
            expected = backbone.model.lm_head(out[first + 5 :])
        assert (got[row, real.nonzero()[first + n :, 0]] - expected).abs().max() < 1e-4


def test_trains_through_the_means() -> None:
    """The gradient of each token is that of its cluster's mean, shared out evenly."""
    shape = tiny_backbone().shape
    method, context = build("kmeans", 3, shape, layer=0), Context(shape)
    tokens = sequence([layout(16, 9), layout(12)])
    tokens.hidden.requires_grad_()
    groups, _ = method.assign(tokens, context)
    reduced = method.reduce(tokens, 0, context)
    weight = torch.randn(reduced.hidden.shape, generator=torch.Generator().manual_seed(1))
    (reduced.hidden * weight)[reduced.mask].sum().backward()
    index, real = tokens.images
    merged, _ = reduced.images
    for image in range(3):
        order = list(dict.fromkeys(groups[image, real[image]].tolist()))
        for i, g in zip(index[image, real[image]].tolist(), groups[image, real[image]].tolist(), strict=True):
            share = weight.flatten(0, 1)[merged[image, order.index(g)]] / (groups[image, real[image]] == g).sum()
            assert torch.allclose(tokens.hidden.grad.flatten(0, 1)[i], share, atol=1e-6)


def test_defaults_and_bad_options() -> None:
    shape = tiny_backbone(depth=32, grid=24).shape
    method = build("kmeans", None, shape)
    assert (method.tokens, method.layer) == (72, 2)
    assert sum(method.layer_tokens()) == 3312  # table 3
    assert int(100 * compression_ratio(method.layer_tokens(), shape)) == 556
    with pytest.raises(UserError, match="method.iterations=0"):
        build("kmeans", 4, shape, iterations=0)
