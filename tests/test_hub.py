"""A hub that can't be reached, or that never answers, is known of within seconds, and the cache does without it."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from checkpoints import load

from vtc import hub
from vtc.backbones import compose
from vtc.backbones.loading import auto_config
from vtc.errors import UserError
from vtc.testing import tiny_backbone

PATIENCE = 1.5


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if a hub were asked, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_silence", "")
    monkeypatch.setattr(hub, "PATIENCE", PATIENCE)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def server(behaviour: str) -> Iterator[str]:
    """The address of a hub that does this with whoever calls."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    if behaviour == "refuses":
        listener.close()
        yield address
        return
    calls: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                call, _ = listener.accept()
            except OSError:
                return
            calls.append(call)
            threading.Thread(target=answer, args=(call,), daemon=True).start()

    def answer(call: socket.socket) -> None:
        replies = {"answers": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                   "asks who it is": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
                   "knows no such page": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                   "is overloaded": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"}  # fmt: skip
        try:
            while call.recv(65536):
                if behaviour == "hangs up":
                    call.close()
                elif behaviour == "answers byte by byte":
                    for byte in replies["answers"] * 100:
                        call.sendall(bytes([byte]))
                        time.sleep(0.5)
                elif behaviour in replies:
                    call.sendall(replies[behaviour])
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    with closing(listener):
        try:
            yield address
        finally:
            for call in calls:
                call.close()


SILENT = ["refuses", "never answers", "hangs up", "answers byte by byte", "is overloaded"]


@contextmanager
def hub_that(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from huggingface_hub import constants

    with server(behaviour) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield address


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.mark.parametrize("behaviour", ["answers", "asks who it is", "knows no such page"])
def test_any_answer_is_one(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_that(behaviour, monkeypatch):
        assert hub.answers() and not hub.missing("a/b")


@pytest.mark.parametrize("behaviour", SILENT)
def test_what_does_not_answer_is_asked_once(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with hub_that(behaviour, monkeypatch) as address:
        with no_longer_than(PATIENCE + 1):
            assert not hub.answers()
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        assert f"{address} can't be reached (" in hub.missing("a/b")
        with no_longer_than(0.1):
            assert not hub.answers()


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    with no_longer_than(PATIENCE + 1):
        assert not hub.answers()
    assert "no answer within 2 s" in hub.missing("a/b")


REMEDY = (
    r"get it with `hf download nobody/nothing --local-dir <folder>` where there is a network and give that folder, "
    r"or name a mirror in HF_ENDPOINT; HF_HUB_OFFLINE=1 takes what is in the cache without asking$"
)


@pytest.mark.parametrize("behaviour", SILENT)
def test_models_and_processors_say_what_to_do(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_that(behaviour, monkeypatch) as address, no_longer_than(PATIENCE + 15):
        why = rf"\(it is not in the cache, and {address} can't be reached \(.*\)\); "
        with pytest.raises(UserError, match=rf"^backbone.pretrained=nobody/nothing: can't be read {why}{REMEDY}"):
            load({"name": "llava15_7b", "pretrained": "nobody/nothing", "device": "cpu"})
        with pytest.raises(UserError, match=rf"^--vision-tower=nobody/nothing: can't be read {why}{REMEDY}"):
            auto_config("--vision-tower", "nobody/nothing")


def test_composing_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    with hub_that("never answers", monkeypatch), no_longer_than(PATIENCE + 15):
        arguments = ["--language-model", "nobody/nothing", "--vision-tower", "nobody/nothing"]
        assert compose.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "vtc: --language-model=nobody/nothing: can't be read (it is not in the cache" in capsys.readouterr().err


def test_data_sets_of_the_users_too(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import datasets

    from vtc.cli import main

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    words = ["backbone=pocket", "method=none", "benchmark=hf", "data=nobody/nothing"]
    with hub_that("never answers", monkeypatch), no_longer_than(PATIENCE + 20):
        assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("vtc: benchmark.data=nobody/nothing: can't be loaded (it is not in the cache, and http")
    assert "hf download nobody/nothing --repo-type dataset --local-dir <folder>" in line


def test_what_is_in_the_cache_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone, repository = tiny_backbone(), tmp_path / "cache" / "models--some--one"
    snapshot = repository / "snapshots" / ("0" * 40)
    backbone.model.save_pretrained(snapshot)
    backbone.processor.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    cfg = {"name": "llava15_7b", "pretrained": "some/one", "device": "cpu", "dtype": "float32"}
    with hub_that("never answers", monkeypatch), no_longer_than(PATIENCE + 15):
        assert load(cfg).shape.visual_tokens == 16
    next(snapshot.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"can't be loaded \(it is not in the cache, and http"):
        load(cfg)


def test_a_users_own_wish_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = r"\(it is not in the cache, and HF_HUB_OFFLINE is set\); .*, or unset HF_HUB_OFFLINE$"
    with pytest.raises(UserError, match=words):
        auto_config("backbone.pretrained", "nobody/nothing")


def test_folders_ask_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "answers", lambda: pytest.fail("the hub was asked"))
    tiny_backbone().model.save_pretrained(tmp_path / "model")
    assert auto_config("backbone.pretrained", str(tmp_path / "model")).model_type == "llava"
    assert "vtc.hub" in sys.modules
