"""What the project aims at, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from speed.rows import LONGSHORE, OVER_TCP, PREFAULTED, REGION

Found = dict[tuple[str, str], dict[str, Any]]
WITHOUT = "without --prefault"
#: What a load pays for without prefaulted memory, and the limits do not.
FIRST_TOUCH = (
    "On a virtual machine the host may take freed memory back, and whoever touches such memory first waits for it: a "
    f"load {WITHOUT} does, the limit, into warm buffers, does not."
)


@dataclass
class Part:
    """One condition: what is said of it, and whether it holds; None when it was not measured."""

    said: str
    holds: bool | None
    #: The number in what is said.
    figure: str = "not measured"
    #: The number of default options, where another setting is judged.
    default: str = ""
    #: Why nothing is judged by it: it stands in the row for who wants to know.
    not_judged: str = ""

    def __str__(self) -> str:
        beside = "; ".join(text for text in (self.default, self.not_judged) if text)
        return f"{self.said} ({beside})" if beside else self.said


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each aim, and below them the causes of those that are not reached."""
    # A limit stands in the rows of several groups: first in those of the cases that are judged by it.
    found = {(row["case"], row["subject"]): row for row in reversed(rows)}
    lines = ["| case | aim | measured | reached |", "|---|---|---|---|"]
    causes = []
    for aim in AIMS:
        parts = aim.parts(found)
        holds = [part.holds for part in parts if not part.not_judged]
        reached = "no" if False in holds else "not measured" if None in holds else "yes"
        lines.append(f"| {aim.case} | {aim.words} | {'; '.join(map(str, parts))} | {reached} |")
        if reached == "no" and aim.cause is not None:
            causes.append(f"* {aim.case[0].upper()}{aim.case[1:]}: {aim.cause(found)}")
    return [*lines, "", "What is not reached, and why:", "", *causes] if causes else lines


def _value(found: Found, case: str, subject: str, field: str = "value") -> float | None:
    value: float | None = found.get((case, subject), {}).get(field)
    return value


def _at_least(value: float | None, least: float, words: str, form: str = "{:.2f} x") -> Part:
    """A ratio that must be large enough."""
    if value is None:
        return Part(f"{words}: not measured", None)
    figure = form.format(value)
    return Part(f"{figure} {words}", value >= least, figure)


def _at_most(value: float | None, most: float, words: str, form: str = "{:.2f}") -> Part:
    """Something that must be small enough."""
    if value is None:
        return Part(f"{words}: not measured", None)
    figure = form.format(value)
    return Part(f"{figure} {words}", value <= most, figure)


def _has_prefaulted(found: Found, case: str) -> bool:
    return _value(found, case, PREFAULTED[0]) is not None


def _judged(found: Found, case: str, part: Callable[[tuple[str, str]], Part]) -> Part:
    """By prefaulted rows, where there are some: peers have their best settings as well. Default options beside them."""
    if not _has_prefaulted(found, case):
        return part(LONGSHORE)
    return replace(part(PREFAULTED), default=f"{part(LONGSHORE).figure} {WITHOUT}")


def _over(found: Found, case: str, peers: list[str], subject: str = LONGSHORE[0]) -> float | None:
    ours, theirs = _value(found, case, subject), [_value(found, case, peer) for peer in peers]
    fastest = max((value for value in theirs if value is not None), default=None)
    return ours / fastest if ours is not None and fastest else None


def _peers(found: Found, case: str) -> list[str]:
    return [
        subject
        for (of, subject), row in found.items()
        if of == case and not subject.startswith(("longshore", "limit")) and row["value"] is not None
    ]


def _fastest(
    found: Found, case: str, least: float, of: Callable[[str], bool] = lambda _: True, subject: str = LONGSHORE[0]
) -> Part:
    """Longshore beside the fastest of those peers."""
    peers = [peer for peer in _peers(found, case) if of(peer)]
    if not peers:
        return Part("no peer was measured", None)
    best = max(peers, key=lambda peer: found[case, peer]["value"])
    return _at_least(_over(found, case, [best], subject), least, best)


def _of_limit(found: Found, case: str, least: float, words: str, region: str = REGION) -> Part:
    return _at_least(_value(found, case, region, "ratio_to_limit"), least, words, "{:.0%}")


def _maps(peer: str) -> bool:
    """Whether its tensors are the page cache's own pages."""
    return "mapped" in peer


