"""A method for vtc in a package of its own: see `loudest.py` and the entry point in pyproject.toml."""
