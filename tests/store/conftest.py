"""A store of pocket's scenes, filled once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from small_store import COUNT, WORDS

from vtc import shipped
from vtc.store import Store


def script(name: str):
    """A script of benchmarks/store as a module."""
    spec = importlib.util.spec_from_file_location(name, shipped.path(f"benchmarks/store/{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    script("kills").draw(folder, COUNT, seed=1)
    return folder


@pytest.fixture(scope="session")
def where(tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "photos"
    Store.open(folder, WORDS, batch_size=5).add(pictures)
    return folder


@pytest.fixture(scope="session")
def store(where) -> Store:
    return Store.open(where)
