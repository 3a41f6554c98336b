"""safetensors with `backend="pread"`: each tensor is read into memory of its own.

The other documented backend of `load_file` (0.8 and later). A thread a file, no more than cores: reads release the
interpreter's lock, and the package itself reads with one thread a file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from common import Adapter, Loaded, cores, local_files, together
from safetensors.torch import load_file


class Peer(Adapter):
    subject = "safetensors, read"
    package = "safetensors"
    can = ("local",)
    cannot = {"s3": "safetensors reads local files only"}  # noqa: RUF012

    def load(self, model: str) -> Loaded:
        with ThreadPoolExecutor(cores()) as threads:
            return together(
                Loaded(tensors)
                for tensors in threads.map(lambda file: load_file(file, backend="pread"), local_files(model))
            )
