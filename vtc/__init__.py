"""vtc: one framework for visual-token compression in large vision-language models.

Importing this package imports nothing heavy. Its modules (`vtc.registry`, `vtc.interface`, `vtc.engine`) and the names
of `LAZY` are imported when they are first asked for.
"""

import importlib

__version__ = "0.1.0"

API = ("Answer", "CompressedImage", "Model", "compressing", "load")
LAZY = {"Store": "vtc.store", **dict.fromkeys(API, "vtc.api")}  # name → the module that has it


def __getattr__(name: str) -> object:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"vtc.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"vtc.{name}":
                raise
    raise AttributeError(f"module 'vtc' has no attribute '{name}'")
