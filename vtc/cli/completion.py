"""Completion of the `vtc` command in bash, zsh and fish, by Hydra: `eval "$(vtc -sc install=bash)"`.

Hydra completes keys, choices and files from the configuration; what has no file in `conf/` (methods, sources of tasks)
is made known to it first. It knows commands, not modules: `python -m vtc` isn't completed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import hydra
from hydra.core.config_store import ConfigStore

from vtc.configuration.choices import unconfigured
from vtc.configuration.compose import CONFIG, config_dir
from vtc.configuration.methods import store_methods
from vtc.configuration.unconfigured import NODES
from vtc.errors import UserError

FLAGS = ("-sc", "--shell_completion")
SHELLS = ("bash", "zsh", "fish")
COMMANDS = ("install", "uninstall", "query")


def complete(words: Sequence[str]) -> None:
    """Prints what a shell runs to complete `vtc`, or what a line that it asks about may go on with.

    Args:
        words: `install=bash`, `uninstall=bash`, or, as shells ask, `query=bash` with the line in `$COMP_LINE`.

    Raises:
        UserError: anything else.
    """
    command, _, shell = (words[0] if len(words) == 1 else "").partition("=")
    if command not in COMMANDS or shell not in SHELLS:
        raise UserError(f"-sc {' '.join(words)}: allowed: install=… or uninstall=… of {', '.join(SHELLS)}")
    store_methods()
    for group, node in NODES.items():
        for name in unconfigured(group):
            if group != "method":
                with contextlib.suppress(UserError):  # a plug-in that can't be imported is no choice
                    ConfigStore.instance().store(group=group, name=name, node=node(name), provider="plug-in")
    arguments, sys.argv = sys.argv, [sys.argv[0], "-sc", *words]
    full_error = os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(config_path=str(config_dir()), config_name=CONFIG, version_base="1.3")(lambda _: None)()
    except Exception:
        if command != "query":  # what is typed may not be a line yet: then there is nothing to go on with
            raise
    finally:
        sys.argv = arguments
        if full_error == "1":
            os.environ.pop("HYDRA_FULL_ERROR", None)
