"""One run: its options, its data, and what is started for it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemons import Failed
from ending import Ending, end_children

from speed.agents import PEERS, Adapter, clean_environment, digest_of, peer_command
from speed.nodes import Node, Origin
from speed.rows import Sample

#: Begin and end on the monotonic clock, and whether the client belongs to it.
Windows = list[tuple[float, float, bool]]


@dataclass
class Options:
    """What a run is told."""

    bin_dir: Path
    size_bytes: int
    shards: int
    rounds: int
    threads: int
    small_files: int
    small_model_bytes: int
    #: Calls of the cases that make many short ones; some make a part of it.
    calls: int
    workers: list[int]
    seconds: float
    #: See `rounds.run_rounds`.
    short_seconds: float
    peers: list[str]
    only: list[str]
    #: Subjects beside Longshore that load with eight processes at once.
    concurrent_peers: list[str]


@dataclass
class Bench:
    """The run."""

    options: Options
    work: Path
    ending: Ending = field(default_factory=Ending)
    started: float = field(default_factory=time.monotonic)
    #: Of all that said one.
    versions: dict[str, str] = field(default_factory=dict)
    numbers: int = 0
    #: First lines of the peers' adapters, by name: those that cannot do a kind of work are not started for it again.
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    #: What profiles a load of Longshore while it is timed, when there is something.
    watch: Callable[[], AbstractContextManager[Windows]] | None = None
    #: Of the group that runs; removed behind it, since the next one needs the disk.
    folders: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Paths of unix sockets must be short, wherever the data is.
        self.sockets = Path(tempfile.mkdtemp(prefix=f"longshore-{os.getpid()}-"))
        #: Where peers have files in memory for the length of a load.
        self.shared_memory = Path(tempfile.mkdtemp(prefix=f"longshore-bench-{os.getpid()}-", dir="/dev/shm"))

    def end(self) -> None:
        """Nothing is left of the run, however it ended."""
        with self.ending.shield():
            end_children()
            for folder in (self.work, self.sockets, self.shared_memory):
                shutil.rmtree(folder, ignore_errors=True)

    def wants(self, case: str) -> bool:
        """Whether it was asked for."""
        only = self.options.only
        return not only or any(case == name or case.startswith(f"{name}/") for name in only)

    def watched(self) -> AbstractContextManager[Windows]:
        """What is in here may be profiled; it adds what is timed of it."""
        return contextlib.nullcontext([]) if self.watch is None else self.watch()

    @property
    def is_late(self) -> bool:
        """Whether no further round may begin, but for the first two of a group."""
        return time.monotonic() - self.started > self.options.seconds

    @property
    def is_over(self) -> bool:
        """Whether no further group may begin."""
        return time.monotonic() - self.started > 2 * self.options.seconds

    def folder(self, name: str) -> Path:
        """A new folder."""
        self.numbers += 1
        made = self.work / f"{self.numbers}-{name}"
        made.mkdir()
        self.folders.append(made)
        return made

    def end_group(self, stack: ExitStack) -> None:
        """Ends and removes what a group started and wrote; what it measured stays, whatever becomes of that."""
        with self.ending.shield():
            try:
                stack.close()
            except Exception as error:  # noqa: BLE001 # the other groups are measured all the same
                print(f"while a group ended: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
            self.folders.clear()

    def tool(self, *words: str | Path | int, seconds: float = 300) -> dict[str, Any]:
        """A command of bench-tool, and its JSON."""
        command = [str(word) for word in (self.options.bin_dir / "bench-tool", *words)]
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=seconds)
        if done.returncode != 0:
            raise Failed(f"bench-tool {words[0]}: {done.stderr.strip()[-400:]}")
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    @functools.cached_property
    def data(self) -> Path:
        """What the origins serve; models are made in it when they are needed."""
        folder = self.work / "data"
        folder.mkdir()
        return folder

    @functools.cached_property
    def model(self) -> Path:
        """The model of most cases."""
        options = self.options
        self.tool("model", self.data / "model", "--size", options.size_bytes, "--shards", options.shards)
        subprocess.run(["sync", "-f", str(self.data)], check=False, timeout=300)
        return self.data / "model"

    @functools.cached_property
    def eight(self) -> Path:
        """Eight small models, `0` to `7`."""
        size = self.options.small_model_bytes
        self.tool("model", self.data / "eight", "--size", size, "--shards", 1, "--models", 8)
        return self.data / "eight"

    @functools.cached_property
    def thousand(self) -> Path:
        """A model of 1,000 tensors."""
        self.tool("model", self.data / "thousand", "--size", 64_000_000, "--shards", 1, "--tensors", 1000)
        return self.data / "thousand"

    @functools.cached_property
    def digest(self) -> str:
        """Of the model."""
        return digest_of(self.model)

    @functools.cached_property
    def weights(self) -> list[str]:
        """The model's files."""
        return sorted(str(path) for path in self.model.glob("*.safetensors"))

    @functools.cached_property
    def model_bytes(self) -> int:
        """Of these files."""
        return sum(Path(path).stat().st_size for path in self.weights)

    def origin(self, stack: ExitStack, *options: str) -> Origin:
        """A store over all data that was made before."""
        made = Origin(self.options.bin_dir, self.data, self.folder("origin") / "log", list(options))
        stack.callback(made.end)
        return made

    def node(self, stack: ExitStack, name: str, environment: dict[str, str], size_bytes: int = 0) -> Node:
        """A node that is not started."""
        size = size_bytes or self.model_bytes
        made = Node(self.options.bin_dir, self.folder(name) / "node", self.sockets, environment, size)
        stack.callback(made.end)
        return made

    def limits(self, stack: ExitStack) -> Adapter:
        """The plain limits."""
        log = self.folder("limits") / "log"
        made = Adapter("limits", [self.options.bin_dir / "bench-tool", "agent"], clean_environment(), log)
        stack.callback(made.end)
        return made.ready()

    def peer(self, name: str, environment: dict[str, str], log: Path) -> Adapter:
        """A process of a peer, not ready yet."""
        environment = environment | {"LONGSHORE_BENCH_SHARED_MEMORY": str(self.shared_memory)}
        return Adapter(name, peer_command(name), environment, log)

    def peers(self, stack: ExitStack, kind: str, environment: dict[str, str]) -> list[Peer]:
        """All peers, those that cannot do this kind of work too."""
        folder = self.folder("peers")
        found = [Peer(self, name, folder, environment) for name in self.options.peers]
        for peer in found:
            stack.callback(peer.end)
            # All import their packages at once.
            peer.start_if_unknown()
        for peer in found:
            peer.ask_for(kind)
        return found


