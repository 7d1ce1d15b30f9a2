"""What stands behind a method: what its class says of that."""

from __future__ import annotations

from typing import ClassVar


class Evidence:
    """Lines of a method's class; what else stands behind it is read from committed files (docs/tools/evidence.py).

    Attributes:
        reference: the test that holds the method to its source's equations, independently written, `file::test` of
            tests/methods; empty: none. A class doesn't inherit it.
        incomparable: why what it keeps can't be compared with what its authors' code keeps; empty: it could be.
    """

    reference: ClassVar[str] = ""
    incomparable: ClassVar[str] = ""

    def lacking(self) -> str | None:
        """Why its answers on this backbone would say nothing of it, trained weights aside, and what to give; None: they
        do. A run is refused with it; what is only measured, or checked on tiny models, isn't."""
        return None
