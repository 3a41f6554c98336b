"""What runs beside the subjects: origins, workers and loaders, as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons import Daemon, Failed, fetch, free_address, store_environment

from speed.agents import Adapter, clean_environment, peer_command
from speed.prefaulted import Prefaulted, wanted_bytes
from speed.rows import Sample

#: The bucket, and the folder in it, of everything that is loaded.
BUCKET = "bench"
#: Budget of a worker that serves from its disk, and of one that is filled while it serves (on a machine of 16 GiB).
WORKER_MEMORY_BYTES, WORKER_MEMORY_EMPTY_BYTES = 512 << 20, 2 << 30
#: A cloud store: time to the first byte, and rates of one connection and of all.
PACE = ["--first-byte-ms", "5", "--connection-bandwidth", "90MB", "--bandwidth", "600MB"]


def cpu_clock(pid: int) -> float:
    """CPU seconds of a process so far, of all its threads, finer than the ticks of /proc."""
    return time.clock_gettime((~pid << 3) | 2)


def raise_open_files() -> None:
    """An origin keeps its files open, and has a connection for each request in flight."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Origin:
    """An S3-compatible store in a process of its own: not a subject, and its CPU is counted nowhere."""

    def __init__(self, bin_dir: Path, data: Path, log: Path, options: list[str]) -> None:
        raise_open_files()
        self.address = free_address()
        command = [bin_dir / "fake-origin", "--listen", self.address, "--folder", data, "--prefix", BUCKET]
        self._daemon = Daemon("origin", [*command, "--memory", "32GiB", *options], log, clean_environment())
        self._daemon.wait_for("readiness", lambda: fetch(f"http://{self.address}/_counters") is not None, 120)
        self.environment = clean_environment(**store_environment(f"http://{self.address}"))

    def end(self) -> None:
        self._daemon.end()


@dataclass
class Worker:
    """A cache worker."""

    daemon: Daemon
    data: str
    control: str
    ops: str
    socket: Path | None


