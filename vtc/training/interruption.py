"""Ctrl-C and SIGTERM during a stage: the step at hand is finished and its state stored before the process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

NOTE = b"vtc: stops after this step and stores its state; once more ends at once\n"


class Interruption:
    """While it is entered, a first SIGINT or SIGTERM is only noted, as half a step can't be stored; a second one is a
    KeyboardInterrupt at once. A signal that the process ignores, as in the background of a shell, stays ignored.

    Attributes:
        noted: the name of the one that came, None before.
    """

    noted: str | None = None

    def __enter__(self) -> Interruption:
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        name = signal.Signals(number).name
        if self.noted:
            raise KeyboardInterrupt(name)
        self.noted = name
        if os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):
                os.write(2, NOTE)  # print could be in the middle of a line, and isn't to be entered twice
