"""The one exception that stands for a mistake of the user, not of the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake in one line: the key, what was given, what is allowed, the nearest match.

    `python -m vtc` prints the line and exits with code 2, without a traceback.
    """


class SampleError(UserError):
    """What a model can't answer. Evaluation sets the sample aside and goes on; elsewhere it is an error like others."""


class NotFinite(SampleError):
    """Values that are no numbers, or beyond what their type holds."""


class MethodFailure(RuntimeError):
    """A method's own code raised: a mistake in the method, whatever it was run on. The cause is the exception."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'fastv'?"` where one of `allowed` is close to `word` or begins with it, else `""`."""
    names = [str(a) for a in allowed]
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not match and len(word) > 2:
        match = [name for name in names if name.startswith(word)]
    return f"; did you mean '{match[0]}'?" if match else ""


def unknown(key: str, name: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that doesn't exist, e.g. `unknown("method", "fastvv", [...])`."""
    names = sorted(str(a) for a in allowed)
    return UserError(f"{key}={name}: unknown; allowed: {', '.join(names)}{nearest(str(name), names)}")
