"""safetensors 0.9, the pre-release: on the CPU the same `load_file` as 0.8, which maps the files.

Its new part, `safe_open(...).prefetch(threads=...)` with a page-locked pool for the process, loads to a CUDA device
only (stub of the package, 0.9.0rc1): see gpu_only.py.
"""

from __future__ import annotations

from adapters.safetensors_mmap import Peer as Mapped


class Peer(Mapped):
    subject = "safetensors 0.9 pre-release, mapped"
