"""K-Means over the visual tokens (compared in LLaVolta, arXiv 2406.20092, section 3.2 and table 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.allowed import whole
from vtc.interface import Context, TokenMerger, TokenSequence, layer_option, option
from vtc.methods.avgpool import raster_groups

ROUNDED = 1e-12  # a squared distance that is less than this share of the squared norm is rounding


class KMeans(TokenMerger):
    """Each cluster of an image's visual tokens becomes its mean: N_C = N / S centroids, before layer K.

    Lloyd's algorithm on the hidden states that reach layer K, Euclidean, in float32, image by image. The paper says
    neither how the centroids start nor what becomes of an empty cluster; here:

    - They start as average pooling does, from runs of the raster sequence whose lengths differ by one at most. That
      needs no random numbers, so an image has the same clusters in any batch, and no clustering ends farther from its
      means than average pooling is.
    - A cluster that lost all its tokens takes the token that is farthest from its own centroid, out of a cluster that
      has others. So exactly `tokens` are left, even of an image of one colour.

    Gradients flow through the means to the tokens; the assignment has none. A centroid stands at the place of its first
    member, with the mean of its members' positions.

    Args:
        tokens: clusters per image; default N / 8, the stride of table 3. An image with fewer tokens keeps them all.
    """

    name = "kmeans"
    about = "K-Means: clusters of visual tokens become their means (compared in LLaVolta, arXiv 2406.20092)."
    reference = "test_kmeans.py::test_equals_lloyds_algorithm"
    incomparable = "LLaVolta's paper doesn't say how its centroids start"
    default_share = 1 / 8
    layer: int = layer_option(2, "before this decoder layer; 0: before the LLM")
    # It ends before, where nothing moves any more.
    iterations: int = option(10, "of Lloyd's algorithm, at most", allowed=whole(1))

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, None]:
        _, real = tokens.images
        groups = raster_groups(real, self.tokens or real.shape[1])
        if tokens.fits(self.tokens):
            return groups, None
        return lloyd(tokens.visual_hidden().detach().float(), real, groups, self.iterations), None

    def own_flops(self, text: int) -> float:
        n, clusters = self.shape.visual_tokens or 0, self.tokens or 0
        return 2.0 * n * clusters * self.shape.width * self.iterations * self.acts  # means, if it takes all iterations


@torch.no_grad()
def lloyd(points: Tensor, real: Tensor, groups: Tensor, iterations: int) -> Tensor:
    """[I, N]: the clusters after at most `iterations` of Lloyd's algorithm, as many as there were, none empty.

    Args:
        points: [I, N, D].
        real: [I, N] bool, the points that there are; the clusters of the others mean nothing.
        groups: [I, N] clusters to start from, 0… in each image without gaps.
    """
    count = int(groups.max()) + 1
    there = torch.arange(count, device=groups.device) <= groups.masked_fill(~real, -1).amax(1)[:, None]
    # In float32 |x|² − 2x·c + |c|² drowns in an LLM's few very large channels; in float64 it is a matrix product.
    exact = points.double().masked_fill(~real[..., None], 0)
    squares = exact.square().sum(2, keepdim=True)
    first = count * torch.arange(len(points), device=points.device)[:, None]
    for _ in range(iterations):
        size = torch.zeros_like(there, dtype=exact.dtype).scatter_add(1, groups, real.to(exact.dtype))
        total = exact.new_zeros(there.numel(), points.shape[2])
        total = total.index_add(0, (first + groups).flatten(), exact.flatten(0, 1)).unflatten(0, there.shape)
        centroids = total / size.clamp(min=1)[..., None]
        distance = squares + centroids.square().sum(2)[:, None] - 2 * exact @ centroids.transpose(1, 2)
        distance = torch.where(distance < ROUNDED * squares, 0, distance).float()  # what is equal compares as equal
        distance = distance.masked_fill(~there[:, None], float("inf"))
        nearest = _filled(distance.argmin(2), distance, real, there)
        if torch.equal(nearest[real], groups[real]):
            break
        groups = nearest
    return groups


def _filled(groups: Tensor, distance: Tensor, real: Tensor, there: Tensor) -> Tensor:
    """`groups` [I, N] without empty clusters: one after the other takes the farthest token of those that can be spared.

    Args:
        distance: [I, N, M], squared, to the centroids. there: [I, M] bool, the clusters that an image has.
    """
    groups, image = groups.clone(), torch.arange(len(groups), device=groups.device)
    while True:
        size = torch.zeros_like(there, dtype=torch.long).scatter_add(1, groups, real.long())
        empty = there & (size == 0)
        wanting = empty.any(1)
        if not wanting.any():
            return groups
        own = distance.gather(2, groups[..., None])[..., 0]
        spare = own.masked_fill(~real | (size.gather(1, groups) < 2), -1)
        token, cluster = spare.argmax(1), empty.long().argmax(1)
        groups[image[wanting], token[wanting]] = cluster[wanting]
