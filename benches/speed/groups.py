"""The groups of cases, in the order in which they run: what shares processes, or a limit, is one group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from speed import files, local, origins, sharing, workers
from speed.bench import Bench, Options
from speed.rounds import Entry

Make = Callable[[Bench, ExitStack], list[Entry]]


def of(options: Options) -> dict[str, tuple[list[str], Make]]:
    """Name to cases, and what makes their entries."""
    found: dict[str, tuple[list[str], Make]] = {
        "local": (["local/resident", "local/cold"], local.local),
        "worker": (["worker/same-host", "worker/tcp"], workers.worker),
        "origin": (["origin/direct", "origin/empty-cache"], origins.origin(is_paced=False)),
        "paced origin": (["origin/direct-paced", "origin/empty-cache-paced"], origins.origin(is_paced=True)),
    }
    for count in options.workers:
        found[f"{count} workers"] = ([f"worker/tcp-{count}"], workers.scaling(count))
    return found | {
        "untouched memory": (["local/untouched"], local.untouched),
        "second load": (["second-load"], sharing.second_load),
        "attach": (["attach/host"], sharing.attach),
        "startup": (["startup/first-tensor"], sharing.startup),
        "small files": (["files/small", "files/small-cached", "files/warm"], files.small_files),
        "random reads": (["files/random-4k"], files.random_reads),
        "metadata": (["metadata/ops"], files.metadata),
        # What takes longest comes last: when time is short, it is what is left out.
        "concurrent": (["concurrent/one-model", "concurrent/eight-models"], sharing.concurrent),
    }
