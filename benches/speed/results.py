"""The file of a run's results, and what is kept beside it while the run goes on."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ending import Ending

from speed.rows import Row

PARTIAL = ".partial.json"


def partial_of(path: Path) -> Path:
    """Where the results so far are."""
    return path.with_name(path.name.removesuffix(".json") + PARTIAL)


def is_partial(path: Path) -> bool:
    """Whether these are of a run that was ended, or goes on."""
    return path.name.endswith(PARTIAL)


def name_of(path: Path) -> str:
    """Of a run, finished or not."""
    return path.name.removesuffix(PARTIAL).removesuffix(".json")


class Results:
    """Rows with the run's facts: after each group those so far, at the end all, and then nothing else is left."""

    def __init__(self, path: Path, facts: Callable[[float], dict[str, Any]], ending: Ending) -> None:
        """`facts` has those of a run that took so many seconds."""
        self.path = path
        self._facts = facts
        self._ending = ending
        self._started = time.monotonic()

    def keep(self, rows: Iterable[Row]) -> None:
        """Those so far; a run goes on without them."""
        try:
            self._write(partial_of(self.path), rows, unfinished=True)
        except OSError as error:
            print(f"the results so far could not be kept: {error}", file=sys.stderr, flush=True)

    def finish(self, rows: Iterable[Row]) -> None:
        """All."""
        self._write(self.path, rows)
        partial_of(self.path).unlink(missing_ok=True)

    def _write(self, path: Path, rows: Iterable[Row], **more: bool) -> None:
        """Whoever reads the file sees all of it, or what it was before."""
        value = {**self._facts(time.monotonic() - self._started), **more, "rows": [row.as_dict() for row in rows]}
        new = path.with_name(f"{path.name}.new")
        with self._ending.shield():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_text(json.dumps(value, indent=1) + "\n")
                os.replace(new, path)
            finally:
                new.unlink(missing_ok=True)
