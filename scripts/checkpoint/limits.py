"""The plain limits: the same bytes, copied, written or uploaded by something that does nothing else."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import torch
from subject import Measure, own_cpu

#: As many as the loader uploads at once.
CONNECTIONS = 8
PART_BYTES = 32 << 20
_UPLOAD_ID = re.compile(r"<UploadId>([^<]+)</UploadId>")


class HostCopy:
    """Copies tensors one by one into memory that was touched before."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors
        self._room = torch.ones(sum(each.nbytes for each in tensors), dtype=torch.uint8)

    def run(self) -> Measure:
        """With as many threads as torch uses for a copy."""
        start, cpu, at = time.perf_counter(), own_cpu(), 0
        for tensor in self._tensors:
            self._room[at : at + tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
            at += tensor.nbytes
        return Measure(time.perf_counter() - start, own_cpu() - cpu)


def fio(folder: Path, size_bytes: int, direct: bool) -> Measure:
    """A new file, written in order and synced."""
    path = folder / "fio"
    command = [
        "fio", "--name=w", "--rw=write", "--bs=4M", f"--size={size_bytes}", f"--filename={path}", "--end_fsync=1",
        f"--direct={int(direct)}", f"--ioengine={'libaio' if direct else 'psync'}", f"--iodepth={8 if direct else 1}",
        "--refill_buffers=0", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    job = json.loads(done.stdout)["jobs"][0]
    path.unlink()
    seconds = job["job_runtime"] / 1000
    return Measure(seconds, (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds)


def multipart(store: str, path: str, size_bytes: int) -> Measure:
    """A multipart upload of bytes in memory over some connections, without checksums and without signatures."""
    address = urlparse(store).netloc
    body = memoryview(os.urandom(1 << 20) * (PART_BYTES >> 20))
    start, cpu = time.perf_counter(), own_cpu()
    answer = _request(http.client.HTTPConnection(address), "POST", f"{path}?uploads=", b"")[1]
    found = _UPLOAD_ID.search(answer.decode())
    if found is None:
        raise RuntimeError(f"no upload id in {answer[:200]!r}")
    parts: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for number, at in enumerate(range(0, size_bytes, PART_BYTES), 1):
        parts.put((number, min(PART_BYTES, size_bytes - at)))
    tags: dict[int, str] = {}
    failed: list[Exception] = []

    def work() -> None:
        connection = http.client.HTTPConnection(address)
        try:
            while True:
                number, length = parts.get_nowait()
                target = f"{path}?partNumber={number}&uploadId={found.group(1)}"
                tags[number] = _request(connection, "PUT", target, body[:length])[0]
        except queue.Empty:
            pass
        except Exception as error:  # noqa: BLE001 - told by the caller's thread
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    listed = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tags[n]}</ETag></Part>" for n in sorted(tags))
    whole = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    _request(http.client.HTTPConnection(address), "POST", f"{path}?uploadId={found.group(1)}", whole)
    return Measure(time.perf_counter() - start, own_cpu() - cpu)


def _request(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | memoryview
) -> tuple[str, bytes]:
    connection.request(method, target, body=body)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {target} answered {answer.status}: {content[:200]!r}")
    return answer.getheader("ETag") or "", content


def clear(store: str, bucket: str) -> None:
    """Forgets what limits and peers uploaded: the store is in memory. Checkpoints of ours go by their own retention."""
    address = urlparse(store).netloc
    with urllib.request.urlopen(f"{store}/{bucket}?list-type=2&prefix=", timeout=30) as answer:
        names = re.findall(r"<Key>([^<]+)</Key>", answer.read().decode())
    for name in names:
        if not name.startswith("run/"):
            _request(http.client.HTTPConnection(address), "DELETE", f"/{bucket}/{name}", b"")


def file_system(folder: Path) -> str:
    """Type and device of the file system of a folder."""
    done = subprocess.run(
        ["findmnt", "-no", "FSTYPE,SOURCE", "-T", folder], capture_output=True, text=True, check=False
    )
    return " on ".join(done.stdout.split())
