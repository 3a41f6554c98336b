"""Whether GPU memory lives on in an exported descriptor after the process that made it was killed.

usage: outlive.py BYTES. The process that holds the descriptor in between (this one) never touches CUDA. Prints one JSON
object. With a role as a second argument it is one of the other processes, which get a socket as standard input.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

from driver import Driver, create_and_wait, parent_channel, write_or_read

SECONDS = 60


def role(name: str, size: int) -> None:
    """One of the other processes."""
    channel = parent_channel()
    if name == "create":
        create_and_wait(channel, size)
    elif name == "free":
        driver = Driver()
        driver.context()
        while channel.recv(1):
            channel.sendall(str(driver.free_bytes()).encode())
    else:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        channel.sendall(b"1" if write_or_read(fds[0], size, name == "write") else b"0")


def start(name: str, size: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Starts one of them."""
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS)
    with theirs:
        process = subprocess.Popen([sys.executable, __file__, str(size), name], stdin=theirs)
    return process, ours


def answer(channel: socket.socket) -> str:
    """What a process says; empty when it ended."""
    return channel.recv(64).decode()


def with_fd(name: str, size: int, fd: int) -> bool:
    """Writes or reads in a process of its own."""
    process, channel = start(name, size)
    try:
        socket.send_fds(channel, [b"x"], [fd])
        return answer(channel) == "1"
    finally:
        process.kill()
        process.wait()


def main() -> None:
    size = int(sys.argv[1])
    probe, probe_channel = start("free", size)

    def free() -> int:
        probe_channel.sendall(b"?")
        return int(answer(probe_channel) or -1)

    creator = None
    try:
        before = free()
        creator, channel = start("create", size)
        text, fds, _, _ = socket.recv_fds(channel, 64, 1)
        whole = int(text)
        written = with_fd("write", whole, fds[0])
        creator.send_signal(signal.SIGKILL)
        creator.wait()
        held = free()
        kept = with_fd("read", whole, fds[0])
        os.close(fds[0])
        after = free()
        found = {
            "bytes": whole, "written": written, "kept": kept, "taken_while_held": before - held,
            "taken_after_close": before - after,
        }  # fmt: skip
        print(json.dumps(found))
    finally:
        for process in (probe, creator):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        role(sys.argv[2], int(sys.argv[1]))
    else:
        main()
