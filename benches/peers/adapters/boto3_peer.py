"""boto3 with its s3transfer: the objects downloaded to files in memory (/dev/shm), which safetensors then maps.

From boto3's guide and `TransferConfig` (1.44.5). Tried on two cores with 1 GB: the defaults (10 threads, parts of
8 MiB, 256 KiB to a write) 2.2 s; four threads, parts of 64 MiB and 1 MiB to a write 1.3 s, which is what it has, with
two threads a core from four to ten. The CRT client of s3transfer (awscrt, parts of 8 and 32 MiB) took 1.8-4 s and as
much CPU; boto3 itself cannot point it at an endpoint without TLS. Many objects and random reads: `get_object` on
16 threads with a connection each, or one after another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from common import Adapter, Loaded, cores, memory_folder, model_keys, split_s3, together
from safetensors.torch import load_file

SMALL_OBJECT_THREADS = 16


class Peer(Adapter):
    subject = "boto3, safetensors"
    package = "boto3"
    can = ("s3", "read_files", "random", "metadata")
    cannot = {"local": "boto3 reads from S3 only"}  # noqa: RUF012
    memory = "mapped"
    random_modes = ("each", "bulk")

    def __init__(self) -> None:
        config = Config(max_pool_connections=SMALL_OBJECT_THREADS, s3={"addressing_style": "path"})
        self.client = boto3.client("s3", config=config)
        self.transfer = TransferConfig(
            multipart_chunksize=64 << 20, io_chunksize=1 << 20, max_concurrency=min(10, max(4, 2 * cores()))
        )
        self.folders: list[Path] = []

    def keys(self, url: str) -> list[str]:
        bucket, prefix = split_s3(url)
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return [f"s3://{bucket}/{each['Key']}" for page in pages for each in page.get("Contents", [])]

    def load(self, model: str) -> Loaded:
        folder = memory_folder("boto3")
        self.folders.append(folder)

        def file(at_url: tuple[int, str]) -> Loaded:
            at, url = at_url
            path = str(folder / f"{at}.safetensors")
            self.client.download_file(*split_s3(url), path, Config=self.transfer)
            return Loaded(load_file(path))

        return together(map(file, enumerate(model_keys(model, self.keys(model)))))

    def drop(self) -> None:
        while self.folders:
            shutil.rmtree(self.folders.pop())

    def read_files(self, urls: list[str]) -> int:
        return self._at_once(self._get, urls)

    def size(self, url: str) -> int:
        bucket, key = split_s3(url)
        return self.client.head_object(Bucket=bucket, Key=key)["ContentLength"]

    def random(self, url: str, offsets: list[int], length: int, mode: str) -> int:
        ranges = [f"bytes={offset}-{offset + length - 1}" for offset in offsets]
        if mode == "bulk":
            return self._at_once(lambda of: self._get(url, Range=of), ranges)
        return sum(self._get(url, Range=of) for of in ranges)

    def metadata(self, urls: list[str]) -> int:
        return self._at_once(lambda url: self.size(url) is not None, urls)

    def _get(self, url: str, **more: str) -> int:
        bucket, key = split_s3(url)
        return len(self.client.get_object(Bucket=bucket, Key=key, **more)["Body"].read())

    def _at_once(self, work: Callable[[str], int], items: list[str]) -> int:
        with ThreadPoolExecutor(SMALL_OBJECT_THREADS) as threads:
            return sum(threads.map(work, items))
