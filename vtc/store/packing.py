"""A compressed image as the numbers of a row, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vtc.engine import StoredImage
    from vtc.store.table import Row


def packed(image: StoredImage, precision: str) -> dict[str, Any]:
    """`tokens`, `scale`, `ids`, `position` and `extent` of a row.

    Words and places are left out where they say nothing: an image's part of tokens alone, at places that follow each
    other.

    Raises:
        ValueError: tokens beyond float16, which ends at 65,504.
    """
    tokens = image.tokens.float()[:, None]
    if image.deep is not None:
        tokens = torch.cat([tokens, image.deep.float()], 1)
    values, scale = _rounded(tokens.flatten(1), precision)
    length = len(image.ids)
    plain = image.extent == length == len(tokens) and bool(
        (image.position == torch.arange(length, device=image.position.device)).all()
    )
    return {
        "tokens": values.ravel(),
        "scale": scale,
        "ids": np.zeros(0, np.int32) if plain else image.ids.cpu().numpy().astype(np.int32),
        "position": np.zeros(0, np.int32) if plain else image.position.cpu().numpy().astype(np.int32).ravel(),
        "extent": image.extent,
    }


def _rounded(tokens: Tensor, precision: str) -> tuple[np.ndarray, np.ndarray]:
    values = tokens.cpu().numpy()
    if precision == "int8":
        scale = np.abs(values).max(1, keepdims=True) / 127
        return np.rint(values / np.where(scale == 0, 1, scale)).astype(np.int8), scale[:, 0].astype(np.float32)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("its tokens are beyond float16, which ends at 65,504; precision=int8 has a scale")
    return values.astype(np.float16), np.zeros(0, np.float32)


def unpacked(row: Row, width: int, axes: int) -> StoredImage:
    """The compressed image of a row.

    Args:
        width: D, of the decoder.
        axes: P, of its positions.
    """
    from vtc.engine import StoredImage
    from vtc.engine.stored import MADE

    length = len(row.ids) or row.extent
    made = int((row.ids == MADE).sum()) if len(row.ids) else row.extent
    values = row.tokens.astype(np.float32).reshape(made, -1)
    if len(row.scale):
        values = values * row.scale[:, None]
    tokens = torch.from_numpy(values).unflatten(1, (-1, width))
    ids = torch.from_numpy(row.ids.astype(np.int64)) if len(row.ids) else torch.full((length,), MADE)
    if len(row.position):
        position = torch.from_numpy(row.position.astype(np.int64)).view(axes, length)
    else:
        position = torch.arange(length).expand(axes, -1)
    return StoredImage(tokens[:, 0], ids, position, row.extent, tokens[:, 1:] if tokens.shape[1] > 1 else None)


def unit(vectors: Tensor) -> np.ndarray:
    """[I, D] embeddings as they are kept: float16, of length 1."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy().astype(np.float16)
