"""Rounds: each measures every row of a group once, in an order that differs from round to round."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from speed.agents import Adapter
from speed.bench import Bench
from speed.rows import Sample, Series

#: Units of rows that take memory for a model. A virtual machine's host takes freed memory back and is slow to give it
#: again, so that who is measured first after a pause would pay for those who come next: before each of these rows as
#: much memory as they need is touched and freed by somebody else.
LOADS = ("GB/s", "s")
#: How long memory is left alone before rows that ask for it: a host takes freed memory back within two seconds.
REST_SECONDS = 5.0
#: After so many failed rounds a row is left alone.
FAILURES_MAX = 2
#: A group goes on while its rounds took less than `Options.short_seconds` in all, up to so many times the rounds that
#: were asked for: good medians of what takes little time cost little time. What is measured has no say in it.
SHORT_TIMES = 3


@dataclass
class Round:
    """Which one it is."""

    number: int

    @property
    def is_counted(self) -> bool:
        """The first one warms up, and verifies."""
        return self.number > 0


#: What one measurement gives: the sample of the row itself, and those of rows that were measured along with it.
Measured = Sample | dict[str, Sample]


@dataclass
class Entry:
    """A row to be measured."""

    case: str
    subject: str
    unit: str
    measure: Callable[[Round], Measured] | None
    cache_state: str = ""
    note: str = ""
    #: Case and subject of its limit.
    limit: tuple[str, str] | None = None
    #: Measured in every so many rounds only, for what takes long; always in the last.
    every: int = 1
    #: Rows that are measured along with this one: subject to note.
    along: dict[str, str] = field(default_factory=dict)
    #: Makes things as the row's cache state says, untimed.
    before: Callable[[], object] | None = None
    #: Its memory is not touched before: nobody touches any for a while.
    rests: bool = False
    #: Memory of a load; that of the model when it is None.
    load_bytes: int | None = None
    #: Why there is nothing to measure; the note says so.
    why_not: str = ""
    error: str = ""


def open_series(entries: list[Entry]) -> dict[tuple[str, str], Series]:
    """Empty series of all rows."""
    found: dict[tuple[str, str], Series] = {}
    for entry in entries:
        note = entry.why_not or entry.note
        made = Series(entry.case, entry.subject, entry.unit, entry.cache_state, note, entry.limit, error=entry.error)
        found[made.key] = made
        for subject, along in entry.along.items():
            series = Series(entry.case, subject, entry.unit, entry.cache_state, along, entry.limit, error=entry.error)
            found[series.key] = series
    return found


def run_group(bench: Bench, name: str, make: Callable[[Bench, ExitStack], list[Entry]]) -> list[Series]:
    """All rounds of a group."""
    stack = ExitStack()
    try:
        begin = time.monotonic()
        entries = wanted_of(make(bench, stack), bench.wants)
        for entry in entries:
            if entry.case.startswith("limit/"):
                # The same limit is measured beside each group.
                entry.cache_state = f"in the rounds of: {name}"
        series = open_series(entries)
        memory = bench.limits(stack)
        print(f"{name}: ready after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        run_rounds(bench, name, entries, series, memory)
    finally:
        bench.end_group(stack)
    return list(series.values())


def run_rounds(
    bench: Bench, name: str, entries: list[Entry], series: dict[tuple[str, str], Series], memory: Adapter
) -> None:
    """As many as there is time for; one is measured in any case, and more of what takes little time."""
    rounds, spent = bench.options.rounds, 0.0
    for number in range(SHORT_TIMES * rounds + 1):
        if number > 1 and spent >= bench.options.short_seconds:
            if number > rounds:
                break
            if bench.is_late:
                print(f"{name}: no time for round {number}", file=sys.stderr, flush=True)
                break
        begin = time.monotonic()
        for entry in order_of(entries, number):
            left_out = number > 0 and (rounds - number) % entry.every
            if entry.measure is not None and not left_out:
                size = bench.model_bytes if entry.load_bytes is None else entry.load_bytes
                touch = functools.partial(memory.call, "touch-memory", 120, bytes=2 * size)
                rest = functools.partial(time.sleep, REST_SECONDS)
                prepare = rest if entry.rests else touch if entry.unit in LOADS else None
                measure(entry, series, Round(number), prepare)
        took = time.monotonic() - begin
        spent += took
        print(f"{name}: round {number} of {rounds}, {took:.0f} s", file=sys.stderr, flush=True)


def order_of(entries: list[Entry], number: int) -> list[Entry]:
    """Another one begins each round, and every other round goes backwards: nobody always comes behind the same one."""
    first = number % max(len(entries), 1)
    if number % 2:
        return entries[first::-1] + entries[:first:-1]
    return entries[first:] + entries[:first]


def wanted_of(entries: list[Entry], is_wanted: Callable[[str], bool]) -> list[Entry]:
    """Those that were asked for, and their limits."""
    chosen = [entry for entry in entries if is_wanted(entry.case)]
    limits = {entry.limit for entry in chosen}
    return [entry for entry in entries if entry in chosen or (entry.case, entry.subject) in limits]


def measure(
    entry: Entry,
    series: dict[tuple[str, str], Series],
    number: Round,
    prepare: Callable[[], object] | None = None,
) -> None:
    """One row in one round, `prepare` as the last thing before; whatever fails is the row's, never the run's."""
    own = series[entry.case, entry.subject]
    if entry.measure is None or own.failures >= FAILURES_MAX:
        return
    try:
        for untimed in (entry.before, prepare):
            if untimed is not None:
                untimed()
        found = entry.measure(number)
    except Exception as error:  # noqa: BLE001 # a defect of a peer, or of ours, is told in its row
        own.failures += 1
        own.error = f"{type(error).__name__}: {error}".removeprefix("Failed: ")[:300]
        for subject in entry.along:
            series[entry.case, subject].error = own.error
        print(f"  {entry.case}, {entry.subject}: {own.error}", file=sys.stderr, flush=True)
        return
    samples = found if isinstance(found, dict) else {entry.subject: found}
    for subject, sample in samples.items():
        value = f"{sample.value(entry.unit):10.3f} {entry.unit}"
        print(f"  {entry.case:28} {subject:34} {value}", file=sys.stderr, flush=True)
        if number.is_counted:
            series[entry.case, subject].samples[number.number] = sample
