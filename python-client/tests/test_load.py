"""Requests, progress, time-outs and addresses."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest
from fake_loader import URI, FakeLoader, FakeModel

import longshore
from longshore import _address
from longshore._progress import Bar, format_bytes
from longshore._proto import loader_pb2


def test_the_request_carries_what_was_asked(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    node.load(URI, "host", include=["*.gguf", "a/*"], revalidate=True)
    request = loader.requests[0]
    assert (request.uri, request.device, list(request.include), request.revalidate) == (
        URI,
        "host",
        ["*.gguf", "a/*"],
        True,
    )
    assert not request.HasField("parallel")
    node.load(URI, "cpu")
    assert loader.requests[1].device == "host"
    with pytest.raises(longshore.InvalidArgument, match="list of patterns"):
        node.load(URI, include="*.gguf")


def test_a_path_is_meant_from_here(
    node: longshore.Node, loader: FakeLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loader.models[f"{tmp_path}/a"] = FakeModel()
    for uri in (tmp_path / "a", Path("a"), "a", "./b/../a/"):
        assert len(node.load(uri)) == 0
    assert node.unload("a").models == 1


def events() -> list[loader_pb2.LoadProgress]:
    return [
        loader_pb2.LoadProgress(step=loader_pb2.LOAD_STEP_RESOLVE),
        loader_pb2.LoadProgress(
            step=loader_pb2.LOAD_STEP_FETCH, bytes_done=50_000_000, bytes_total=200_000_000, elapsed_seconds=0.5
        ),
        loader_pb2.LoadProgress.FromString(b"\x08\x63"),
    ]


def test_progress_by_callback(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    loader.progress = events()
    seen: list[longshore.Progress] = []
    node.load(URI, progress=seen.append)
    assert [event.step for event in seen] == ["resolve", "fetch", "unknown_99"]
    assert seen[1] == longshore.Progress("fetch", 50_000_000, 200_000_000, 0.5)


def test_a_callback_that_fails_ends_the_load(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    loader.progress = events()

    def fail(_: longshore.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        node.load(URI, progress=fail)
    assert loader.leases == 0


def test_progress_bar(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    loader.progress = events()
    node.load(URI)
    assert capsys.readouterr().err == "", "stderr is no terminal here"
    node.load(URI, progress=True)
    lines = capsys.readouterr().err
    assert lines.endswith("\n")
    assert "in memory already, 288 B" in lines
    node.load(URI, progress=False)
    loader.models.clear()
    with pytest.raises(longshore.NotFound):
        node.load(URI, progress=True)
    assert capsys.readouterr().err.rstrip(" \r").endswith("resolve")


def test_the_bar_shows_part_and_rate() -> None:
    stream = io.StringIO()
    bar = Bar("s3://bucket/" + "long/" * 20, stream)
    bar.update(longshore.Progress("fetch", 50_000_000, 200_000_000, 0.5))
    assert "fetch [######..................]  25% 50.0 MB of 200.0 MB 100.0 MB/s" in stream.getvalue()
    bar.done(longshore.LoadReport(1.5, 10, {"origin": 7, "peer": 0}, (), 0, 0, (), False))
    assert "10 B in 1.50 s (origin 7 B)" in stream.getvalue()
    assert [format_bytes(n) for n in (999, 1000, 2_500_000, 3 * 10**9, 10**15)] == [
        "999 B",
        "1.0 KB",
        "2.5 MB",
        "3.0 GB",
        "1000.0 TB",
    ]


def test_the_timeout_bounds_the_load(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    release = threading.Event()
    loader.on_load = lambda: release.wait(30)
    with pytest.raises(longshore.Timeout, match=r"load of s3://bucket/model: the loader at unix:.* did not answer"):
        node.load(URI, timeout=0.2)
    release.set()
    assert node.load(URI, timeout=30).uri == URI


def test_models_unload_status(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    model = node.load(URI)
    (info,) = node.models()
    assert (info.uri, info.model_id, info.nbytes, info.tensor_count) == (URI, model.model_id, 288, 2)
    status = node.status()
    assert status.version == "0.1.0"
    assert status.devices == (longshore.DeviceStatus("host", "", "memory", 1000, 0, 900, "ready", 0),)
    assert status.members == (longshore.Member("w1", "127.0.0.1:7070", 4, True),)
    assert [each.uri for each in status.models] == [URI]
    assert (status.pinned, status.holder) == (None, None)
    loader.has_gpu_status = True
    assert node.status().pinned == longshore.PinnedStatus(64, 16, 0, "4 KiB")
    unknown = longshore.UnknownModel("m0", "of a newer version", 8, 1)
    assert node.status().holder == longshore.HolderStatus(True, 7, 1.5, 2, (unknown,))
    assert node.unload(model_id=model.model_id) == longshore.UnloadResult(1, 288, 0)
    assert node.unload(URI).models == 0
    with pytest.raises(longshore.InvalidArgument, match="one of both"):
        node.unload()
    assert model["w"].shape == (2, 2)


def test_a_closed_node(node: longshore.Node, small: FakeModel) -> None:
    model = node.load(URI)
    node.close()
    node.close()
    with pytest.raises(longshore.FailedPrecondition, match="closed"):
        node.status()
    assert model["w"].shape == (2, 2)


def test_a_loader_that_goes_away(small: FakeModel, loader: FakeLoader, node: longshore.Node) -> None:
    loader._server.stop(None).wait()
    with pytest.raises(longshore.Unavailable, match="cannot be reached"):
        node.load(URI, timeout=5)


# ---- addresses


def test_addresses(tmp_path: Path) -> None:
    assert _address.parse("unix:/a/b.sock").target == "unix:/a/b.sock"
    assert _address.parse("unix:///a/b.sock").target == "unix:/a/b.sock"
    assert _address.parse("/a/b.sock").target == "unix:/a/b.sock"
    assert _address.parse(str(tmp_path)).target == f"unix:{tmp_path}/loader.sock"
    assert _address.parse("node:7080").target == "node:7080"
    assert _address.parse("http://node:7080/").target == "node:7080"
    assert _address.parse("[::1]:7080").target == "[::1]:7080"
    for wrong in ("", "node", "node:0", "node:99999", ":7080", "https://node:1/x", "a/b"):
        with pytest.raises(longshore.InvalidArgument):
            _address.parse(wrong)


def test_where_a_loader_is_looked_for(tmp_path: Path) -> None:
    run = tmp_path / "longshore"
    run.mkdir()
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert [str(path) for path in _address._socket_dirs(environ)] == [
        "/run/longshore",
        str(run),
        f"/tmp/longshore-{os.getuid()}",
    ]
    given = {"LONGSHORE_SOCKET_DIR": "/sockets", **environ}
    assert _address.default(given).target == "unix:/sockets/loader.sock"


def test_a_folder_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"/tmp/longshore-test-{os.getpid()}")
    folder.mkdir(mode=0o700)
    try:
        environ = {"LONGSHORE_SOCKET_DIR": str(folder)}
        assert _address.default(environ).path == f"{folder}/loader.sock"
        folder.chmod(0o777)
        with pytest.raises(longshore.PermissionDenied, match="not trusted"):
            _address.default(environ)
        folder.chmod(0o700)
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        if folder.stat().st_uid != 0:
            with pytest.raises(longshore.PermissionDenied, match="not trusted"):
                _address.default(environ)
    finally:
        folder.rmdir()


def test_connect_tells_at_once_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(longshore.Unavailable, match=r"no loader at unix:.*No such file.*longshore loader"):
        longshore.connect(str(tmp_path / "absent.sock"))
    monkeypatch.setenv("LONGSHORE_LOADER", f"unix://{tmp_path}/other.sock")
    with pytest.raises(longshore.Unavailable, match=r"other\.sock"):
        longshore.connect()


def test_the_address_of_the_environment(loader: FakeLoader, small: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_LOADER", f"unix://{loader.socket}")
    assert longshore.load(URI)["w"].shape == (2, 2)
    monkeypatch.delenv("LONGSHORE_LOADER")
    monkeypatch.setenv("LONGSHORE_SOCKET_DIR", loader.folder)
    with longshore.connect() as node:
        assert node.address == f"unix:{loader.socket}"
        assert loader.folder in repr(node)


def test_the_attach_socket_of_a_container_is_found_beside_ours(
    node: longshore.Node, loader: FakeLoader, small: FakeModel
) -> None:
    loader.attach_socket = "/elsewhere/attach.sock"
    assert node.load(URI)["w"].shape == (2, 2)
