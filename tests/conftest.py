"""Shared by all tests. Being here puts tests/ on sys.path, so that tests may `import method_cases`."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the hub

from unittest import mock

import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_stays_registered():
    """What a module's tests register, or bring in files, is known to no other module."""
    from vtc import plugins, registry

    kinds = (registry.methods, registry.families, registry.recipes, registry.training_sources, registry.sources)
    places = [(kind, name) for kind in kinds for name in ("_registered", "_files")] + [(plugins, "_loaded")]
    before = [mock.patch.object(owner, name, dict(getattr(owner, name))) for owner, name in places]
    for patch in before:
        patch.start()
    yield
    for patch in before:
        patch.stop()
