"""Running a backbone under a compression method: `with compressing(model, method) as engine: model.generate(...)`.

The only place that knows positions, masks, caches and padding.
"""

from vtc.engine.embed import embed_images, embed_texts, encode_images, encode_texts
from vtc.engine.engine import Engine, compressing
from vtc.engine.passes import run_decoder
from vtc.engine.report import Report
from vtc.engine.spreading import Complexities, spread_over
from vtc.engine.stored import StoredImage, answer, check_storable, compress_images

__all__ = [
    "VERSION",
    "Complexities",
    "StoredImage",
    "Engine",
    "Report",
    "answer",
    "check_storable",
    "compress_images",
    "compressing",
    "embed_images",
    "embed_texts",
    "encode_images",
    "encode_texts",
    "run_decoder",
    "spread_over",
]

VERSION = 1  # Raised when what a method computes through the engine changes: its numbers, not its speed.
