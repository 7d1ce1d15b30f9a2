"""Several processes."""

from torch import Tensor


def gather_with_gradient(x: Tensor) -> Tensor:
    """Every process's rows."""
    return x
