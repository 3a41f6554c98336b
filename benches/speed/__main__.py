"""`python3 benches/speed`: see `speed.cli`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The package by its own name, and what it shares with the other reports: daemons, machine line, child processes.
sys.path[0:1] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "gpu")]

from speed.cli import main  # noqa: E402 # behind the path

if __name__ == "__main__":
    sys.exit(main())
