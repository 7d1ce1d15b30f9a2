"""What a method costs: FLOPs, time to first token, decoding, throughput, memory, beside the uncompressed model."""

from vtc.profiling.run import efficiency

VERSION = 2  # raise it with any change that gives a method other costs: finished runs are measured again, not scored

__all__ = ["VERSION", "efficiency"]
