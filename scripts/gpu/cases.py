"""What the GPU report holds: every case with its subjects, what is wanted of it, and what it stands beside.

The page lists all of them whether or not they were measured, so that what is missing shows.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGSHORE = "longshore"
#: What else loads safetensors onto a GPU, by the name of its folder in the bundle's wheels.
PEERS = {
    "safetensors-0.8": "safetensors 0.8",
    "safetensors-0.9rc": "safetensors 0.9 rc",
    "fastsafetensors": "fastsafetensors",
    "runai": "run:ai model streamer",
    "instanttensor": "InstantTensor",
    "thaw": "thaw, its own snapshot",
}
#: Figures of others that this report does not measure, as text.
PUBLISHED = {
    "thaw": "as published: 16 GB in 0.29 s on an H100, from page-locked memory that is filled already. What its "
    "package (`thaw-vllm`) does with files is among the other rows.",
    "ServerlessLLM": "as published: a 32B model in 3.2 s, in 1.3 s when its pool holds it, on an H100. Reads a format "
    "of its own.",
}
RANKS = (2, 4, 8)
READOPTED = "time until re-adopted"
READOPTED_LARGE = "time until re-adopted, much page-locked"


@dataclass(frozen=True)
class Case:
    """One kind of row."""

    name: str
    #: One row each.
    subjects: tuple[str, ...]
    what: str
    goal: str = ""


CHECKS = (
    Case("check/every-dtype", (LONGSHORE,), "a model with every dtype and odd shapes: each tensor against the file"),
    Case("check/segments", (LONGSHORE,), "models whose regions have one, two and more segments: each tensor, the same"),
    Case("check/large-model", (LONGSHORE,), "the model that is measured: each byte of each tensor, on the CPU"),
    Case("check/side-files", (LONGSHORE,), "config.json of a model on a GPU, byte for byte"),
    Case("check/tensor-parallel", (LONGSHORE,), "two ranks with rules for rows, columns and fused parts: each slice"),
    Case(
        "check/writable-copy", (LONGSHORE,), "a private copy is right, can be written, and nobody else sees the write"
    ),
    Case("check/read-only", (LONGSHORE,), "a write through the shared mapping: what the writer gets, what others see"),
    Case(
        "check/memory-outlives-creator",
        ("driver",),
        "an exported descriptor alone, held by a process without CUDA, keeps GPU memory and its bytes after the "
        "process that made it was killed",
    ),
    Case(
        "check/visible-devices", (LONGSHORE,), "a client that sees the GPUs in another order attaches to the right one"
    ),
)

MEASURES = (
    Case(
        "limit/pinned-copy",
        ("cuMemcpyHtoDAsync",),
        "a plain loop of 256 MiB copies from page-locked memory to one GPU on two streams: 100 %",
    ),
    Case(
        "gpu/pinned-to-device",
        (LONGSHORE, *PUBLISHED),
        "a model that was evicted from the GPU comes back from the page-locked tier, to usable torch tensors",
        ">= 97 % of limit/pinned-copy",
    ),
    Case(
        "gpu/resident-to-device",
        (LONGSHORE, *PEERS.values()),
        "files in tmpfs, to usable torch tensors on the GPU",
        ">= 52 GB/s on an H200 with 16 cores; ahead of every peer",
    ),
    Case("gpu/attach", ("same process", "new process"), "attach to a loaded model of 1,000 tensors", "p99 <= 50 ms"),
    Case("gpu/attach-bytes", (LONGSHORE,), "bytes that the loader moved during all those attaches", "0"),
    Case(
        "gpu/kill-9",
        (READOPTED, READOPTED_LARGE, "wrong or failed reads of clients", "bytes moved"),
        "the daemon is killed under an attached client and started again, 100 times; once with much page-locked memory",
        "<= 1 s, 0, 0",
    ),
    Case("limit/device-copy", ("cuMemcpyDtoDAsync",), "a plain copy on the device, bytes counted once"),
    Case("gpu/writable-copy", (LONGSHORE,), "attach with a private copy, made device to device"),
    Case(
        "gpu/tensor-parallel-bytes",
        tuple(f"{count} ranks" for count in RANKS),
        "bytes that the origin served for all ranks of a node, over the checkpoint's",
        "1.00",
    ),
    Case(
        "gpu/checksum",
        ("CRC-64/NVME, one core", "CRC-64/NVME, all cores", "load without checksums", "load with checksums"),
        "what verifying costs beside a load of the same bytes",
        "<= 3 % of load time at 55 GB/s, or explained",
    ),
    Case("limit/disk", ("fio", "gpu-bench read"), "sequential O_DIRECT reads of the file, 16 MiB blocks, 16 in flight"),
    Case(
        "gpu/local-cold",
        (LONGSHORE, *PEERS.values()),
        "a file on a local disk that no page cache holds, to usable torch tensors",
        ">= 95 % of fio",
    ),
    Case(
        "gpu/page-cache-to-device",
        (LONGSHORE, *PEERS.values()),
        "the same file when the page cache holds it",
        "ahead of every peer",
    ),
)

CASES = (*CHECKS, *MEASURES)
BY_NAME = {case.name: case for case in CASES}