class Peer:
    """A peer's adapter, started when it is needed and again when it has ended."""

    def __init__(self, bench: Bench, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.bench = bench
        self.name = name
        self.subject = PEERS[name]
        self.environment = environment
        self.why_not = ""
        self._folder = folder / name
        self._folder.mkdir()
        self._agent: Adapter | None = None
        self._prepared: dict[str, str] = {}
        #: Why it failed to start: a row with an error, not one of something that it cannot do.
        self.error = ""

    def start_if_unknown(self) -> None:
        """Begins to start the program when it never said what it can do."""
        if self.name not in self.bench.told:
            try:
                self._agent = self._new()
            except (Failed, OSError) as error:
                self.error = str(error)

    def ask_for(self, kind: str) -> None:
        """Finds out whether it can do this kind of work."""
        if self.error:
            return
        try:
            if self._agent is not None:
                self.bench.told[self.name] = self._agent.ready().told
            told = self.bench.told[self.name]
            self.subject = told["subject"]
            self.bench.versions.setdefault(self.subject, told["version"])
            if kind not in told["can"]:
                self.why_not = told["cannot"].get(kind) or f"has no {kind.replace('_', ' ')}"
        except (Failed, OSError, KeyError) as error:
            self.error = str(error)
        if self.why_not or self.error:
            self.end()

    def agent(self) -> Adapter:
        """The running program."""
        if self._agent is None or not self._agent.is_alive:
            self._agent = self._new().ready()
        return self._agent

    def _new(self) -> Adapter:
        return self.bench.peer(self.name, self.environment, self._folder / "log")

    def prepare(self, model: str) -> str:
        """Once for each model: what its load needs, and what the peer says of it."""
        if model not in self._prepared:
            work = self._folder / f"prepared-{len(self._prepared)}"
            work.mkdir(exist_ok=True)
            answer = self.agent().call("prepare", 300, model=model, work=str(work))
            self._prepared[model] = answer.get("note", "")
        return self._prepared[model]

    def load(self, model: str, verify: bool) -> dict[str, Any]:
        """One load."""
        self.prepare(model)
        return self.agent().call("load", 180, model=model, verify=verify)

    @property
    def prepared_folders(self) -> list[Path]:
        """What `prepare` wrote."""
        return sorted(self._folder.glob("prepared-*"))

    def end(self) -> None:
        """It is started again when it is needed."""
        if self._agent is not None:
            with contextlib.suppress(OSError):
                self._agent.end()
            self._agent = None


def sample_of(answer: dict[str, Any], amount: float = 0) -> Sample:
    """What an adapter or a tool said."""
    size = int(answer.get("bytes", 0))
    cpu = answer.get("cpu_seconds")
    return Sample(answer["seconds"], cpu, amount or size, size, answer.get("steps", []))
