"""Amazon's S3 connector for PyTorch: its readers into memory, the tensors made of the bytes in place.

From its README and `s3reader/constructor.py` (1.5.0): `range_based(buffer_size=0)` readers take reads that are larger
than the buffer straight to the caller's memory, which took two thirds of the CPU that `sequential().read()` took. Parts
of 8 MiB and a target of 10 Gbit/s are the defaults; 32 MiB and 100 Gbit/s were slower on two cores. `force_path_style`
as for other stores than Amazon's. A thread a file, at least two. Many objects: `S3MapDataset.from_objects`, read with
eight threads; it has no data loader of its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from common import Adapter, Loaded, cores, model_keys, parse_in_place, split_s3, together
from s3torchconnector import S3ClientConfig, S3MapDataset, S3ReaderConstructor
from s3torchconnector._s3client import S3Client

SMALL_OBJECT_THREADS = 8


class Peer(Adapter):
    subject = "s3torchconnector"
    package = "s3torchconnector"
    can = ("s3", "read_files", "random")
    cannot = {  # noqa: RUF012
        "local": "s3torchconnector reads from S3 only",
        "metadata": "s3torchconnector has no call for an object's size and time",
    }
    random_modes = ("each",)

    def __init__(self) -> None:
        self.region = os.environ.get("AWS_REGION", "us-east-1")
        self.endpoint = os.environ.get("AWS_ENDPOINT_URL")
        self.config = S3ClientConfig(force_path_style=True)
        self.client = S3Client(region=self.region, endpoint=self.endpoint, s3client_config=self.config)
        self.unbuffered = S3ReaderConstructor.range_based(buffer_size=0)

    def keys(self, url: str) -> list[str]:
        bucket, prefix = split_s3(url)
        pages = self.client.list_objects(bucket, f"{prefix}/")
        return [f"s3://{bucket}/{each.key}" for page in pages for each in page.object_info]

    def _whole(self, url: str) -> Loaded:
        reader = self.client.get_object(*split_s3(url), reader_constructor=self.unbuffered)
        size = self.size(url)
        content = torch.empty(size, dtype=torch.uint8).numpy().data
        at = 0
        while at < size:
            read = reader.readinto(content[at:])
            if not read:
                raise EOFError(f"{url} ends at {at} of {size} bytes")
            at += read
        return Loaded(parse_in_place(content))

    def load(self, model: str) -> Loaded:
        files = model_keys(model, self.keys(model))
        with ThreadPoolExecutor(min(len(files), max(2, cores()))) as threads:
            return together(threads.map(self._whole, files))

    def read_files(self, urls: list[str]) -> int:
        objects = S3MapDataset.from_objects(
            urls,
            region=self.region,
            endpoint=self.endpoint,
            transform=lambda reader: len(reader.read()),
            s3client_config=self.config,
        )
        with ThreadPoolExecutor(SMALL_OBJECT_THREADS) as threads:
            return sum(threads.map(objects.__getitem__, range(len(objects))))

    def size(self, url: str) -> int:
        return self.client.head_object(*split_s3(url)).size

    def random(self, url: str, offsets: list[int], length: int, _mode: str) -> int:
        reader = self.client.get_object(*split_s3(url), reader_constructor=self.unbuffered)
        total = 0
        for offset in offsets:
            reader.seek(offset)
            total += len(reader.read(length))
        return total
