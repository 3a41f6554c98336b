"""Starts the ranks of a process group, see `rank`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

SECONDS = 180.0


def run(
    folder: Path, function: str, address: str, world: int, *arguments: str, environ: Mapping[str, str] | None = None
) -> list[str]:
    """What each rank printed; fails when one of them fails."""
    found = start(folder, function, address, world, *arguments, environ=environ)
    assert len(found) == world
    assert all(code == 0 for code, _, _ in found), "\n".join(errors for _, _, errors in found)
    return [output for _, output, _ in found]


def start(
    folder: Path,
    function: str,
    address: str,
    world: int,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    program: str = "rank.py",
) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank."""
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    # Of its own group, so that all ranks can be ended together.
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name(program), function, address, str(world), meeting, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    codes = [int(line) for line in output.split()]
    return [
        (code, Path(f"{meeting}.{rank}.out").read_text(), Path(f"{meeting}.{rank}.err").read_text())
        for rank, code in enumerate(codes)
    ]
