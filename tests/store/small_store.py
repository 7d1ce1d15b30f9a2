"""What the store of these tests is made of."""

from __future__ import annotations

WORDS = ["method=fwd2bot", "tokens=16"]
COUNT = 12  # pictures
