"""The Hugging Face hub: known within seconds whether it answers, and what to do where it doesn't.

Its own clients try again and again, for minutes and without a word, before they look into the cache or give up. So it
is asked one small question first. Where that stays without an answer, this process goes on as under HF_HUB_OFFLINE=1:
from the cache, and with an error in one line for what isn't there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 10.0  # seconds
_silence = ""  # why this process no longer asks


def within(call: Callable[[], T]) -> T:
    """What `call` gives. Nobody waits longer than `PATIENCE` for it, whatever holds it: a client's own timeouts count
    neither the time that a name server takes, nor an answer that comes byte by byte.

    Raises:
        TimeoutError: it takes longer, and goes on in its thread.
        Exception: whatever it raises.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not outcome:
        raise TimeoutError(f"no answer within {PATIENCE:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def answers() -> bool:
    """Whether the hub answers. Where it doesn't, this process works from the cache alone from now on."""
    global _silence
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        within(_ask)
        return True
    except Exception as error:  # each way in which a network can fail has its own exception
        _silence = f"{constants.ENDPOINT} can't be reached ({str(error) or type(error).__name__})"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it has its own copy, made when it is imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False


def _ask() -> None:
    """Any answer is one, but that the server is overloaded or broken just now: that is asked about once a second."""
    from huggingface_hub import constants, get_session

    end = time.monotonic() + PATIENCE
    while (status := get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code) in (429, *range(500, 600)):
        if time.monotonic() + 1 > end:
            raise ConnectionError(f"HTTP {status}")
        time.sleep(1)


def missing(name: str, kind: str = "") -> str:
    """Why a repository that isn't in the cache can't be had, and what to do; empty where the hub can be asked.

    Args:
        kind: `dataset`, or none for a model.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return ""
    fetch = f"hf download {name} {f'--repo-type {kind} ' if kind else ''}--local-dir <folder>"
    return (
        f"it is not in the cache, and {_silence or 'HF_HUB_OFFLINE is set'}); get it with `{fetch}` where there is a "
        "network and give that folder, or name a mirror in HF_ENDPOINT"
        + ("; HF_HUB_OFFLINE=1 takes what is in the cache without asking" if _silence else ", or unset HF_HUB_OFFLINE")
    )
