"""Subjects in alternation: each round runs every subject once, so that a noisy machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from agent import Agent
from checks import files_of
from context import Context
from daemons import Failed, Node
from report import Samples

#: Bytes, seconds, CPU seconds of one load.
Measured = tuple[int, float, float]
#: What one answer of an agent may take.
CALL_SECONDS = 60


def alternate(subjects: dict[str, Callable[[], Measured]], rounds: int, seconds: float) -> dict[str, Samples]:
    """Samples of each subject. One that fails keeps what it has and is left out from then on.

    Rounds that would not end in time are not begun; three are wanted at least.
    """
    found = {name: Samples() for name in subjects}
    begun = time.monotonic()
    longest = 0.0
    for _ in range(rounds):
        start = time.monotonic()
        if start - begun + longest > seconds:
            break
        for name, run in subjects.items():
            samples = found[name]
            if samples.error:
                continue
            try:
                samples.add(*run())
            except Failed as error:
                samples.error = str(error)[:400]
        longest = max(longest, time.monotonic() - start)
    return found


class LongshoreLoad:
    """One model through a node, from nothing on the device to usable tensors."""

    def __init__(self, node: Node, agent: Agent, uri: str, evicted_by: str = "") -> None:
        self._evicted_by = evicted_by
        self._node = node
        self._agent = agent
        self.uri = uri
        self.fingerprint = ""
        self.last: dict[str, Any] = {}

    def first(self, files: list[str] | None = None) -> dict[str, Any]:
        """The load that is not counted: compared with the files, and its fingerprint kept."""
        from checks import equal

        self.last = self._agent.call("load", uri=self.uri, seconds=CALL_SECONDS * 3)
        found = equal(self._agent, files or files_of_uri(self.uri), seconds=CALL_SECONDS * 3)
        self.fingerprint = self._agent.call("fingerprint", seconds=CALL_SECONDS)["fingerprint"]
        return found

    def again(self, fingerprint: str) -> None:
        """The same where the bytes were compared before, by another node."""
        self.last = self._agent.call("load", uri=self.uri, seconds=CALL_SECONDS * 3)
        self.fingerprint = self._agent.call("fingerprint", seconds=CALL_SECONDS)["fingerprint"]
        if self.fingerprint != fingerprint:
            raise Failed("the tensors differ from those of the load before")

    def forget(self) -> None:
        """The model leaves the device: by name, or because another one needs the room."""
        if not self._evicted_by:
            self._agent.call("unload", uri=self.uri)
            return
        self._agent.call("drop")
        self._agent.call("load", uri=self._evicted_by, seconds=CALL_SECONDS)
        self._agent.call("drop")

    def measured(self) -> Measured:
        """Evicts, loads, checks."""
        self.forget()
        return self.measured_again()

    def measured_again(self) -> Measured:
        """Loads, checks; for a model that was evicted."""
        cpu = self._node.cpu_seconds()
        self.last = loaded = self._agent.call("load", uri=self.uri, seconds=CALL_SECONDS)
        cpu = self._node.cpu_seconds() - cpu + loaded["cpu_seconds"]
        if loaded["reattached"]:
            raise Failed("the model was on the device already")
        if loaded["mismatches"]:
            raise Failed(f"{loaded['mismatches']} blocks had wrong checksums")
        if self._agent.call("fingerprint", seconds=CALL_SECONDS)["fingerprint"] != self.fingerprint:
            raise Failed("the tensors differ from those of the first load")
        return loaded["bytes"], loaded["seconds"], cpu

    def tier_share(self, tier: str) -> float:
        """The part of the last load's bytes that came from a tier."""
        tiers = self.last.get("tiers", {})
        return tiers.get(tier, 0) / max(sum(tiers.values()), 1)

    def tiers(self) -> str:
        """Where the last load's bytes came from, for people."""
        total = max(sum(self.last.get("tiers", {}).values()), 1)
        shares = [f"{size / total:.0%} {tier}" for tier, size in sorted(self.last.get("tiers", {}).items()) if size]
        return "bytes from: " + (", ".join(shares) or "nowhere")


def files_of_uri(uri: str) -> list[str]:
    """The files behind a local URI."""
    from pathlib import Path

    return files_of(Path(uri))


class PeerLoad:
    """The same files through another loader."""

    def __init__(self, ctx: Context, name: str, files: list[str], resident: bool) -> None:
        self._agent = ctx.peer(name)
        self._files = files
        self._resident = resident
        self.version = ""

    def start(self) -> None:
        """Asks it to begin; peers are started side by side."""
        self._agent.send("ready")

    def started(self) -> None:
        self.version = self._agent.receive(120)["version"]

    def measured(self, fingerprint: str) -> Measured:
        """Loads, checks, and gives everything back."""
        loaded = self._agent.call("load", files=self._files, resident=self._resident, seconds=CALL_SECONDS)
        found = self._agent.call("fingerprint", seconds=CALL_SECONDS)["fingerprint"]
        self._agent.call("drop")
        if found != fingerprint:
            raise Failed("its tensors differ from the files")
        return loaded["bytes"], loaded["seconds"], loaded["cpu_seconds"]

    def end(self) -> None:
        self._agent.end()
