"""The papers' training data, streamed: LLaVA's conversations, caption pairs, webdataset shards, JSON lines.

Nothing is held in memory but an index on disk (`index`), every batch is a function of (seed, step) (`order`), and what
can't be read is named, counted and replaced (`source`).
"""

from vtc.data.training.batch import Batch, Part
from vtc.data.training.prefetch import Prefetched
from vtc.data.training.source import FileSource, Skipped, TrainingSource

__all__ = ["Batch", "FileSource", "Part", "Prefetched", "Skipped", "TrainingSource"]
