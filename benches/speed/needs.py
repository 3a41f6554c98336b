"""How much memory and disk each group of cases takes at most: counted from what it starts and holds at once.

In memory are: processes that rest, what one load needs (or the twice of it that is touched before, see `rounds`),
budgets of workers, uploads that the origin keeps, and those files that must be in the page cache for the row to mean
what it says. On the disk: the models, caches, what peers convert. Groups remove what is theirs, so that the largest
counts, not the sum.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from machine import memory_bytes

from speed.bench import Options
from speed.nodes import WORKER_MEMORY_BYTES, WORKER_MEMORY_EMPTY_BYTES
from speed.prefaulted import wanted_bytes
from speed.rounds import SHORT_TIMES

#: A Python process with torch and a loader's package that rests: 0.29 to 0.31 GB of its own, and what maps files.
PROCESS_BYTES = 350_000_000
#: Origin, loader and workers without what they hold.
DAEMON_BYTES = 150_000_000
#: Processes that load at once.
PROCESSES = 8
#: A model and the copy that the slowest way to load it has beside it.
LOAD_COPIES = 2
SMALL_BYTES = 100_000


@dataclass
class Need:
    """At once."""

    memory_bytes: int
    disk_bytes: int

    def lacking(self, folder: Path) -> str:
        """What this machine has too little of, or nothing."""
        has = {"memory": memory_bytes("MemAvailable"), f"disk in {folder.name}": shutil.disk_usage(folder).free}
        for (what, there), needed in zip(has.items(), (self.memory_bytes, self.disk_bytes), strict=True):
            if there < needed:
                return f"needs {needed / 1e9:.1f} GB of {what}, {there / 1e9:.1f} are free: choose a smaller --size"
        return ""


def of(options: Options) -> dict[str, Need]:
    """Group to need; the model itself, which most groups share, counts in each."""
    model, small, eight = options.size_bytes, options.small_files * SMALL_BYTES, PROCESSES * options.small_model_bytes
    # One client, the plain limits, and every adapter.
    resting = (len(options.peers) + 2) * PROCESS_BYTES + 3 * DAEMON_BYTES
    load = LOAD_COPIES * model
    # A loader that keeps as much ready as a load takes, and its client.
    prefaulted = PROCESS_BYTES + DAEMON_BYTES + wanted_bytes(model)
    # A budget is not filled by less than there is to keep.
    worker, empty = (min(most, load) + DAEMON_BYTES for most in (WORKER_MEMORY_BYTES, WORKER_MEMORY_EMPTY_BYTES))
    origin = Need(
        # Two clients more; two workers; the origin's files in the page cache, and one converted copy in its memory.
        resting + 2 * PROCESS_BYTES + 2 * empty + load + 2 * model,
        # Two caches; what a converting peer fetches and writes before it uploads.
        model + 2 * model + 2 * model,
    )
    found = {
        # The files and a converted copy of them are resident.
        "local": Need(resting + prefaulted + load + 2 * model, 2 * model),
        "untouched memory": Need(resting + prefaulted + load + 2 * model, 2 * model),
        # Two workers, each with a loader of its own and one that prefaults.
        "worker": Need(2 * PROCESS_BYTES + 2 * prefaulted + 2 * worker + load + 2 * model, 3 * model),
        "origin": Need(origin.memory_bytes + prefaulted, origin.disk_bytes),
        "paced origin": origin,
    }
    for count in options.workers:
        found[f"{count} workers"] = Need(PROCESS_BYTES + count * worker + load + model, 2 * model + count * (1 << 20))
    return found | {
        "second load": Need(2 * PROCESS_BYTES + 2 * model, model),
        "attach": Need(2 * PROCESS_BYTES, 64_000_000),
        "startup": Need(3 * PROCESS_BYTES + LOAD_COPIES * options.small_model_bytes, eight * 2),
        # Each pull to the disk has a folder of its own; two are made in every other round.
        "small files": Need(resting + empty + 3 * small, (2 + 2 * (SHORT_TIMES * options.rounds // 2 + 2)) * small),
        "random reads": Need(resting + worker + 2 * model, 3 * model),
        "metadata": Need(resting + worker, 1 << 28),
        # One crew at a time; `concurrent_resting` are those that may stay beside it.
        "concurrent": Need(
            PROCESSES * PROCESS_BYTES + LOAD_COPIES * eight + eight * (1 + ("tensorizer" in options.concurrent_peers)),
            eight + 2 * options.small_model_bytes,
        ),
    }


def concurrent_resting(options: Options) -> int:
    """Memory of the crews that rest while one works."""
    return len(options.concurrent_peers) * PROCESSES * PROCESS_BYTES


def table(options: Options) -> str:
    """For `--needs`."""
    lines = [
        f"{name:14} {need.memory_bytes / 1e9:6.1f} GB of memory, {need.disk_bytes / 1e9:6.1f} GB of disk"
        for name, need in of(options).items()
    ]
    return "\n".join(lines)
