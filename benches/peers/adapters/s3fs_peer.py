"""s3fs on fsspec: `get` of the objects into files in memory (/dev/shm), which safetensors then maps.

From the docstrings of s3fs and fsspec (2026.9.0). Tried on two cores with 1 GB: `get` with one request a file, all
files at once, 1.8 s; `get` and `cat` with ranges in parallel (16 and 50 MiB, 8 and 10 at once) 2.2-6 s, since all of it
runs on one event loop; `cat_ranges` 4.0 s; a file object's `readinto` 3.6 s.

Random reads: `each` reads one after another through a file object with `cache_type="none"`, the fastest of the seven
cache types for places that do not repeat; `bulk` gives all ranges to `cat_ranges`; `disk` reads through fsspec's
`filecache`, with the object fetched before and untimed. Many objects: `cat` of all, one request each. Metadata:
`sizes`, all at once, with no listings kept, so that each is a request.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import s3fs
from common import Adapter, Loaded, memory_folder, model_keys, together
from safetensors.torch import load_file

CONNECTIONS = 64


class Peer(Adapter):
    subject = "s3fs, safetensors"
    package = "s3fs"
    can = ("s3", "read_files", "random", "metadata")
    cannot = {"local": "s3fs reads from S3 only"}  # noqa: RUF012
    memory = "mapped"
    random_modes = ("each", "bulk", "disk")

    def __init__(self) -> None:
        self.store = s3fs.S3FileSystem(
            use_listings_cache=False,
            config_kwargs={"max_pool_connections": CONNECTIONS, "s3": {"addressing_style": "path"}},
        )
        self.folders: list[Path] = []
        self.cached: Any = None

    def _folder(self) -> Path:
        self.folders.append(memory_folder("s3fs"))
        return self.folders[-1]

    def keys(self, url: str) -> list[str]:
        return [f"s3://{path}" for path in self.store.find(url)]

    def load(self, model: str) -> Loaded:
        folder = self._folder()
        remote = model_keys(model, self.keys(model))
        files = [str(folder / f"{at}.safetensors") for at in range(len(remote))]
        self.store.get(remote, files, max_concurrency=1)
        return together(Loaded(load_file(file)) for file in files)

    def drop(self) -> None:
        self.cached = None
        while self.folders:
            shutil.rmtree(self.folders.pop())

    def read_files(self, urls: list[str]) -> int:
        if len(urls) == 1:
            return len(self.store.cat_file(urls[0], max_concurrency=1))
        read = self.store.cat(urls, batch_size=CONNECTIONS, max_concurrency=1)
        return sum(map(len, read.values()))

    def size(self, url: str) -> int:
        return self.store.size(url)

    def ready_to_read(self, url: str, mode: str) -> None:
        if mode == "disk":
            self.cached = fsspec.filesystem("filecache", fs=self.store, cache_storage=str(self._folder()))
            with self.cached.open(url) as opened:
                opened.read(1)

    def random(self, url: str, offsets: list[int], length: int, mode: str) -> int:
        if mode == "bulk":
            ends = [offset + length for offset in offsets]
            return sum(map(len, self.store.cat_ranges([url] * len(offsets), offsets, ends, on_error="raise")))
        total = 0
        with self.cached.open(url) if mode == "disk" else self.store.open(url, cache_type="none") as opened:
            for offset in offsets:
                opened.seek(offset)
                total += len(opened.read(length))
        return total

    def metadata(self, urls: list[str]) -> int:
        return sum(size is not None for size in self.store.sizes(urls, batch_size=CONNECTIONS))
