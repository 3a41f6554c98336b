"""Why aims are not reached, with the numbers of the run."""

from __future__ import annotations

from speed.measured import Found, has_prefaulted, maps, peers, value
from speed.rows import LONGSHORE, OVER_TCP, PREFAULTED, REGION

#: What a load pays for without prefaulted memory, and the limits do not.
FIRST_TOUCH = (
    "On a virtual machine the host may take freed memory back, and whoever touches such memory first waits for it: a "
    "load without --prefault does, the limit, into memory that was touched before, does not."
)


def _span(found: Found, case: str, subject: str) -> str:
    """The rounds of a row."""
    row = found.get((case, subject), {})
    if row.get("value") is None:
        return f"{subject} was not measured"
    return f"{subject} {row['min']:.2f} to {row['max']:.2f} GB/s"


def _rounds(found: Found, case: str, place: int, *others: tuple[str, str]) -> str:
    """Of both settings of Longshore (the load is at place 0, its host region at 1), and of what stands beside."""
    both = [PREFAULTED, LONGSHORE] if has_prefaulted(found, case) else [LONGSHORE]
    shown = [*((case, names[place]) for names in both), *others]
    return "Rounds: " + ", ".join(_span(found, *each) for each in shown)


def resident(found: Found) -> str:
    case, limit = "local/resident", value(found, "local/resident", REGION, "limit")
    copying = [peer for peer in peers(found, case) if not maps(peer)]
    if limit is None or not copying:
        return "not measured whole."
    best = max(copying, key=lambda peer: found[case, peer]["value"])
    goal = 1.5 * found[case, best]["value"]
    return (
        "each byte is copied once, and the fastest peer does just that as well: "
        f"1.5 x its rate is {goal:.1f} GB/s here, {goal / limit:.0%} of the read. {FIRST_TOUCH} "
        f"{_rounds(found, case, 0, (case, best), ('limit/read-kept', 'pread'))}."
    )


def cold(found: Found) -> str:
    case = "local/cold"
    fastest = sorted(peers(found, case), key=lambda peer: -found[case, peer]["value"])[:2]
    beside = [(case, peer) for peer in fastest]
    own = PREFAULTED if has_prefaulted(found, case) else LONGSHORE
    return (
        f"the disk sets the rate, and another one from round to round. {own[1]} is the part of the load that reads; "
        "what comes behind it, the client mapping the memory that the loader shares, a library that reads into its own "
        f"process does not have. {_rounds(found, case, 0, (case, own[1]), *beside)}."
    )


def same_host(found: Found) -> str:
    rounds = _rounds(found, "worker/same-host", 1, ("limit/read-chunks-kept", "pread"))
    return (
        f"a load checks every block, the plain read none. {FIRST_TOUCH} With --prefault the CPU of making memory ready "
        f"again is counted. {rounds}."
    )


def direct(found: Found) -> str:
    case, limit = "origin/direct", ("limit/get-kept", "raw GET")
    return (
        "a load first lists the model and reads the files' headers, before it asks for what the GETs ask for at once. "
        f"{FIRST_TOUCH} {_rounds(found, case, 1, limit)}. {_cpu(found, case, limit)}."
    )


def tcp(found: Found) -> str:
    case, limit = "worker/tcp", ("limit/tcp", "sendfile to recv")
    rounds = _rounds(found, case, 1, limit)
    return f"a load checks every block, raw TCP none. {FIRST_TOUCH} {rounds}. {_cpu(found, case, limit)}."


def _cpu(found: Found, case: str, limit: tuple[str, str]) -> str:
    """Of host regions, and of their limit."""
    shown = [(case, PREFAULTED[1])] if has_prefaulted(found, case) else []
    cpu = [(subject, value(found, of, subject, "cpu_s_per_gb")) for of, subject in [*shown, (case, REGION), limit]]
    return "CPU s per GB: " + ", ".join(
        f"{subject} {'not measured' if seconds is None else f'{seconds:.2f}'}" for subject, seconds in cpu
    )


def empty(found: Found) -> str:
    cpu = [
        value(found, case, subject, "cpu_s_per_gb")
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
