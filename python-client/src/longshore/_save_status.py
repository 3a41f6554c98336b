"""How far a save is, as users see it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from longshore._proto import checkpoint_pb2 as pb

_STATES = {
    pb.SAVE_STATE_STAGING: "staging",
    pb.SAVE_STATE_STAGED: "staged",
    pb.SAVE_STATE_LOCAL_DURABLE: "local_durable",
    pb.SAVE_STATE_COMMITTED: "committed",
    pb.SAVE_STATE_FAILED: "failed",
    pb.SAVE_STATE_CANCELLED: "cancelled",
}
#: In which they follow each other.
ORDER = ("staging", "staged", "local_durable", "committed")


@dataclass(frozen=True, repr=False)
class SaveStatus:
    """How far a save is. Bytes and seconds are those of the ranks of this node, seconds since the start of the save."""

    #: ``staging``, ``staged``, ``local_durable``, ``committed``, ``failed`` or ``cancelled``.
    state: str
    step: int
    #: Of the checkpoint.
    url: str
    attempt: str
    bytes_total: int
    bytes_staged: int
    bytes_durable: int
    bytes_peer: int
    bytes_uploaded: int
    #: Not written, because the parent of a delta has them.
    bytes_unchanged: int
    #: None when it was not reached yet.
    staged_seconds: float | None
    local_durable_seconds: float | None
    peer_durable_seconds: float | None
    committed_seconds: float | None
    retries: int
    #: What was not the first choice.
    notes: tuple[str, ...]
    #: What it waits for at present, in words; empty when for nothing.
    waiting_for: str
    #: Why it failed or was cancelled; empty when it did not.
    error: str = ""

    def __repr__(self) -> str:
        # What is neither 0 nor empty.
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        told = ", ".join(f"{name}={value!r}" for name, value in shown.items() if value or name == "step")
        return f"SaveStatus({told})"


def state_of(message: pb.SaveStatus) -> str:
    """The name of the state."""
    return _STATES.get(message.state, "staging")


def status_of(message: pb.SaveStatus, state: str, notes: list[str]) -> SaveStatus:
    """Converts the message; `state` and `notes` are what this process knows beside it."""
    return SaveStatus(
        state=state,
        step=message.step,
        url=message.url,
        attempt=message.attempt,
        bytes_total=message.bytes_total,
        bytes_staged=message.bytes_staged,
        bytes_durable=message.bytes_durable,
        bytes_peer=message.bytes_peer,
        bytes_uploaded=message.bytes_uploaded,
        bytes_unchanged=message.bytes_unchanged,
        staged_seconds=message.staged_seconds or None,
        local_durable_seconds=message.local_durable_seconds or None,
        peer_durable_seconds=message.peer_durable_seconds or None,
        committed_seconds=message.committed_seconds or None,
        retries=message.retries,
        notes=(*message.notes, *notes),
        waiting_for=message.waiting_for,
    )
