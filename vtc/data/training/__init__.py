"""The papers' training data, streamed: LLaVA's conversations, caption pairs, webdataset shards, JSON lines.

Nothing is held in memory but an index on disk (`index`), every batch is a function of (seed, step) (`order`), and what
can't be read is named, counted and replaced (`source`).
"""

from vtc.data.training.prefetch import Prefetched
from vtc.data.training.source import Skipped, Source

__all__ = ["Prefetched", "Skipped", "Source"]
