"""How checkpoints are written: what a `LongshoreWriter` was told."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from longshore._errors import InvalidArgument
from longshore._proto import checkpoint_pb2 as pb
from longshore._save import FileContent, Layout, Wait

_LAYOUTS = ("auto", "huggingface", "sharded")
_WAITS = ("staged", "local_durable", "committed")


@dataclass(frozen=True)
class Settings:
    """Can be pickled, so that a checkpoint process has the same."""

    keep: int = 0
    peer_copies: int = 0
    delta: bool = False
    layout: Layout = "auto"
    files: Mapping[str, FileContent] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    wait: Wait = "committed"
    when_full: str = "wait"
    #: Until all ranks are staged, in seconds.
    timeout: float = 600.0
    #: From then on until what is waited for is reached.
    commit_timeout: float = 1800.0
    address: str | None = None

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("layout", self.layout, _LAYOUTS),
            ("wait", self.wait, _WAITS),
            ("when_full", self.when_full, ("wait", "refuse")),
        ):
            if value not in choices:
                raise InvalidArgument(f"{what} is one of {', '.join(map(repr, choices))}, not {value!r}")
        for what, seconds in (("timeout", self.timeout), ("commit_timeout", self.commit_timeout)):
            if not seconds > 0:
                raise InvalidArgument(f"{what} is a number of seconds above 0, not {seconds!r}")
        copied = {
            name: bytes(content) if isinstance(content, (bytes, bytearray, memoryview)) else os.fspath(content)
            for name, content in self.files.items()
        }
        object.__setattr__(self, "files", copied)
        object.__setattr__(self, "metadata", dict(self.metadata))

    def deadline(self) -> float:
        """When all ranks have to be staged, if planning begins now."""
        return time.monotonic() + self.timeout

    def options(self) -> pb.SaveOptions:
        """For the plan."""
        return pb.SaveOptions(
            keep=self.keep,
            peer_copies=self.peer_copies,
            delta=self.delta,
            stage_timeout_ms=max(1, round(self.timeout * 1000)),
            refuse_when_full=self.when_full == "refuse",
            metadata=self.metadata,
            hf_index=self.layout != "sharded",
        )
