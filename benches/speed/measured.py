"""Looking up what was measured."""

from __future__ import annotations

from typing import Any

from speed.rows import PREFAULTED

Found = dict[tuple[str, str], dict[str, Any]]


def value(found: Found, case: str, subject: str, field: str = "value") -> float | None:
    """A number of a row; None when it was not measured."""
    number: float | None = found.get((case, subject), {}).get(field)
    return number


def has_prefaulted(found: Found, case: str) -> bool:
    """Whether loads by a loader with `--prefault` were measured."""
    return value(found, case, PREFAULTED[0]) is not None


def peers(found: Found, case: str) -> list[str]:
    """Those that were measured."""
    return [
        subject
        for (of, subject), row in found.items()
        if of == case and not subject.startswith(("longshore", "limit")) and row["value"] is not None
    ]


def maps(peer: str) -> bool:
    """Whether its tensors are the page cache's own pages."""
    return "mapped" in peer
