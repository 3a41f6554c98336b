"""Starts the ranks of a process group, see `rank`."""

from __future__ import annotations

import os
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
    assert all(code == 0 for code, _, _ in found), "\n".join(errors for _, _, errors in found)
    return [output for _, output, _ in found]


def start(
    folder: Path, function: str, address: str, world: int, *arguments: str, environ: Mapping[str, str] | None = None
) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank."""
    program = Path(__file__).with_name("rank.py")
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    processes = [
        subprocess.Popen(
            [sys.executable, program, function, address, str(rank), str(world), meeting, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        for rank in range(world)
    ]
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=SECONDS)
            found.append((process.returncode, output, errors))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return found
