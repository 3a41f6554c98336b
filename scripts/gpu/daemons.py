"""The processes of a node, with their CPU time: holder, loader, worker, and a store with counters."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """Something that is measured did not work; the text goes into its row."""


#: Below what the kernel gives to connections by itself: none of those can take a port between the look and the
#: daemon's own bind.
_ports = (port for port in itertools.cycle(random.sample(range(10_000, 32_768), 2_000)))


def free_address() -> str:
    """A loopback address that is free now, and another one with each call."""
    for port in itertools.islice(_ports, 2_000):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"
    raise Failed("no loopback port from 10000 to 32767 is free")


def _stat(pid: int) -> list[str]:
    # The name in parentheses may hold spaces: fields are counted behind it.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def family(pid: int) -> list[int]:
    """A process and everything that it started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, as far as they live."""
    total = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            fields = _stat(each)
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


class Daemon:
    """A process with a log, ended with its `with` block."""

    def __init__(self, name: str, command: list[Any], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self) -> str:
        """The last words of its log: the error, when there is one."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            errors = [line for line in lines if line.startswith("error") or " ERROR " in line]
            return (errors or lines or [""])[-1][-500:]
        return ""

    def wait_for(self, what: str, found: Any, seconds: float) -> None:
        """Polls until `found()` is true."""
        deadline = time.monotonic() + seconds
        while not found():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: {self.tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: no {what} within {seconds:.0f} s: {self.tail()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Asks it to end, and does not wait for ever."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


def fetch(url: str, seconds: float = 5) -> str | None:
    """A page, or None."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return answer.read().decode()
    except OSError:
        return None


class Node:
    """A holder and a loader with their sockets in one folder; perhaps a worker."""

    def __init__(self, longshore: Path, folder: Path, environment: dict[str, str], **options: Any) -> None:
        self.longshore = longshore
        self.folder = folder
        self.sockets = folder / "run"
        self.sockets.mkdir(parents=True, exist_ok=True)
        self.environment = environment
        self.options = options
        self.holder: Daemon | None = None
        self.loader: Daemon | None = None
        self.worker: Daemon | None = None
        self.ops = ""

    def start_holder(self) -> None:
        """The process that keeps GPU memory. It is not started again with the loader."""
        command = [self.longshore, "holder", "--socket-dir", self.sockets]
        self.holder = Daemon("holder", command, self.folder / "holder.log", self.environment)
        self.holder.wait_for("holder.sock", (self.sockets / "holder.sock").exists, 60)

    def start_loader(self, wait: bool = True) -> None:
        """The daemon; page-locked memory is taken here, which may take a while."""
        self.ops = free_address()
        command: list[Any] = [
            self.longshore, "loader", "--socket-dir", self.sockets, "--listen", "none", "--ops-listen", self.ops,
            "--require-holder",
        ]  # fmt: skip
        for name, value in self.options.items():
            if value is not None:
                command += [f"--{name.replace('_', '-')}", value]
        self.loader = Daemon("loader", command, self.folder / "loader.log", self.environment)
        if wait:
            self.loader.wait_for("readiness", lambda: fetch(f"http://{self.ops}/readyz") is not None, 180)

    def start_worker(self, memory_bytes: int) -> str:
        """A cache worker that serves descriptors on this host; gives the address of its data plane."""
        data, control, ops = free_address(), free_address(), free_address()
        command = [
            self.longshore, "worker", "--memory-only", "--memory", memory_bytes, "--cache-dir", self.folder / "cache",
            "--data-listen", data, "--control-listen", control, "--ops-listen", ops,
            "--unix-socket", self.folder / "worker.sock",
        ]  # fmt: skip
        self.worker = Daemon("worker", command, self.folder / "worker.log", self.environment)
        self.worker.wait_for("readiness", lambda: fetch(f"http://{ops}/readyz") is not None, 60)
        return data

    def cpu_seconds(self) -> float:
        """Of all of them."""
        return sum(cpu_seconds(each.pid) for each in (self.holder, self.loader, self.worker) if each is not None)

    def command(self, *words: Any, seconds: float = 120) -> dict[str, Any]:
        """A command of the command line against this loader, and its JSON."""
        command = [self.longshore, *words, "--json", "--loader", f"unix://{self.sockets}/loader.sock"]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=self.environment, timeout=seconds
        )
        if done.returncode != 0:
            raise Failed(f"longshore {words[0]} failed: {(done.stderr or done.stdout)[-400:].strip()}")
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = fetch(f"http://{self.ops}/metrics")
        if text is None:
            raise Failed("the loader's metrics cannot be read")
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def end(self) -> None:
        """The loader first: the holder would keep what it published."""
        for each in (self.loader, self.worker, self.holder):
            if each is not None:
                each.end()


@contextlib.contextmanager
def node(longshore: Path, folder: Path, environment: dict[str, str], **options: Any) -> Iterator[Node]:
    """A running node."""
    made = Node(longshore, folder, environment, **options)
    try:
        made.start_holder()
        made.start_loader()
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def store(program: Path, folder: Path, served: Path, prefix: str) -> Iterator[str]:
    """An S3-compatible store over a folder, with counters; gives its URL."""
    address = free_address()
    command = [program, "--listen", address, "--folder", served, "--prefix", prefix]
    daemon = Daemon("store", command, folder / "store.log", dict(os.environ))
    try:
        daemon.wait_for("readiness", lambda: fetch(f"http://{address}/_counters") is not None, 120)
        yield f"http://{address}"
    finally:
        daemon.end()


def store_environment(url: str) -> dict[str, str]:
    """What daemons need to read from such a store."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
    }
