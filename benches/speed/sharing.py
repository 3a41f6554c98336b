"""Cases of models that are in memory already, or that many processes want at once; and start-up."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from daemons import Failed
from machine import memory_bytes

from speed import needs
from speed.agents import PEERS, Adapter, clean_environment
from speed.bench import Bench, Peer
from speed.loads import cannot, make_resident
from speed.needs import PROCESSES
from speed.nodes import BUCKET, Node
from speed.rounds import Entry, Measured, Round
from speed.rows import Sample

NOT_KEPT = "keeps nothing in memory behind a process: a second load is a first one, see local/resident"


def second_load(bench: Bench, stack: ExitStack) -> list[Entry]:
    """The model is in memory for one process, and another one asks for it."""
    node = bench.node(stack, "second", clean_environment()).start()
    holder = node.client()
    model = str(bench.model)
    holder.call("hold", 180, model=model)
    other = node.new_client().ready()

    def measure(number: Round) -> Measured:
        answer = other.call("load", 60, model=model, keep=True, verify=number.number == 0)
        if not answer["reattached"]:
            raise Failed("the model was loaded again")
        if number.number == 0 and answer["digest"] != bench.digest:
            raise Failed("attached to other bytes than the files hold")
        return Sample(answer["seconds"], answer["cpu_seconds"], size_bytes=answer["bytes"])

    note = "another process: from the call until every page of the torch tensors is mapped"
    entries = [Entry("second-load", "longshore", "ms", measure, "in the loader's memory", note)]
    return entries + cannot(bench, "second-load", "ms", NOT_KEPT)


def attach(bench: Bench, stack: ExitStack) -> list[Entry]:
    """1,000 tensors that are loaded already, over the attach socket."""
    node = bench.node(stack, "attach", clean_environment(), 64_000_000)
    node.start()
    client = node.client()
    held = client.call("hold", 120, model=str(bench.thousand))
    attaches = max(bench.options.calls // 100, 10)

    def by_python(_: Round) -> Measured:
        answer = client.call("attach", 120, count=attaches)
        return Sample(answer["p99_seconds"])

    def by_rust(_: Round) -> Measured:
        words = ["--socket", held["attach_socket"], "--model-id", held["model_id"], "--count", attaches]
        return Sample(bench.tool("attach", *words)["p99_seconds"])

    state, unit = "in the loader's memory", "ms at p99"
    note = f"{attaches} attaches to 1,000 tensors, one after the other, each until "
    entries = [
        Entry("attach/host", "longshore", unit, by_python, state, note + "it has torch tensors"),
        Entry("attach/host", "longshore, Rust client", unit, by_rust, state, note + "it has descriptors"),
    ]
    return entries + cannot(bench, "attach/host", unit, "has no memory that is shared between processes")


def concurrent(bench: Bench, stack: ExitStack) -> list[Entry]:
    """Eight processes that load from an origin at once: one model, or one each."""
    assert bench.eight
    store = bench.origin(stack)
    each = bench.options.small_model_bytes
    node = bench.node(stack, "concurrent", store.environment, PROCESSES * each * 2).start()
    urls = [f"s3://{BUCKET}/eight/{number}" for number in range(PROCESSES)]
    # Eight resting processes of every subject take memory that the eight which load may need.
    room = memory_bytes("MemAvailable") - needs.of(bench.options)["concurrent"].memory_bytes
    keeps_all = room > needs.concurrent_resting(bench.options)
    kinds = {"concurrent/one-model": [urls[0]] * PROCESSES, "concurrent/eight-models": urls}
    entries = []

    def new_longshore() -> Adapter:
        return node.new_client()

    ours = Crew(stack, new_longshore)
    crews = {}
    for name in bench.options.concurrent_peers:
        folder = bench.folder(f"crew-{name}")
        new_peer = functools.partial(bench.peer, name, store.environment, folder / "log")
        crews[name] = Crew(stack, new_peer, folder)
    everyone = [ours, *crews.values()]
    for crew in everyone:
        crew.others = [] if keeps_all else [other for other in everyone if other is not crew]
    for case, models in kinds.items():
        note = "eight processes, until all of them have their tensors"

        def measure(_: Round, models: list[str] = models) -> Measured:
            cpu = node.cpu_seconds()
            sample = ours.load(models, keep=True)
            # Each process counted the daemons: once is right.
            daemons = node.cpu_seconds() - cpu
            sample.cpu_seconds = ours.own_cpu + daemons
            for model in sorted(set(models)):
                ours.agents()[0].call("unload", 60, model=model)
            return sample

        entries.append(Entry(case, "longshore", "s", measure, "no cache", note))
        entries += [crew_entry(case, name, crew, models) for name, crew in crews.items()]
    for entry in entries:
        entry.load_bytes = PROCESSES * each
    return entries


def crew_entry(case: str, name: str, crew: Crew, models: list[str]) -> Entry:
    """Eight processes of a peer."""
    note = "eight processes, until all of them have their tensors"
    return Entry(case, PEERS[name], "s", lambda _: crew.load(models), "no cache", note)


class Crew:
    """Eight processes that load at the same time."""

    def __init__(self, stack: ExitStack, make: Callable[[], Adapter], folder: Path | None = None) -> None:
        self._make = make
        #: Where what it prepares lies; without it there is nothing to prepare.
        self._folder = folder
        self._agents: list[Adapter] = []
        self._prepared: set[tuple[int, str]] = set()
        #: Those that must rest in nobody's memory while this one works.
        self.others: list[Crew] = []
        self.own_cpu = 0.0
        stack.callback(self.end)

    def agents(self) -> list[Adapter]:
        """All of them, ready."""
        for other in self.others:
            other.end()
        if len(self._agents) < PROCESSES or not all(agent.is_alive for agent in self._agents):
            self.end()
            for _ in range(PROCESSES):
                self._agents.append(self._make())
            for agent in self._agents:
                agent.ready(240)
        return self._agents

    def load(self, models: list[str], **more: bool) -> Sample:
        """One load by each, begun together; the time until the last one has ended."""
        agents = self.agents()
        self._prepare(models)
        start = time.perf_counter()
        for agent, model in zip(agents, models, strict=True):
            agent.send("load", model=model, verify=False, **more)
        answers = [agent.receive(180) for agent in agents]
        seconds = time.perf_counter() - start
        self.own_cpu = sum(answer["cpu_seconds"] - answer.get("daemon_cpu_seconds", 0) for answer in answers)
        return Sample(seconds, self.own_cpu, size_bytes=sum(int(answer["bytes"]) for answer in answers))

    def _prepare(self, models: list[str]) -> None:
        """Each process for its model; a copy that the first one made is found by the others."""
        for at, (agent, model) in enumerate(zip(self._agents, models, strict=True)):
            if self._folder is not None and (at, model) not in self._prepared:
                work = self._folder / f"prepared-{at}"
                work.mkdir(exist_ok=True)
                agent.call("prepare", 300, model=model, work=str(work))
                self._prepared.add((at, model))

    def end(self) -> None:
        # All are told before any is waited for.
        for agent in self._agents:
            with contextlib.suppress(OSError):
                if agent.process.stdin is not None:
                    agent.process.stdin.close()
        for agent in self._agents:
            with contextlib.suppress(OSError):
                agent.end()
        self._agents = []
        self._prepared.clear()


def startup(bench: Bench, stack: ExitStack) -> list[Entry]:
    """A bare Python process until it has its first model: imports, connection, load."""
    model = bench.eight / "0"
    node = bench.node(stack, "startup", clean_environment(), bench.options.small_model_bytes).start()
    entries = [
        Entry("startup/first-tensor", "longshore", "s", first_load(bench, "longshore", model, node), "resident", NOTE)
    ]
    for peer in bench.peers(stack, "local", clean_environment()):
        if peer.why_not or peer.error:
            entry = Entry("startup/first-tensor", peer.subject, "s", None, why_not=peer.why_not, error=peer.error)
        else:
            work = first_load(bench, peer.name, model, None, peer)
            entry = Entry("startup/first-tensor", peer.subject, "s", work, "resident", NOTE, every=2)
        peer.end()
        entries.append(entry)
    for entry in entries:
        entry.load_bytes = bench.options.small_model_bytes
    return entries


NOTE = "from the start of the interpreter, through the imports, until a small resident model is loaded"


def first_load(
    bench: Bench, name: str, model: Path, node: Node | None, peer: Peer | None = None
) -> Callable[[Round], Measured]:
    """Starts a process for each measurement."""
    log = bench.folder(f"startup-{name}") / "log"
    environment = clean_environment() if node is None else node.client_environment()

    def measure(_: Round) -> Measured:
        make_resident([model])
        if peer is not None:
            peer.prepare(str(model))
            prepared = peer.prepared_folders
            # Beside a process that starts, no other one of this peer.
            peer.end()
        start = time.perf_counter()
        agent = bench.peer(name, environment, log)
        try:
            agent.ready(120)
            if peer is not None and prepared:
                agent.call("prepare", 120, model=str(model), work=str(prepared[0]))
            agent.call("load", 120, model=str(model), verify=False)
            return Sample(time.perf_counter() - start)
        finally:
            agent.end()

    return measure
