"""The command line: compose a configuration, check it, run an action. Nothing heavy is imported here."""

from vtc.cli.command import main, run
from vtc.configuration.compose import compose

__all__ = ["compose", "main", "run"]