def _resident(found: Found) -> list[Part]:
    case = "local/resident"
    parts = [
        _judged(found, case, lambda names: _fastest(found, case, 1.5, lambda peer: not _maps(peer), names[0])),
        _judged(found, case, lambda names: _of_limit(found, case, 0.9, "of the read", names[1])),
    ]
    if any(_maps(peer) for peer in _peers(found, case)):
        mapped = _judged(found, case, lambda names: _fastest(found, case, 0, _maps, names[0]))
        parts.append(replace(mapped, holds=None, not_judged="not judged: maps the page cache and copies nothing"))
    return parts


def _cold(found: Found) -> list[Part]:
    return [_of_limit(found, "local/cold", 0.97, "of fio"), _fastest(found, "local/cold", 1.0)]


def _direct(found: Found) -> list[Part]:
    case = "origin/direct"
    return [
        _at_least(_over(found, case, ["run:ai model streamer"]), 3, "run:ai"),
        _at_least(_over(found, case, ["tensorizer"]), 1.5, "tensorizer"),
        _of_limit(found, case, 0.9, "of raw GETs"),
    ]


def _tcp(found: Found) -> list[Part]:
    case = "worker/tcp"

    def cpu(names: tuple[str, str]) -> Part:
        return _at_most(_value(found, case, names[1], "cpu_ratio_to_limit"), 1.15, "its CPU", "{:.2f} x")

    rate = _judged(found, case, lambda names: _of_limit(found, case, 0.9, "of raw TCP", names[1]))
    return [rate, _judged(found, case, cpu)]


def _same_host(found: Found) -> list[Part]:
    case = "worker/same-host"

    def cpu(names: tuple[str, str]) -> Part:
        return _at_most(_value(found, case, names[1], "cpu_s_per_gb"), 0.3, "CPU s per GB")

    rate = _judged(found, case, lambda names: _of_limit(found, case, 0.95, "of the read", names[1]))
    return [rate, _judged(found, case, cpu)]


def _empty(found: Found) -> list[Part]:
    parts = []
    ways = [("", REGION, "x the time"), ("", OVER_TCP[1], "x over TCP")]
    ways += [("-paced", REGION, "x with the paced origin"), ("-paced", OVER_TCP[1], "x so over TCP")]
    for suffix, subject, words in ways:
        direct = _value(found, f"origin/direct{suffix}", REGION)
        through = _value(found, f"origin/empty-cache{suffix}", subject)
        parts.append(_at_most(direct / through if direct and through else None, 1.10, words))
    return parts


def _attach(found: Found) -> list[Part]:
    return [_at_most(_value(found, "attach/host", "longshore"), 20, "ms", "{:.1f}")]


def _plan(found: Found) -> list[Part]:
    return [_at_most(_value(found, "micro/plan-100000-cold", "longshore"), 50, "ms", "{:.1f}")]


def _random(found: Found) -> list[Part]:
    case = "files/random-4k"
    s3fs = [peer for peer in _peers(found, case) if peer.startswith("s3fs")]
    copies = [peer for peer in s3fs if peer.endswith(", disk")]
    parts = [
        _at_least(_over(found, case, [peer for peer in s3fs if peer not in copies]), 5, "s3fs"),
        _at_least(_value(found, case, "longshore", "ratio_to_limit"), 0.5, "of pread", "{:.0%}"),
    ]
    if copies:
        kept = _at_least(_over(found, case, copies), 0, "s3fs from a copy of the whole file on this disk")
        parts.append(replace(kept, holds=None, not_judged="not judged: that is pread itself, of which nothing is 5 x"))
    return parts


def _span(found: Found, case: str, subject: str) -> str:
    """The rounds of a row."""
    row = found.get((case, subject), {})
    if row.get("value") is None:
        return f"{subject} was not measured"
    return f"{subject} {row['min']:.2f} to {row['max']:.2f} GB/s"


def _rounds(found: Found, case: str, place: int, *others: tuple[str, str]) -> str:
    """Of both settings of Longshore (the load is at place 0, its host region at 1), and of what stands beside."""
    both = [PREFAULTED, LONGSHORE] if _has_prefaulted(found, case) else [LONGSHORE]
    shown = [*((case, names[place]) for names in both), *others]
    return "Rounds: " + ", ".join(_span(found, *each) for each in shown)


