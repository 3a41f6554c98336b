"""safetensors, the newest stable version: `load_file`, which maps the files.

`load_file(file)` is the documented way and `backend="mmap"` its default. Its tensors are pages of the mapped file, so
the load reads a byte of each page; nothing is copied, and what is not in the page cache yet is read by page faults.
Files that are resident thus cost page-table entries only. The adapter `safetensors-pread` is the same package with
memory of its own.
"""

from __future__ import annotations

from common import Adapter, Loaded, local_files, together
from safetensors.torch import load_file


class Peer(Adapter):
    subject = "safetensors, mapped"
    package = "safetensors"
    can = ("local",)
    cannot = {"s3": "safetensors reads local files only"}  # noqa: RUF012
    memory = "mapped"

    def load(self, model: str) -> Loaded:
        return together(Loaded(load_file(file)) for file in local_files(model))
