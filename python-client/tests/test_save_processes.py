"""Processes that save: their end, their children, and what they leave open."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fake_checkpoints import FakeCheckpoints
from fake_store import Store
from save_support import RUN

from longshore._proto import checkpoint_pb2 as pb

pytest_plugins = ("save_fixtures",)


EXIT = """
import sys, torch, longshore
from longshore._proto import checkpoint_pb2
handle = longshore.save({"w": torch.ones(100000)}, "s3://bucket/run", step=int(sys.argv[2]), address=sys.argv[1],
                        wait=None if sys.argv[3] == "background" else "staged")
print(handle.attempt, flush=True)
"""


@pytest.mark.parametrize("mode", ["staged", "background"])
def test_a_process_that_ends_with_a_save_running(fake: FakeCheckpoints, store: Store, mode: str) -> None:
    store.hold_at = pb.SAVE_STATE_STAGED
    if mode == "background":
        store.pieces_max = 0
    run = subprocess.run(
        [sys.executable, "-c", EXIT, fake.address, "1", mode], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    attempt = store.attempts[run.stdout.strip()]
    store.hold_at = None
    store.advance(attempt)
    assert ((RUN, 1) in store.committed) == (mode == "staged"), "the loader finishes what is staged"


FORK = """
import os, sys, torch, longshore
state = {"w": torch.ones(1000)}
handle = longshore.save(state, "s3://bucket/run", step=1, address=sys.argv[1], wait="committed")
pid = os.fork()
if pid == 0:
    try:
        longshore.save(state, "s3://bucket/run", step=2, address=sys.argv[1])
    except longshore.FailedPrecondition as error:
        os._exit(0 if "fork" in str(error) else 1)
    os._exit(2)
assert os.waitpid(pid, 0)[1] == 0
longshore.save(state, "s3://bucket/run", step=3, address=sys.argv[1], wait="committed")
"""


def test_forks(fake: FakeCheckpoints, store: Store) -> None:
    run = subprocess.run([sys.executable, "-c", FORK, fake.address], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert set(store.committed) == {(RUN, 1), (RUN, 3)}


MANY = """
import gc, os, sys, torch, longshore
def fds():
    gc.collect()
    return sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in os.listdir("/proc/self/fd")
                  if os.path.islink(f"/proc/self/fd/{fd}"))
state = {"w": torch.ones(100000)}
def save(step):
    longshore.save(state, "s3://bucket/run", step=step, address=sys.argv[1], wait="committed")
for step in range(3):
    save(step)
before = fds()
for step in range(3, 103):
    save(step)
after = fds()
assert len(after) <= len(before), (before, after)
"""


def test_a_hundred_saves_leave_nothing_open_and_the_end_warns_of_nothing(fake: FakeCheckpoints) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", MANY, fake.address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "ResourceWarning" not in run.stderr, run.stderr
    assert "longshore" not in run.stderr, run.stderr
