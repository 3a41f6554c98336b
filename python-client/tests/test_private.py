"""The private loader: found, started, shared, ended."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_loader import URI

import longshore
from longshore import _binary, _private


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LONGSHORE_LOADER", raising=False)
    monkeypatch.setenv("LONGSHORE_SOCKET_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(_private, "_current", None)
    yield
    gc.collect()


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "longshore"
    script = Path(__file__).with_name("fake_binary.py")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("LONGSHORE_BIN", str(path))
    return path


@pytest.mark.usefixtures("binary")
def test_it_is_started_shared_and_ends_with_the_last_lease() -> None:
    first = longshore.load(URI)
    second = longshore.load(URI)
    tensor = first["pid"]
    loader = _private._current
    assert loader is not None
    folder = Path(str(loader.address.path)).parent
    assert tensor.item() == second["pid"].item() == loader.pid
    assert folder.stat().st_mode & 0o077 == 0
    first.close()
    second.close()
    assert loader.is_running
    del tensor
    gc.collect()
    wait_until(lambda: not loader.is_running, "the end of the loader")
    wait_until(lambda: not folder.exists(), "its folder is removed")
    third = longshore.load(URI)
    assert third["pid"].item() != loader.pid
    third.close()
    ended = _private._current
    assert ended is not None
    assert ended is not loader
    wait_until(lambda: not ended.is_running, "the end of the second loader")


@pytest.mark.usefixtures("binary")
def test_an_address_that_was_asked_for_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(longshore.Unavailable):
        longshore.load(URI, address=str(tmp_path / "absent.sock"))
    monkeypatch.setenv("LONGSHORE_LOADER", str(tmp_path / "absent.sock"))
    with pytest.raises(longshore.Unavailable):
        longshore.load(URI)
    assert _private._current is None


@pytest.mark.usefixtures("binary")
@pytest.mark.parametrize(
    ("mode", "cls", "words"),
    [
        ("fail", longshore.PermissionDenied, "ended with code 5: error: the cache folder is read-only"),
        ("babble", longshore.Internal, "printed b'hello"),
        ("silent", longshore.Timeout, "not ready within"),
    ],
)
def test_a_start_that_fails(monkeypatch: pytest.MonkeyPatch, mode: str, cls: type[longshore.Error], words: str) -> None:
    monkeypatch.setenv("FAKE_MODE", mode)
    if mode == "silent":
        monkeypatch.setattr(_private, "START_SECONDS", 1.0)
    before = set(Path(tempfile.gettempdir()).glob("longshore-private-*"))
    with pytest.raises(cls, match=words):
        longshore.load(URI)
    assert set(Path(tempfile.gettempdir()).glob("longshore-private-*")) <= before


def test_where_the_binary_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGSHORE_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(longshore.NotFound, match=r"install the platform wheel.*LONGSHORE_BIN"):
        longshore.load(URI)
    on_path = tmp_path / "longshore"
    on_path.write_text("#!/bin/sh\n")
    on_path.chmod(0o755)
    assert _binary.find() == str(on_path)
    monkeypatch.setenv("LONGSHORE_BIN", str(tmp_path / "absent"))
    with pytest.raises(longshore.NotFound, match="absent is not a program"):
        _binary.find()
    monkeypatch.setenv("LONGSHORE_BIN", os.fspath(on_path))
    assert _binary.find() == str(on_path)
