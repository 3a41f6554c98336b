"""Finds the `longshore` binary."""

from __future__ import annotations

import importlib.metadata
import os
import shutil

from longshore._errors import NotFound

BINARY_VARIABLE = "LONGSHORE_BIN"
_NAME = "longshore"


def find() -> str:
    """``LONGSHORE_BIN``, else the one that this package's wheel carries, else the first on PATH."""
    given = os.environ.get(BINARY_VARIABLE)
    if given:
        if not _is_program(given):
            raise NotFound(f"{BINARY_VARIABLE}={given} is not a program")
        return given
    found = _of_wheel() or shutil.which(_NAME)
    if found is None:
        raise NotFound(
            "no loader is running and no longshore binary was found to start one: install the platform wheel "
            "(`pip install longshore` on Linux x86_64 or aarch64), or build it (`cargo build --release`) and set "
            f"{BINARY_VARIABLE} to its path, or pass the address of a running loader"
        )
    return found


def _of_wheel() -> str | None:
    """The binary among the installed files of this package; a wheel without one, or a checkout, has none."""
    try:
        files = importlib.metadata.files("longshore") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _NAME and file.suffix == "" and ".." in file.parts:
            path = os.path.normpath(str(file.locate()))
            if _is_program(path):
                return path
    return None


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)
