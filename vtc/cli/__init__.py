"""The command line: compose a configuration, check it, run an action. Nothing heavy is imported here."""

from vtc.cli.command import main, run
from vtc.configuration import parse

__all__ = ["main", "parse", "run"]
