"""Weights by columns: how a CPU multiplies few rows fastest.

A linear layer stores its weights [out, in] row after row. With 80 rows, as a prompt has after compression, a CPU's
products in float32 are up to 1.5 times as fast where they lie column after column, and with many rows as fast as
before; so that without it, dropping tokens saves less time than arithmetic. Values, shapes and names stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def by_columns(*modules: nn.Module) -> None:
    """Lays out the weights of all linear layers by columns, where they are float32 on a CPU. For inference: the
    products of a backward pass gain nothing by it.
    """
    import torch
    from torch import nn

    for module in modules:
        looked_up = {id(embedding.weight) for embedding in module.modules() if isinstance(embedding, nn.Embedding)}
        for linear in module.modules():
            if isinstance(linear, nn.Linear) and id(linear.weight) not in looked_up:
                weight = linear.weight
                if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.stride(1) == 1:
                    weight.data = weight.data.t().contiguous().t()
