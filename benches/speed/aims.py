"""What the project aims at, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from speed import causes
from speed.measured import Found, has_prefaulted, maps, peers, value
from speed.rows import LONGSHORE, OVER_TCP, PREFAULTED, REGION

#: A way to set Longshore up: the names of its load, and of that load's host region.
Setting = tuple[str, str]
WITHOUT = "without --prefault"
#: How a setting is called beside the other one.
BESIDE = {LONGSHORE: WITHOUT, PREFAULTED: "with --prefault"}


@dataclass
class Part:
    """One condition: what is said of it, and whether it holds; None when it was not measured."""

    said: str
    holds: bool | None
    #: The number in what is said.
    figure: str = "not measured"
    #: The number of the setting that is not judged.
    other: str = ""
    #: Why nothing is judged by it: it stands in the row for who wants to know.
    not_judged: str = ""

    def __str__(self) -> str:
        beside = "; ".join(text for text in (self.other, self.not_judged) if text)
        return f"{self.said} ({beside})" if beside else self.said


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each aim, and below them the causes of those that are not reached."""
    # A limit stands in the rows of several groups: first in those of the cases that are judged by it.
    found = {(row["case"], row["subject"]): row for row in reversed(rows)}
    lines = ["| case | aim | measured | reached |", "|---|---|---|---|"]
    causes = []
    for aim in AIMS:
        parts, reached = judged(aim, found)
        lines.append(f"| {aim.case} | {aim.words} | {'; '.join(map(str, parts))} | {reached} |")
        if reached == "no" and aim.cause is not None:
            causes.append(f"* {aim.case[0].upper()}{aim.case[1:]}: {aim.cause(found)}")
    return [*lines, "", "What is not reached, and why:", "", *causes] if causes else lines


def judged(aim: Aim, found: Found) -> tuple[list[Part], str]:
    """By that setting which meets every condition, else by prefaulted rows; the numbers of the other one beside."""
    settings = [PREFAULTED, LONGSHORE] if has_prefaulted(found, aim.prefaulted) else [LONGSHORE]
    tried = [(setting, parts := aim.parts(found, setting), _reached(parts)) for setting in settings]
    tried.sort(key=lambda each: each[2] != "yes")
    (_, parts, reached), *others = tried
    for setting, of_other, _ in others:
        pairs = zip(parts, of_other, strict=True)
        parts = [replace(part, other=f"{other.figure} {BESIDE[setting]}") for part, other in pairs]
    return parts, reached


def _reached(parts: list[Part]) -> str:
    holds = [part.holds for part in parts if not part.not_judged]
    return "no" if False in holds else "not measured" if None in holds else "yes"


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


def _over(found: Found, case: str, peers: list[str], subject: str = LONGSHORE[0]) -> float | None:
    ours, theirs = value(found, case, subject), [value(found, case, peer) for peer in peers]
    fastest = max((value for value in theirs if value is not None), default=None)
    return ours / fastest if ours is not None and fastest else None


def _fastest(
    found: Found, case: str, least: float, of: Callable[[str], bool] = lambda _: True, subject: str = LONGSHORE[0]
) -> Part:
    """Longshore beside the fastest of those peers."""
    judged_beside = [peer for peer in peers(found, case) if of(peer)]
    if not judged_beside:
        return Part("no peer was measured", None)
    best = max(judged_beside, key=lambda peer: found[case, peer]["value"])
    return _at_least(_over(found, case, [best], subject), least, best)


def _of_limit(found: Found, case: str, least: float, words: str, region: str = REGION) -> Part:
    return _at_least(value(found, case, region, "ratio_to_limit"), least, words, "{:.0%}")


def _of_warm(found: Found, case: str, limit: tuple[str, str], words: str, region: str) -> list[Part]:
    """Beside the plain work that ends in the same few buffers over and over, where that was measured."""
    ours, most = value(found, case, region), value(found, *limit)
    if ours is None or most is None:
        return []
    part = _at_least(ours / most, 0, f"{words} into the same buffers again", "{:.0%}")
    return [replace(part, holds=None, not_judged="not judged: keeps nothing")]


def _resident(found: Found, setting: Setting) -> list[Part]:
    case = "local/resident"
    parts = [
        _fastest(found, case, 1.5, lambda peer: not maps(peer), setting[0]),
        _of_limit(found, case, 0.9, "of the read", setting[1]),
        *_of_warm(found, case, ("limit/read-warm", "pread"), "of the read", setting[1]),
    ]
    if any(maps(peer) for peer in peers(found, case)):
        mapped = _fastest(found, case, 0, maps, setting[0])
        parts.append(replace(mapped, holds=None, not_judged="not judged: maps the page cache and copies nothing"))
    return parts


