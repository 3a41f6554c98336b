"""Which checkpoint is meant: a run and a step, given apart or as one URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from longshore._checkpoints import check_step
from longshore._errors import InvalidArgument
from longshore._node import _absolute

_PREFIX = "longshore+"
_STEP = re.compile(r"(?P<run>.+)/step-(?P<step>0|[1-9][0-9]{0,19})/?")


@dataclass(frozen=True)
class Target:
    """The checkpoint `uri`/step-`step`."""

    uri: str
    step: int

    @property
    def url(self) -> str:
        """Of the checkpoint."""
        return f"{self.uri}/step-{self.step}"


def plain(uri: str | os.PathLike[str]) -> str:
    """A URL without our prefix; a path is meant from here."""
    return _absolute(os.fspath(uri).removeprefix(_PREFIX)).rstrip("/")


def split(checkpoint_id: str | os.PathLike[str]) -> Target | None:
    """The run and the step of ``longshore+s3://bucket/run/step-100``; None for a URL without a step."""
    found = _STEP.fullmatch(plain(checkpoint_id))
    return None if found is None else Target(found["run"], check_step(int(found["step"])))


def target(uri: str | os.PathLike[str] | None, step: int | None) -> Target | None:
    """From what a constructor was given; None when that does not say which step."""
    if uri is None:
        if step is not None:
            raise InvalidArgument("a step was given without the URL of its run")
        return None
    return split(uri) if step is None else Target(plain(uri), check_step(step))


def required(checkpoint_id: str | os.PathLike[str]) -> Target:
    """As `split`, for a URL that must have a step."""
    found = split(checkpoint_id)
    if found is None:
        raise InvalidArgument(
            f"{os.fspath(checkpoint_id)!r} names no checkpoint: it is the URL of a run and /step-N, for instance "
            "s3://bucket/run/step-100"
        )
    return found
