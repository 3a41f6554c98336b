"""The real binary, and safetensors files of every kind, for the end-to-end tests."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_loader import repository

import longshore
from longshore._dtypes import DTYPES, expected_bytes

START_SECONDS = 60.0

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def binary() -> Path:
    """The binary under test; its absence is a failure, not a skip."""
    path = Path(os.environ.get("LONGSHORE_BIN") or repository() / "target/debug/longshore")
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `cargo build -p longshore-cli`, or set LONGSHORE_BIN", pytrace=False)
    return path


def random_tensor(dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    length = expected_bytes(dtype, shape)
    assert length is not None
    assert length >= 0, (dtype, shape)
    content = bytes(byte & 1 for byte in os.urandom(length)) if dtype == "BOOL" else os.urandom(length)
    return dtype, shape, content


def every_dtype() -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each dtype in each of these shapes, as far as its bits fill whole bytes."""
    shapes = [(), (1,), (0,), (3, 0, 2), (4, 8), (1, 1, 8), (7, 5), (33, 2, 12)]
    found = {}
    for dtype, known in DTYPES.items():
        for shape in shapes:
            if known.bits * math.prod(shape) % 8 == 0:
                found[f"{dtype.lower()}.{'x'.join(map(str, shape)) or 'scalar'}"] = random_tensor(dtype, shape)
    return found


def write_safetensors(path: Path, tensors: Tensors, padding: int = 0) -> None:
    """A file by hand: the package writes neither all dtypes nor headers of odd length."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(content)]}
        at += len(content)
    with path.open("wb") as file:
        file.write(encode_header(header, padding))
        for _, _, content in tensors.values():
            file.write(content)


def write_sparse(path: Path, size: int) -> None:
    """A file of one tensor that takes no room on the disk."""
    header = encode_header({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path.write_bytes(header)
    os.truncate(path, len(header) + size)


def encode_header(header: Mapping[str, object], padding: int = 0) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + padding)
    return struct.pack("<Q", len(text)) + text


def write_sharded(folder: Path, shards: Sequence[Tensors]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for index, tensors in enumerate(shards, 1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, tensors)
        places.update(dict.fromkeys(tensors, name))
    total = sum(len(content) for tensors in shards for _, _, content in tensors.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


class Daemon:
    """A `longshore loader` that reads its origins directly."""

    def __init__(self, folder: Path, *options: str, environ: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "loader.log"
        self._environ = {**os.environ, **(environ or {})}
        self._command: list[Any] = [
            binary(),
            "loader",
            "--socket-dir",
            folder,
            "--listen",
            "none",
            "--ops-listen",
            "none",
            *options,
        ]
        self.start()

    def start(self) -> None:
        """Starts it, also once more after its end."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.node = longshore.connect(str(self.folder / "loader.sock"))
                break
            except longshore.Unavailable:
                assert self.process.poll() is None, f"the loader ended: {self.log.read_text()}"
                assert time.monotonic() < deadline, f"the loader is not ready: {self.log.read_text()}"
                time.sleep(0.02)

    def close(self) -> None:
        self.node.close()
        self.process.terminate()
        self.process.wait(30)

    def leases(self, uri: str) -> int:
        """Leases of a model, as the loader reports them."""
        return sum(model.leases for model in self.node.status().models if model.uri == uri)

    def wait_for_leases(self, uri: str, count: int, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.leases(uri)) != count:
            assert time.monotonic() < deadline, f"{found} leases after {seconds} s, not {count}"
            time.sleep(0.01)


class Holder:
    """A `longshore holder`, which keeps the models of the loader of the same folder."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command: list[Any] = [binary(), "holder", "--socket-dir", folder]
        log_path = folder / "holder.log"
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environ}
            )
        deadline = time.monotonic() + START_SECONDS
        while not (folder / "holder.sock").exists():
            assert self.process.poll() is None, f"the holder ended: {log_path.read_text()}"
            assert time.monotonic() < deadline, f"the holder is not ready: {log_path.read_text()}"
            time.sleep(0.02)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