def _resident_cause(found: Found) -> str:
    case, limit = "local/resident", _value(found, "local/resident", REGION, "limit")
    copying = [peer for peer in _peers(found, case) if not _maps(peer)]
    if limit is None or not copying:
        return "not measured whole."
    best = max(copying, key=lambda peer: found[case, peer]["value"])
    goal = 1.5 * found[case, best]["value"]
    return (
        "each byte is copied once, and the fastest peer does just that as well: "
        f"1.5 x its rate is {goal:.1f} GB/s here, {goal / limit:.0%} of the read into warm memory. {FIRST_TOUCH} "
        f"{_rounds(found, case, 0, (case, best), ('limit/read-warm', 'pread'))}."
    )


def _cold_cause(found: Found) -> str:
    case = "local/cold"
    fastest = sorted(_peers(found, case), key=lambda peer: -found[case, peer]["value"])[:2]
    rows = [found[case, subject] for subject in ("longshore", *fastest) if (case, subject) in found]
    spans = ", ".join(_span(found, case, row["subject"]) for row in rows)
    if rows and max(row["min"] for row in rows) <= min(row["max"] for row in rows):
        return f"the disk sets the rate, and another one from round to round; the rounds overlap: {spans}."
    return f"rounds: {spans}."


def _same_host_cause(found: Found) -> str:
    rounds = _rounds(found, "worker/same-host", 1, ("limit/read-chunks", "pread"))
    return f"a load checks every block, the plain read none. {FIRST_TOUCH} {rounds}."


def _tcp_cause(found: Found) -> str:
    limit = ("limit/tcp", "sendfile to recv")
    shown = [("worker/tcp", PREFAULTED[1])] if _has_prefaulted(found, "worker/tcp") else []
    cpu = [
        (subject, _value(found, case, subject, "cpu_s_per_gb"))
        for case, subject in [*shown, ("worker/tcp", REGION), limit]
    ]
    said = ", ".join(f"{subject} {'not measured' if value is None else f'{value:.2f}'}" for subject, value in cpu)
    rounds = _rounds(found, "worker/tcp", 1, limit)
    return f"a load checks every block, raw TCP none. {FIRST_TOUCH} {rounds}. CPU s per GB: {said}."


def _empty_cause(found: Found) -> str:
    cpu = [
        _value(found, case, subject, "cpu_s_per_gb")
        for case, subject in [
            ("origin/direct", REGION),
            ("origin/empty-cache", REGION),
            ("origin/empty-cache", OVER_TCP[1]),
        ]
    ]
    said = "; ".join("not measured" if value is None else f"{value:.2f}" for value in cpu)
    return (
        "origin, worker and loader share this machine's cores, and the cache's own copy, a second checksum and the "
        f"writing to disk come on top of the load. CPU s per GB, direct, on one host, over TCP: {said}. Where the "
        "origin is slower than the cores, as stores are, nothing of it is seen (the paced origin)."
    )


@dataclass
class Aim:
    """What is aimed at, in words and as conditions; why it is not reached, in words, where that is known."""

    case: str
    words: str
    parts: Callable[[Found], list[Part]]
    cause: Callable[[Found], str] | None = None


AIMS = [
    Aim(
        "resident local file",
        "1.5 x the fastest peer that ends with the bytes in memory of its own; 90 % of a two-thread read",
        _resident,
        _resident_cause,
    ),
    Aim("cold local file", "97 % of fio's sequential O_DIRECT rate; ahead of all peers", _cold, _cold_cause),
    Aim("S3-compatible origin, direct", "3 x run:ai; 1.5 x tensorizer; 90 % of parallel raw GETs", _direct),
    Aim("TCP worker", "90 % of raw TCP; at most 1.15 x its CPU", _tcp, _tcp_cause),
    Aim("same-host worker", "95 % of a plain read; at most 0.3 CPU s per GB", _same_host, _same_host_cause),
    Aim("through an empty cache", "at most 1.10 x the time of the direct read", _empty, _empty_cause),
    Aim("attach to 1,000 tensors", "at most 20 ms at p99", _attach),
    Aim("plan of 100,000 tensors", "at most 50 ms", _plan),
    Aim(
        "random 4 kB reads, local hit",
        "5 x the same through s3fs as it reads from S3; at least half of pread's rate",
        _random,
    ),
]
