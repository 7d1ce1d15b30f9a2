"""Compressed images that are kept: made once, searched by text or by example, asked without the picture."""

from vtc.store.store import Store

__all__ = ["Store"]
