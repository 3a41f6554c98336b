"""Who else saves checkpoints, each with the settings that its documentation recommends for speed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from subject import Measure, own_cpu


@dataclass
class Peer:
    """A peer: what it does in each case."""

    name: str
    cases: dict[str, Callable[[], Measure]]
    clean: Callable[[], None] = field(default=lambda: None)


def timed(work: Callable[[], Any]) -> Measure:
    """Wall-clock and CPU of this process."""
    start, cpu = time.perf_counter(), own_cpu()
    work()
    return Measure(time.perf_counter() - start, own_cpu() - cpu)


class PEERS:
    """All of them."""

    PACKAGES = ("torch", "boto3", "s3torchconnector")

    @classmethod
    def versions(cls) -> dict[str, str]:
        found = {}
        for package in cls.PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(package)
        return found

    @classmethod
    def open(cls, state: dict[str, Any], disk: Path, store: str, bucket: str) -> list[Peer]:
        return [
            torch_save(state, disk),
            dcp_files(state, disk),
            dcp_async(state, disk),
            boto3_upload(state, store, bucket),
            s3torchconnector(state, store, bucket),
        ]


def torch_save(state: dict[str, Any], disk: Path) -> Peer:
    """torch.save to a file, synced."""
    path = disk / "torch.pt"

    def save() -> None:
        with path.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())

    return Peer(
        "torch.save and fsync",
        {"checkpoint/local-durable": lambda: timed(save)},
        clean=lambda: path.unlink(missing_ok=True),
    )


def dcp_files(state: dict[str, Any], disk: Path) -> Peer:
    """torch.distributed.checkpoint to files, which it syncs."""
    import torch.distributed.checkpoint as dcp

    folder = disk / "dcp"

    def save() -> None:
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=2)
        dcp.save(state, storage_writer=writer, no_dist=True)

    return Peer(
        "DCP FileSystemWriter",
        {"checkpoint/local-durable": lambda: timed(save)},
        clean=lambda: shutil.rmtree(folder, ignore_errors=True),
    )


def dcp_async(state: dict[str, Any], disk: Path) -> Peer:
    """The stall of torch.distributed.checkpoint.async_save: it copies into memory that it keeps."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    folder = disk / "dcp-async"
    # Shared memory that it keeps from save to save. Page-locked memory and side streams need a GPU.
    staging = StagingOptions(
        use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
    )
    stager = DefaultStager(staging)

    def stall() -> Measure:
        if not dist.is_initialized():
            file = disk / "group"
            dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=2)
        start, cpu = time.perf_counter(), own_cpu()
        future = dcp.async_save(state, storage_writer=writer, async_stager=stager)
        measured = Measure(time.perf_counter() - start, own_cpu() - cpu)
        future.result()
        return measured

    return Peer(
        "DCP async_save, staged in shared memory",
        {"checkpoint/stall": stall},
        clean=lambda: shutil.rmtree(folder, ignore_errors=True),
    )


def boto3_upload(state: dict[str, Any], store: str, bucket: str) -> Peer:
    """torch.save into memory, then boto3's managed multipart upload."""

    def save() -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig

        content = io.BytesIO()
        torch.save(state, content)
        content.seek(0)
        client = boto3.client("s3", endpoint_url=store)
        config = TransferConfig(multipart_chunksize=32 << 20, max_concurrency=8)
        client.upload_fileobj(content, bucket, "boto3/torch.pt", Config=config)

    return Peer("torch.save and boto3", {"checkpoint/committed": lambda: timed(save)})


def s3torchconnector(state: dict[str, Any], store: str, bucket: str) -> Peer:
    """torch.save through the writer of Amazon's connector."""

    def save() -> None:
        from s3torchconnector import S3Checkpoint, S3ClientConfig

        config = S3ClientConfig(part_size=32 << 20, force_path_style=True, throughput_target_gbps=100.0)
        checkpoint = S3Checkpoint(region="us-east-1", endpoint=store, s3client_config=config)
        with checkpoint.writer(f"s3://{bucket}/connector/torch.pt") as out:
            torch.save(state, out)

    return Peer("s3torchconnector", {"checkpoint/committed": lambda: timed(save)})
