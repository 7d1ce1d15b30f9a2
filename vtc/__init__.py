"""vtc: one framework for visual-token compression in large vision-language models.

Importing this package imports nothing heavy; `vtc.interface`, `vtc.engine` and `vtc.backbones` do.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

LAZY = {"Store": "vtc.store"}  # imported when they are asked for


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module 'vtc' has no attribute '{name}'")
