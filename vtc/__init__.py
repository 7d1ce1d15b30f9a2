"""vtc: one framework for visual-token compression in large vision-language models.

Importing this package imports nothing heavy; `vtc.interface`, `vtc.engine` and `vtc.backbones` do.
"""

__version__ = "0.1.0"
