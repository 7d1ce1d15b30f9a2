"""Shared by all tests. Being here puts tests/ on sys.path, so that tests may `import method_cases`."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the hub
