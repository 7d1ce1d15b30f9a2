"""vtc: one framework for visual-token compression in large vision-language models.

Importing this package imports nothing heavy. Its modules, and the names of `__init__.pyi`, are imported when they are
first asked for: `vtc.registry`, `vtc.interface`, `vtc.engine`.
"""

import importlib

__version__ = "0.1.0"
_API = ("Answer", "CompressedImage", "Model", "compressing", "load")  # of `vtc.api`


def __getattr__(name: str) -> object:
    if name in _API:
        return getattr(importlib.import_module("vtc.api"), name)
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"vtc.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"vtc.{name}":
                raise
    raise AttributeError(f"module 'vtc' has no attribute '{name}'")
