"""Profiles of the hot paths: the same processes and loads as in the report, with `perf` around what is timed.

benches/speed --profile [--only PATH]     # `make bench-profile`; writes benches/profiles/*.txt, docs/profiles.md
"""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from daemons import Failed

from speed import files, lessons, local, origins, workers
from speed.agents import ROOT
from speed.bench import Bench
from speed.groups import Make
from speed.perf import COUNTED, EVENT, SAMPLES_A_SECOND, Found, Recorder
from speed.rounds import Entry, Round, measure, open_series
from speed.rows import OVER_TCP

FOLDER = ROOT / "benches" / "profiles"
SYMBOLS, OTHERS = 20, 8


@dataclass
class Profiled:
    """A hot path: the row of the report that it is, and what makes that row."""

    case: str
    make: Make
    subject: str = "longshore"


PATHS = {
    "local-resident": Profiled("local/resident", local.local),
    "local-cold": Profiled("local/cold", local.local),
    "worker-same-host": Profiled("worker/same-host", workers.worker),
    "worker-tcp": Profiled("worker/tcp", workers.worker),
    "origin-direct": Profiled("origin/direct", origins.origin(is_paced=False)),
    "empty-cache": Profiled("origin/empty-cache", origins.origin(is_paced=False)),
    "empty-cache-tcp": Profiled("origin/empty-cache", origins.origin(is_paced=False), OVER_TCP[0]),
    "small-files-pull": Profiled("files/small", files.small_files),
}


def wanted(only: list[str]) -> list[str]:
    """Names of the paths that were asked for; `SystemExit` of one that is not there."""
    unknown = [name for name in only if name not in PATHS]
    if unknown:
        raise SystemExit(f"--only: there is no path {', '.join(unknown)}; there are {', '.join(PATHS)}")
    return only or list(PATHS)


def run(bench: Bench, names: list[str], facts: dict[str, str], folder: Path) -> int:
    """All of them, one after the other; how many failed."""
    failed = 0
    for name in names:
        try:
            text = profile(bench, name, facts)
        except Exception as error:  # noqa: BLE001 # the others are worth having
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
        print(f"written: {folder / name}.txt", file=sys.stderr, flush=True)
    return failed


def profile(bench: Bench, name: str, facts: dict[str, str]) -> str:
    """One path, as text."""
    path, stack = PATHS[name], ExitStack()
    try:
        entry = the_entry(path.make(bench, stack), path)
        memory, series = bench.limits(stack), open_series([entry])
        for number in range(bench.options.rounds + 1):
            touch = functools.partial(memory.call, "touch-memory", 120, bytes=2 * bench.model_bytes)
            if number == 1:
                # The first one warmed up, and everything runs that will.
                recorder = Recorder(bench.folder("perf"))
                stack.callback(recorder.end)
                bench.watch = recorder.watch
            measure(entry, series, Round(number), touch if entry.unit == "GB/s" else None)
        bench.watch = None
        recorder.end()
        own = series[entry.case, entry.subject]
        if not own.samples:
            raise Failed(f"nothing was measured: {own.error}")
        samples = list(own.samples.values())
        size_gb = sum(sample.size_bytes for sample in samples) / 1e9
        rates = [sample.value(entry.unit) for sample in samples]
        measured = f"{len(samples)} times {samples[0].size_bytes / 1e9:.2f} GB, under perf at "
        measured += f"{min(rates):,.2f} to {max(rates):,.2f} {entry.unit}"
        row = own.row("", None)
        measured += f"; {row.cpu_s_per_gb or 0:.3f} CPU s per GB by the processes' clocks"
        return text_of(name, facts | {"measured": measured}, recorder.found(), size_gb)
    finally:
        bench.watch = None
        bench.end_group(stack)


def the_entry(entries: list[Entry], path: Profiled) -> Entry:
    """The row of the path."""
    return next(entry for entry in entries if (entry.case, entry.subject) == (path.case, path.subject))


def text_of(name: str, facts: dict[str, str], found: Found, size_gb: float) -> str:
    """All that is kept of a profile."""
    if not found.samples:
        raise Failed("perf has no sample of the processes")
    cpu = {role: found.seconds(role) / size_gb for role in (*COUNTED, "origin")}
    parts = ", ".join(f"{role} {cpu[role]:.3f}" for role in COUNTED if cpu[role] > 0.0005)
    whole = sum(cpu[role] for role in COUNTED)
    lines = [
        f"{name}: {lessons.WHAT[name]}",
        "",
        f"row: {PATHS[name].case}, {PATHS[name].subject}",
        *(f"{what}: {said}" for what, said in facts.items()),
        f"samples: {found.samples:,} of {EVENT}, {SAMPLES_A_SECOND:,} a second of each core",
        f"CPU seconds per GB, by samples: {whole:.3f} ({parts}); beside it, not counted: origin {cpu['origin']:.3f}",
    ]
    for title, counter, most in [
        ("Process and thread", found.threads, OTHERS),
        ("Process, and by what the kernel was entered", found.entries, OTHERS),
        ("Process and symbol, by the time in the symbol itself", found.symbols, SYMBOLS),
    ]:
        lines += ["", title]
        shown = counter.most_common(most)
        lines += [f"{count / found.samples:8.1%}  {role:12}  {what}" for (role, what), count in shown]
        left = found.samples - sum(count for _, count in shown)
        if left:
            lines.append(f"{left / found.samples:8.1%}  all others")
    return "\n".join(lines) + "\n"
