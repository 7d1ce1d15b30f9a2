"""What a method costs: FLOPs, time to first token, decoding, throughput, memory, beside the uncompressed model."""

from vtc.profiling.run import efficiency, profile

__all__ = ["efficiency", "profile"]
