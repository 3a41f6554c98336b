"""Where the ranks of a save meet while they write: the store of torch.distributed.

torch.distributed.checkpoint has its collectives before and after `write_data`, none within. What is known only there
(how long pickled objects are) goes through the store instead, where a rank that fails can say so, and where the others
see that a rank of their machine has ended, instead of waiting for it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from longshore._errors import Error, Internal, Timeout, Unavailable, from_code

#: Stores refuse values of more than 8 MiB.
CHUNK_BYTES = 4 << 20
POLL_SECONDS_MIN = 0.001
POLL_SECONDS_MAX = 0.05
#: How often it is looked whether ranks still run.
ALIVE_SECONDS = 0.25
_ROOT = "longshore"


@dataclass(frozen=True)
class Member:
    """A process, so that others on its machine can tell whether it still runs."""

    machine: str
    pid: int
    started: str

    @property
    def is_gone(self) -> bool:
        """Whether it has ended for certain; False for a process of another machine."""
        return self.machine == _machine() and _started(self.pid) != self.started


def myself() -> Member:
    """This process."""
    return Member(_machine(), os.getpid(), _started(os.getpid()))


def _machine() -> str:
    """Names the machine and the process ids that are seen here."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"unknown/{os.uname().nodename}/{os.getpid()}"


def _started(pid: int) -> str:
    """When a process was started; empty when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


def store() -> Any:
    """The store that the ranks of this job share."""
    return dist.distributed_c10d._get_default_store()


def announce(where: str, rank: int) -> None:
    """Tells the others who this rank is, before a collective that they take part in."""
    store().set(f"{_ROOT}/{where}/member/{rank}", pickle.dumps(myself()))


def open_meeting(where: str, token: str, world_size: int) -> None:
    """The coordinator says how the ranks find each other, before a collective that they take part in."""
    store().set(f"{_ROOT}/{where}/meeting", f"{token} {world_size}")


def join_meeting(where: str, rank: int, deadline: float) -> Meeting:
    """The meeting that the coordinator opened last."""
    token, world_size = store().get(f"{_ROOT}/{where}/meeting").decode().rsplit(" ", 1)
    return Meeting(where, token, rank, int(world_size), deadline)


class Meeting:
    """What ranks tell each other, by name and rank."""

    def __init__(self, where: str, token: str, rank: int, world_size: int, deadline: float) -> None:
        self.token = token
        self.rank = rank
        self.world_size = world_size
        self._where = where
        self._deadline = deadline
        self._seconds = deadline - time.monotonic()
        self._store = store()
        self._members: dict[int, Member | None] = {}

    def say(self, name: str, value: Any) -> None:
        """Tells all ranks something."""
        data = zlib.compress(pickle.dumps(value), 1)
        parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        with self._storing():
            for index, part in enumerate(parts):
                self._store.set(f"{self._key(name, self.rank)}/{index}", part)
            self._store.set(self._key(name, self.rank), str(len(parts)))

    def fail(self, name: str, error: BaseException) -> None:
        """Tells all ranks that there is nothing to tell, and why. Never raises."""
        code = error.code if isinstance(error, Error) else Internal.code
        text = str(error) if isinstance(error, Error) else repr(error)
        with contextlib.suppress(Error):
            self.say(name, _Failure(code, text))

    def hear(self, name: str, ranks: Iterable[int], doing: str) -> dict[int, Any]:
        """What each of some ranks told; raises the error of one that failed, or has ended, or says nothing in time."""
        waiting = set(ranks)
        found: dict[int, Any] = {}
        pause, looked = POLL_SECONDS_MIN, time.monotonic()
        while waiting:
            ready = [rank for rank in sorted(waiting) if self._check(name, rank)]
            for rank in ready:
                found[rank] = self._read(name, rank)
                if isinstance(found[rank], _Failure):
                    raise found[rank].error(rank)
                waiting.discard(rank)
            if ready or not waiting:
                pause = POLL_SECONDS_MIN
                continue
            now = time.monotonic()
            if now >= self._deadline:
                raise Timeout(f"{doing}: nothing from {_ranks(waiting)} within {self._seconds:.0f} s")
            if now - looked >= ALIVE_SECONDS:
                looked = now
                self._check_alive(name, waiting, doing)
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS_MAX)
        return found

    def forget(self, name: str, ranks: Iterable[int]) -> None:
        """What nobody needs to hear any more. Never raises."""
        for rank in ranks:
            key = self._key(name, rank)
            with contextlib.suppress(RuntimeError, NotImplementedError):
                # `get` would wait for what was never said.
                if self._store.check([key]):
                    for index in range(int(self._store.get(key))):
                        self._store.delete_key(f"{key}/{index}")
                    self._store.delete_key(key)

    def _key(self, name: str, rank: int) -> str:
        return f"{_ROOT}/{self._where}/{self.token}/{name}/{rank}"

    def _check(self, name: str, rank: int) -> bool:
        with self._storing():
            return bool(self._store.check([self._key(name, rank)]))

    def _read(self, name: str, rank: int) -> Any:
        key = self._key(name, rank)
        with self._storing():
            count = int(self._store.get(key))
            data = b"".join(self._store.get(f"{key}/{index}") for index in range(count))
        return pickle.loads(zlib.decompress(data))  # noqa: S301 - of the same job

    def _check_alive(self, name: str, ranks: Iterable[int], doing: str) -> None:
        for rank in sorted(ranks):
            member = self._member(rank)
            # Looked at again, because it may have told us just before its end.
            if member is not None and member.is_gone and not self._check(name, rank):
                raise Unavailable(f"{doing}: rank {rank} (process {member.pid}) has ended")

    def _member(self, rank: int) -> Member | None:
        if rank not in self._members:
            key = f"{_ROOT}/{self._where}/member/{rank}"
            with self._storing():
                known = self._store.check([key])
                self._members[rank] = pickle.loads(self._store.get(key)) if known else None  # noqa: S301 - of this job
        return self._members[rank]

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, Error):
                raise
            raise Unavailable(f"the store of torch.distributed, which rank 0 or its agent keeps: {error}") from error


@dataclass(frozen=True)
class _Failure:
    code: str
    message: str

    def error(self, rank: int) -> Error:
        return from_code(self.code, f"rank {rank}: {self.message}")


def _ranks(ranks: Iterable[int]) -> str:
    numbers = sorted(ranks)
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