class Node:
    """A loader with its client, and the workers that it asks."""

    def __init__(
        self, bin_dir: Path, folder: Path, sockets: Path, environment: dict[str, str], model_bytes: int
    ) -> None:
        self._bin = bin_dir / "longshore"
        self.folder = folder
        folder.mkdir(parents=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="node-", dir=sockets))
        self._environment = environment
        self._model_bytes = model_bytes
        # Room for the model, its padding and the bytes in flight.
        self._budget_bytes = model_bytes + model_bytes // 4 + (1 << 30)
        #: Those that its loader asks; another node's are not its to end.
        self.workers: list[Worker] = []
        self._has_own_workers = True
        self.loader: Daemon | None = None
        #: What the loader keeps ready, when it was told to.
        self.prefaulted: Prefaulted | None = None
        self._clients: list[Adapter] = []

    def start(self, workers: int = 0, unix_socket: bool = False, memory: int = WORKER_MEMORY_BYTES) -> Node:
        """Starts the workers and the loader. `memory` is the budget of each worker in bytes."""
        addresses = [free_address() for _ in range(workers)]
        for number, data in enumerate(addresses):
            self.workers.append(self._worker(number, data, addresses, unix_socket, memory))
        for worker in self.workers:
            ready = f"http://{worker.ops}/readyz"
            worker.daemon.wait_for("readiness", lambda ready=ready: fetch(ready) is not None, 60)
        return self.start_loader()

    def start_loader(self, beside: Node | None = None, *, prefault: bool = False) -> Node:
        """Starts the loader, which asks the workers of the node `beside`, when there is one, and none of its own."""
        if beside is not None:
            self.workers, self._has_own_workers = beside.workers, False
        ops, budget = free_address(), self._budget_bytes
        command: list[Any] = [self._bin, "loader", "--listen", "none", "--ops-listen", ops, "--gpus", "none"]
        command += ["--socket-dir", self._sockets]
        if self.workers:
            command += ["--workers", ",".join(worker.data for worker in self.workers)]
        if prefault:
            self.prefaulted = Prefaulted(ops, wanted_bytes(self._model_bytes))
            # It is made ready again when the region that it became may live still.
            budget += self.prefaulted.wanted_bytes
            command += ["--prefault", self.prefaulted.wanted_bytes]
        command += ["--memory", budget]
        self.loader = Daemon("loader", command, self.folder / "loader.log", self._environment)
        self.loader.wait_for("readiness", lambda: fetch(f"http://{ops}/readyz") is not None, 60)
        if self.prefaulted is not None:
            self.prefaulted.wait()
        return self

    def _worker(self, number: int, data: str, addresses: list[str], unix_socket: bool, memory: int) -> Worker:
        folder = self.folder / f"worker-{number}"
        folder.mkdir()
        control, ops = free_address(), free_address()
        socket = self._sockets / f"worker-{number}.sock" if unix_socket else None
        command: list[Any] = [
            self._bin, "worker", "--data-listen", data, "--control-listen", control, "--ops-listen", ops,
            "--memory", memory, "--disk", self._budget_bytes, "--disk-free-floor", "1GiB",
            "--cache-dir", folder / "cache",
        ]  # fmt: skip
        if len(addresses) > 1:
            command += ["--workers", ",".join(addresses)]
        if socket is not None:
            command += ["--unix-socket", socket]
        return Worker(Daemon("worker", command, folder / "log", self._environment), data, control, ops, socket)

    def restart_workers(self) -> None:
        """What they had in memory is gone, and their disk tier is what they serve from."""
        for worker in self.workers:
            old = worker.daemon
            old.end()
            worker.daemon = Daemon("worker", old.command, old.log, self._environment)
            ready = f"http://{worker.ops}/readyz"
            worker.daemon.wait_for("readiness", lambda ready=ready: fetch(ready) is not None, 60)

    @property
    def address(self) -> str:
        """Of the loader, for clients."""
        return f"unix://{self._sockets}/loader.sock"

    def _daemons(self) -> list[Daemon]:
        found = [worker.daemon for worker in self.workers]
        return found if self.loader is None else [*found, self.loader]

    def cpu_seconds(self) -> float:
        """Of loader and workers."""
        return sum(cpu_clock(daemon.pid) for daemon in self._daemons())

    def client_environment(self) -> dict[str, str]:
        """For a client of this loader, which counts the CPU of the daemons with its own."""
        pids = ",".join(str(daemon.pid) for daemon in self._daemons())
        return clean_environment(LONGSHORE_LOADER=self.address, LONGSHORE_BENCH_PIDS=pids)

    def new_client(self) -> Adapter:
        """A Python process with Longshore's client."""
        log = self.folder / "client.log"
        self._clients.append(Adapter("longshore", peer_command("longshore"), self.client_environment(), log))
        return self._clients[-1]

    def client(self) -> Adapter:
        """The one that is used again and again."""
        if not self._clients or not self._clients[0].is_alive:
            self._clients.insert(0, self.new_client().ready())
        return self._clients[0]

    def settle(self, seconds: float = 20) -> float:
        """Waits until the daemons rest, so that they disturb nobody else. The CPU seconds that it took them."""
        deadline, start = time.monotonic() + seconds, self.cpu_seconds()
        before = start
        while time.monotonic() < deadline:
            time.sleep(0.2)
            now = self.cpu_seconds()
            if now - before < 0.01:
                return now - start
            before = now
        return before - start

    def command(self, *words: str | Path, seconds: float = 300) -> tuple[Sample, dict[str, Any]]:
        """A command of the command line against this loader: what it took, with the daemons' CPU, and its JSON."""
        command = [str(word) for word in (self._bin, *words, "--json", "--loader", self.address)]
        before = os.times()
        cpu, start = self.cpu_seconds(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment, timeout=seconds)
        took = time.perf_counter() - start
        after = os.times()
        own = after.children_user + after.children_system - before.children_user - before.children_system
        if done.returncode != 0:
            raise Failed(f"longshore {words[0]} failed: {(done.stderr or done.stdout)[-400:].strip()}")
        lines = done.stdout.strip().splitlines()
        value: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return Sample(took, self.cpu_seconds() - cpu + own), value

    def free(self, uri: str) -> None:
        """Empties loader and workers of a model."""
        self.command("free", uri)

    def end(self) -> None:
        """Clients first, the origin stays."""
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.end()
        for daemon in reversed(self._daemons()):
            if self._has_own_workers or daemon is self.loader:
                daemon.end()
        shutil.rmtree(self._sockets, ignore_errors=True)
