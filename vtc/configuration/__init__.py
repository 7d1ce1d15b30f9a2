"""From words to a `Job`: Hydra composes, `resolve` types and checks."""

from vtc.configuration.compose import parse

__all__ = ["parse"]
