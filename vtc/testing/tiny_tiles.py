"""What the tiny models of the families with tiles share: 8×8 patches of a tile are 4×4 visual tokens."""

SIDE, PATCH, SHUFFLE = 16, 2, 2
TOKENS = (SIDE // PATCH // SHUFFLE) ** 2
