"""Memory that a loader has touched before a load wants it: `longshore loader --prefault`.

A row of such loads has the CPU in it of making as much memory ready again, and a load that got other memory is no row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from daemons import Failed, fetch

READY, USED = "longshore_loader_prefaulted_bytes", "longshore_loader_prefaulted_used_bytes_total"
#: A virtual machine's host may take seconds to find a GB.
SECONDS = 120.0
#: Answers cost the loader CPU, which is counted.
POLL_SECONDS = 0.2


def wanted_bytes(model_bytes: int) -> int:
    """What is asked for: a model with its padding. A region that is smaller frees the rest."""
    return model_bytes + model_bytes // 64 + (4 << 20)


def metric(ops: str, name: str) -> float:
    """A metric of a daemon, summed over its labels."""
    text = fetch(f"http://{ops}/metrics") or ""
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    if not values:
        raise Failed(f"the loader's page of metrics has no {name}")
    return sum(map(float, values))


@dataclass
class Prefaulted:
    """That memory of one loader."""

    #: Of the loader's operations page.
    ops: str
    wanted_bytes: int

    def wait(self, seconds: float = SECONDS) -> None:
        """Until all of it is ready."""
        deadline = time.monotonic() + seconds
        while (ready := metric(self.ops, READY)) < self.wanted_bytes:
            if time.monotonic() > deadline:
                of = f"{ready / 1e9:.2f} of {self.wanted_bytes / 1e9:.2f} GB"
                raise Failed(f"prefaulted memory: {of} were ready after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def used_bytes(self) -> float:
        """Of regions that were ready when they were asked for, so far."""
        return metric(self.ops, USED)

    def check(self, used_before: float, model_bytes: int) -> None:
        """That a load since then got all its memory from here."""
        used = self.used_bytes() - used_before
        if used < model_bytes:
            raise Failed(
                f"not a prefaulted load: {used / 1e9:.2f} GB were ready, the model has {model_bytes / 1e9:.2f}"
            )
