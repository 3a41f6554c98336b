"""The peers whose fast path needs a GPU, and why they have no row where there is none.

The report prints `REASONS` as "cannot". Tried on a machine without a GPU, with the versions named here; on one that has
a GPU the report of scripts/gpu measures those that are there.
"""

from __future__ import annotations

from typing import NamedTuple


class GpuOnly(NamedTuple):
    """One of them."""

    #: As the tables call it.
    subject: str
    #: On PyPI, with the version that was tried.
    package: str
    #: Why there is no row without a GPU.
    reason: str
    #: What a row with a GPU needs.
    needs: str


PEERS = (
    GpuOnly(
        "InstantTensor",
        "instanttensor==0.2.2",
        "for device='cpu' it raises `ValueError: InstantTensor only supports CUDA devices for now`",
        "a CUDA or ROCm device; `scripts/bench-peers.sh instanttensor`; all files in one `safe_open(files, device=0)`, "
        "`BackendPolicy.BUFFERED` for files in the page cache",
    ),
    GpuOnly(
        "safetensors 0.9 pre-release, prefetch",
        "safetensors==0.9.0rc1",
        "`safe_open.prefetch`, its page-locked pool and reader threads, loads to CUDA devices only; its CPU path is "
        "that of 0.8 and has rows of its own",
        "a CUDA device; `safe_open(file, 'pt', device=0, backend='pread').prefetch(threads=...)` for all files at once",
    ),
    GpuOnly(
        "thaw",
        "thaw-vllm==0.6.0 with thaw-native==0.3.2 (`thaw` on PyPI is another project)",
        "it saves and restores only those parameters of a module that are on a CUDA device; of a module on the CPU its "
        "snapshot is empty",
        "a CUDA device; `scripts/bench-peers.sh thaw`; `freeze_model_pipelined` once, then `restore_model_pipelined` "
        "into a module of the same shape: `scripts/gpu/thaw_snapshot.py`, which no card has run yet",
    ),
)

REASONS = {peer.subject: peer.reason for peer in PEERS}
