"""One picture under several methods: what each keeps, attends to and says, as one figure."""

from vtc.visualize.run import visualize

__all__ = ["visualize"]
