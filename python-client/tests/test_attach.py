"""What a broken or hostile loader gets: an error, and nothing mapped, leaked or allocated."""

from __future__ import annotations

import gc
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import private_mount
import pytest
from fake_loader import URI, FakeLoader, FakeModel

import longshore
from longshore._memory import Lease, map_region
from longshore._proto import loader_pb2

Response = loader_pb2.AttachResponse


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _grow_region(response: Response) -> None:
    region = response.model.regions[0]
    region.size_bytes += 4096
    region.segment_bytes[0] += 4096


def _huge_region(response: Response) -> None:
    region = response.model.regions[0]
    region.size_bytes = region.segment_bytes[0] = 1 << 62


def _edit(field: str, value: object) -> Callable[[Response], None]:
    def change(response: Response) -> None:
        setattr(response.model.tensors[0], field, value)

    return change


def _twice(response: Response) -> None:
    response.model.tensors[1].name = response.model.tensors[0].name


BAD: dict[str, tuple[Callable[[Response], None], str]] = {
    "fewer fds": (lambda r: setattr(r, "fd_count", 0), "descriptors"),
    "more fds": (lambda r: setattr(r, "fd_count", 5000), "descriptors"),
    "region longer than its memory": (_grow_region, "announced with"),
    "region beyond the address space": (_huge_region, "address space"),
    "segments do not add up": (lambda r: setattr(r.model.regions[0], "size_bytes", 1), "add up"),
    "offset outside": (_edit("offset_bytes", 1 << 63), "outside"),
    "no such region": (_edit("region", 7), "outside"),
    "length against dtype": (_edit("dtype", "F64"), r"'w' of F64 \[2, 2\] has 16 bytes"),
    "bits that fill no byte": (_edit("dtype", "F6_E2M3"), "'w' of F6_E2M3"),
    "a name twice": (_twice, "twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_description_that_cannot_be_true(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, case: str
) -> None:
    small.edit, words = BAD[case]
    node.status()
    before = open_files()
    with pytest.raises(longshore.Corrupt, match=words):
        node.load(URI)
    loader.wait_for_leases(0)
    assert open_files() == before


def test_memory_that_could_be_truncated_is_refused(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    small.seals = 0x4
    with pytest.raises(longshore.Corrupt, match="not sealed"):
        node.load(URI)
    loader.wait_for_leases(0)


def can_mount() -> bool:
    """Root can; who may not cannot be given such memory by this process either."""
    try:
        private_mount.mounts()
    except PermissionError:
        assert os.geteuid() != 0
        return False
    return True


def test_memory_of_a_private_mount_that_is_read_only(
    node: longshore.Node, loader: FakeLoader, small: FakeModel
) -> None:
    if not can_mount():
        return
    small.make_memory = private_mount.read_only_file
    model = node.load(URI, framework="numpy")
    assert model["b"].tobytes() == bytes(range(24))
    # A write is this process's own affair, as with any other memory.
    fd = private_mount.read_only_file(b"as it was")
    ours, theirs = socket.socketpair()
    view = map_region([fd], [9], Lease(ours))
    view[:2] = b"AS"
    assert (bytes(view), os.pread(fd, 9, 0)) == (b"AS it was", b"as it was")
    os.close(fd)
    # The view holds the lease: with it the socket is closed.
    del view
    assert theirs.recv(1) == b""
    theirs.close()


LACKS: dict[str, dict[str, Any]] = {
    "open to write": {"flags": os.O_RDWR, "is_writable": True},
    "a mount to write": {"is_writable": True},
    "has a name": {"is_named": True},
}


@pytest.mark.parametrize("case", LACKS)
def test_memory_of_a_mount_that_others_could_change_is_refused(
    node: longshore.Node, loader: FakeLoader, small: FakeModel, case: str
) -> None:
    small.make_memory = lambda data: private_mount.read_only_file(data, **LACKS[case])
    if not can_mount():
        return
    with pytest.raises(longshore.Corrupt, match="not sealed"):
        node.load(URI)
    loader.wait_for_leases(0)


RAW: dict[str, tuple[bytes, type[longshore.Error], str]] = {
    "oversized": (struct.pack("<I", (64 << 20) + 1), longshore.Corrupt, "64 MiB"),
    "cut off": (struct.pack("<I", 100) + b"abc", longshore.Unavailable, "closed the connection"),
    "nothing": (b"", longshore.Unavailable, "closed the connection"),
    "garbage": (struct.pack("<I", 4) + b"\xff\xff\xff\xff", longshore.Corrupt, "cannot be read"),
}


@pytest.mark.parametrize("case", RAW)
def test_bytes_that_are_no_answer(node: longshore.Node, loader: FakeLoader, small: FakeModel, case: str) -> None:
    answer, cls, words = RAW[case]
    loader.attach_raw = lambda connection: connection.sendall(answer)
    with pytest.raises(cls, match=words):
        node.load(URI)


def test_descriptors_that_do_not_come(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    def without_fds(connection: socket.socket) -> None:
        model = small.build("m1", URI).model
        data = Response(fd_count=1, model=model).SerializeToString()
        connection.sendall(struct.pack("<I", len(data)) + data + b"F")

    loader.attach_raw = without_fds
    with pytest.raises(longshore.Corrupt, match="another number of descriptors"):
        node.load(URI)


def test_a_silent_loader_runs_into_the_timeout(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    done = threading.Event()
    loader.attach_raw = lambda _: done.wait(30)
    with pytest.raises(longshore.Timeout, match=r"attach at .* no answer"):
        node.load(URI, timeout=0.3)
    done.set()


def test_an_attach_error_is_mirrored(node: longshore.Node, loader: FakeLoader, small: FakeModel) -> None:
    loader.attach_raw = lambda connection: _answer(connection, Response(error_code="exhausted", error_message="full"))
    with pytest.raises(longshore.Exhausted, match="full"):
        node.load(URI)


def _answer(connection: socket.socket, response: Response) -> None:
    data = response.SerializeToString()
    connection.sendall(struct.pack("<I", len(data)) + data)


def test_a_model_evicted_before_the_attach_is_loaded_again(
    node: longshore.Node, loader: FakeLoader, small: FakeModel
) -> None:
    loader.evicted = 2
    assert node.load(URI, framework="numpy")["w"].tobytes() == bytes(range(16))
    assert len(loader.requests) == 3
    loader.evicted = 3
    with pytest.raises(longshore.NotFound):
        node.load(URI)


FEW_FILES = """
import os, resource, sys
import longshore

node = longshore.connect(sys.argv[1])
node.status()
top = max(int(name) for name in os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (top + 40, top + 40))
try:
    node.load(sys.argv[2], framework="numpy")
except longshore.Exhausted as error:
    print(error)
"""


def test_too_few_descriptors_allowed(loader: FakeLoader) -> None:
    page = resource.getpagesize()
    loader.models[URI] = FakeModel(tensors={"t": ("U8", (100 * page,), bytes(100 * page))}, segment_bytes=page)
    run = subprocess.run([sys.executable, "-c", FEW_FILES, loader.socket, URI], capture_output=True, text=True)
    assert "ulimit -n" in run.stdout, run.stderr
    loader.wait_for_leases(0)