def _cold(found: Found, setting: Setting) -> list[Part]:
    case = "local/cold"
    return [_of_limit(found, case, 0.97, "of fio", setting[1]), _fastest(found, case, 1.0, subject=setting[0])]


def _direct(found: Found, setting: Setting) -> list[Part]:
    case = "origin/direct"
    return [
        _at_least(_over(found, case, ["run:ai model streamer"], setting[0]), 3, "run:ai"),
        _at_least(_over(found, case, ["tensorizer"], setting[0]), 1.5, "tensorizer"),
        _of_limit(found, case, 0.9, "of raw GETs", setting[1]),
        *_of_warm(found, case, ("limit/get", "raw GET"), "of raw GETs", setting[1]),
    ]


def _tcp(found: Found, setting: Setting) -> list[Part]:
    case = "worker/tcp"
    cpu = value(found, case, setting[1], "cpu_ratio_to_limit")
    rate = _of_limit(found, case, 0.9, "of raw TCP", setting[1])
    return [rate, _at_most(cpu, 1.15, "its CPU", "{:.2f} x")]


def _same_host(found: Found, setting: Setting) -> list[Part]:
    case = "worker/same-host"
    cpu = value(found, case, setting[1], "cpu_s_per_gb")
    return [
        _of_limit(found, case, 0.95, "of the read", setting[1]),
        _at_most(cpu, 0.3, "CPU s per GB"),
        *_of_warm(found, case, ("limit/read-chunks", "pread"), "of the read", setting[1]),
    ]


def _empty(found: Found, _: Setting) -> list[Part]:
    parts = []
    ways = [("", REGION, "x the time"), ("", OVER_TCP[1], "x over TCP")]
    ways += [("-paced", REGION, "x with the paced origin"), ("-paced", OVER_TCP[1], "x so over TCP")]
    for suffix, subject, words in ways:
        direct = value(found, f"origin/direct{suffix}", REGION)
        through = value(found, f"origin/empty-cache{suffix}", subject)
        parts.append(_at_most(direct / through if direct and through else None, 1.10, words))
    return parts


def _attach(found: Found, _: Setting) -> list[Part]:
    return [_at_most(value(found, "attach/host", "longshore"), 20, "ms", "{:.1f}")]


def _plan(found: Found, _: Setting) -> list[Part]:
    return [_at_most(value(found, "micro/plan-100000-cold", "longshore"), 50, "ms", "{:.1f}")]


def _random(found: Found, _: Setting) -> list[Part]:
    case = "files/random-4k"
    s3fs = [peer for peer in peers(found, case) if peer.startswith("s3fs")]
    copies = [peer for peer in s3fs if peer.endswith(", disk")]
    parts = [
        _at_least(_over(found, case, [peer for peer in s3fs if peer not in copies]), 5, "s3fs"),
        _at_least(value(found, case, "longshore", "ratio_to_limit"), 0.5, "of pread", "{:.0%}"),
    ]
    if copies:
        kept = _at_least(_over(found, case, copies), 0, "s3fs from a copy of the whole file on this disk")
        parts.append(replace(kept, holds=None, not_judged="not judged: that is pread itself, of which nothing is 5 x"))
    return parts


@dataclass
class Aim:
    """What is aimed at, in words and as conditions; why it is not reached, in words, where that is known."""

    case: str
    words: str
    parts: Callable[[Found, Setting], list[Part]]
    cause: Callable[[Found], str] | None = None
    #: The case that may have prefaulted rows.
    prefaulted: str = ""


AIMS = [
    Aim(
        "resident local file",
        "1.5 x the fastest peer that ends with the bytes in its own memory; 90 % of a two-thread read that keeps them",
        _resident,
        causes.resident,
        "local/resident",
    ),
    Aim(
        "cold local file",
        "97 % of fio's sequential O_DIRECT rate; ahead of all peers",
        _cold,
        causes.cold,
        "local/cold",
    ),
    Aim(
        "S3-compatible origin, direct",
        "3 x run:ai; 1.5 x tensorizer; 90 % of parallel raw GETs that keep the bytes",
        _direct,
        causes.direct,
        "origin/direct",
    ),
    Aim("TCP worker", "90 % of raw TCP; at most 1.15 x its CPU", _tcp, causes.tcp, "worker/tcp"),
    Aim(
        "same-host worker",
        "95 % of a plain read that keeps the bytes; at most 0.3 CPU s per GB",
        _same_host,
        causes.same_host,
        "worker/same-host",
    ),
    Aim("through an empty cache", "at most 1.10 x the time of the direct read", _empty, causes.empty),
    Aim("attach to 1,000 tensors", "at most 20 ms at p99", _attach),
    Aim("plan of 100,000 tensors", "at most 50 ms", _plan),
    Aim(
        "random 4 kB reads, local hit",
        "5 x the same through s3fs as it reads from S3; at least half of pread's rate",
        _random,
    ),
]
