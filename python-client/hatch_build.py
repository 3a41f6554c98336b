"""Build hook: with LONGSHORE_WHEEL_BINARY set, the wheel carries that `longshore` binary and has a platform tag.

The tag is read from the binary: its machine, and the newest glibc symbol that it asks for. A binary that needs shared
libraries which a plain Linux does not have is refused. Without the variable the wheel is pure Python.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BINARY_VARIABLE = "LONGSHORE_WHEEL_BINARY"
MACHINES = {62: "x86_64", 183: "aarch64"}
# What the manylinux policies allow, as far as a Rust binary uses it.
ALLOWED_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "ld-linux",
)
# manylinux tags begin there: an older need is met by it.
GLIBC_MIN = (2, 17)

_SHT_DYNAMIC = 6
_SHT_GNU_VERNEED = 0x6FFFFFFE
_DT_NEEDED = 1


class BinaryHook(BuildHookInterface[Any]):
    """Runs for wheels, not for the source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        given = os.environ.get(BINARY_VARIABLE)
        if not given or self.target_name != "wheel":
            return
        binary = Path(given).resolve(strict=True)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(binary.read_bytes(), str(binary))}"
        build_data["shared_scripts"] = {str(binary): "longshore"}


def platform_tag(elf: bytes, name: str) -> str:
    """The manylinux tag of a 64-bit little-endian ELF program."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{name} is not a 64-bit little-endian ELF file")
    machine = MACHINES.get(struct.unpack_from("<H", elf, 18)[0])
    if machine is None:
        raise ValueError(f"{name} is for a machine that there is no wheel tag for")
    sections = _sections(elf)
    foreign = [lib for lib in _libraries(elf, sections) if not lib.startswith(ALLOWED_LIBRARIES)]
    if foreign:
        raise ValueError(f"{name} needs {', '.join(foreign)}: a wheel that carries it would not run elsewhere")
    glibc = max([GLIBC_MIN, *_glibc_versions(elf, sections)])
    return f"manylinux_{glibc[0]}_{glibc[1]}_{machine}"


def _sections(elf: bytes) -> list[tuple[int, int, int, int]]:
    """(type, offset, size, link) of each section header."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    found = []
    for index in range(count):
        _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", elf, table + index * size)
        found.append((kind, offset, length, link))
    return found


def _string(elf: bytes, strings: int, at: int) -> str:
    return elf[strings + at : elf.index(b"\0", strings + at)].decode()


def _libraries(elf: bytes, sections: list[tuple[int, int, int, int]]) -> Iterator[str]:
    for kind, offset, length, link in sections:
        if kind == _SHT_DYNAMIC:
            for tag, value in struct.iter_unpack("<qQ", elf[offset : offset + length]):
                if tag == _DT_NEEDED:
                    yield _string(elf, sections[link][1], value)


def _glibc_versions(elf: bytes, sections: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int]]:
    """The versions named in `.gnu.version_r`, for instance ``GLIBC_2.34``."""
    for kind, offset, _, link in sections:
        if kind != _SHT_GNU_VERNEED:
            continue
        need = offset
        while True:
            _, count, _, first, following = struct.unpack_from("<HHIII", elf, need)
            entry = need + first
            for _ in range(count):
                _, _, _, name, step = struct.unpack_from("<IHHII", elf, entry)
                label, _, digits = _string(elf, sections[link][1], name).partition("_")
                if label == "GLIBC" and digits[:1].isdigit():
                    major, minor = digits.split(".")[:2]
                    yield int(major), int(minor)
                entry += step
            if not following:
                break
            need += following
