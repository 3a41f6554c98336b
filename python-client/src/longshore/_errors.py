"""Exceptions that mirror the error codes of the daemons.

Each code has one class. Where Python has an exception of the same meaning, the class is one of those too, so that
``except FileNotFoundError`` and ``except TimeoutError`` do what one expects.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

CODE_HEADER = "longshore-code"


class Error(Exception):
    """Anything that Longshore reports. `code` is the stable name, for instance ``not_found``."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed when it is repeated."""
        return self.code in {"unavailable", "timeout", "corrupt"}


class InvalidArgument(Error, ValueError):
    """The request itself is wrong: repeating it cannot help."""

    code = "invalid_argument"


class NotFound(Error, FileNotFoundError):
    """The object, bucket, model or file does not exist."""

    code = "not_found"


class Unauthenticated(Error, PermissionError):
    """Credentials are missing, wrong or expired."""

    code = "unauthenticated"


class PermissionDenied(Error, PermissionError):
    """The credentials are known but do not allow this."""

    code = "permission_denied"


class FailedPrecondition(Error, RuntimeError):
    """The object changed since it was resolved, or the state does not allow the call."""

    code = "failed_precondition"


class Corrupt(Error):
    """Bytes are not what they should be: checksum mismatch, malformed header, truncated object."""

    code = "corrupt"


class Exhausted(Error, MemoryError):
    """A budget, a disk or a quota is full; for a load nearly always the loader's memory."""

    code = "exhausted"


class Unavailable(Error, ConnectionError):
    """The other side cannot be reached or asks to come back later."""

    code = "unavailable"


class Timeout(Error, TimeoutError):
    """A deadline passed; the message names what timed out."""

    code = "timeout"


class Cancelled(Error):
    """The call was given up, or the daemon is shutting down."""

    code = "cancelled"


class Unsupported(Error, NotImplementedError):
    """The feature is not in this build or on this machine."""

    code = "unsupported"


class Internal(Error, RuntimeError):
    """A defect of Longshore or an unexpected failure of the machine."""

    code = "internal"


class SaveFailedWarning(RuntimeWarning):
    """A save has failed, and nobody had asked for its outcome when the next one of its run began."""


_CLASSES: tuple[type[Error], ...] = (
    InvalidArgument,
    NotFound,
    Unauthenticated,
    PermissionDenied,
    FailedPrecondition,
    Corrupt,
    Exhausted,
    Unavailable,
    Timeout,
    Cancelled,
    Unsupported,
    Internal,
)
BY_CODE: dict[str, type[Error]] = {cls.code: cls for cls in _CLASSES}
#: The exit codes of the command line: 2 for the first, and so on.
BY_EXIT_CODE: dict[int, type[Error]] = dict(enumerate(_CLASSES, 2))

# Used when an answer carries no code of ours: a proxy in between, or gRPC itself.
_BY_STATUS: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DATA_LOSS: Corrupt,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: Internal,
}


def from_code(code: str, message: str) -> Error:
    """The exception of a code; an unknown code, from a newer daemon, is `Internal`."""
    return BY_CODE.get(code, Internal)(message)


def from_rpc(error: grpc.RpcError, doing: str, address: str) -> Error:
    """The exception of a failed call. What the daemon said is kept as it is; gRPC's own words get their context."""
    if not isinstance(error, grpc.Call):
        return Internal(f"{doing}: {error}")
    details = error.details() or "no details given"
    for key, value in error.trailing_metadata() or ():
        if key == CODE_HEADER:
            return from_code(value if isinstance(value, str) else value.decode("ascii", "replace"), details)
    cls = _BY_STATUS.get(error.code(), Internal)
    if cls is Timeout:
        return Timeout(f"{doing}: the loader at {address} did not answer within the time given")
    if cls is Unavailable:
        return Unavailable(f"{doing}: the loader at {address} cannot be reached: {details}")
    return cls(f"{doing}: {details}")
