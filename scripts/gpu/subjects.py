"""How each loader is asked for a model: by its own documentation, with its best settings for one process and one GPU.

Each gives tensors that stay valid, and what must be kept for that. Imports are inside: each subject runs in a process
of its own, where only its package is installed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import thaw_snapshot

Loaded = tuple[dict[str, Any], list[Any]]


def safetensors_plain(files: list[str], device: str, _resident: bool) -> Loaded:
    """safetensors 0.8: `load_file` to the device, file by file."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= load_file(file, device=device)
    return tensors, []


def safetensors_prefetch(files: list[str], device: str, _resident: bool) -> Loaded:
    """safetensors 0.9: background readers into the pinned pool of the process, all files at once; one thread a core."""
    from safetensors import safe_open

    if not device.startswith("cuda"):
        return safetensors_plain(files, device, _resident)
    threads = max(2, len(os.sched_getaffinity(0)) // len(files))
    opened = [safe_open(file, framework="pt", device=device, backend="pread") for file in files]
    handles = [each.__enter__() for each in opened]
    loaders = [handle.prefetch(threads=threads) for handle in handles]
    tensors = {name: tensor for loader in loaders for name, tensor in loader}
    for each in opened:
        each.__exit__(None, None, None)
    return tensors, loaders


def fastsafetensors(files: list[str], device: str, _resident: bool) -> Loaded:
    """Its own bounce buffers, one thread a core; GPUDirect Storage would need its kernel module."""
    from fastsafetensors import SafeTensorsFileLoader

    loader = SafeTensorsFileLoader(None, device, nogds=True, max_threads=len(os.sched_getaffinity(0)))
    loader.add_filenames({0: files})
    buffers = loader.copy_files_to_device()
    tensors = {name: buffers.get_tensor(name) for name in loader.get_keys()}
    return tensors, [loader, buffers]


def runai(files: list[str], device: str, _resident: bool) -> Loaded:
    """run:ai model streamer: one reader a core, tensors copied as they come."""
    os.environ.setdefault("RUNAI_STREAMER_CONCURRENCY", str(len(os.sched_getaffinity(0))))
    from runai_model_streamer import SafetensorsStreamer

    tensors = {}
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files, device=device)
        for name, tensor in streamer.get_tensors():
            # What is yielded lies in a buffer that is used again.
            tensors[name] = tensor.clone().detach() if str(tensor.device) == device else tensor.to(device)
    return tensors, []


def instanttensor(files: list[str], device: str, resident: bool) -> Loaded:
    """InstantTensor: all files in one call; through the page cache where that holds them."""
    from instanttensor import BackendPolicy, safe_open

    done = subprocess.run(["stat", "-f", "-c", "%T", *files], capture_output=True, text=True)
    in_memory = set(done.stdout.split()) == {"tmpfs"}
    chosen = {"backend": BackendPolicy.BUFFERED} if resident and not in_memory else {}
    tensors = {}
    with safe_open(list(files), framework="pt", device=device, **chosen) as opened:
        for name, tensor in opened.tensors():
            tensors[name] = tensor
    return tensors, []


PEERS: dict[str, Callable[[list[str], str, bool], Loaded]] = {
    "safetensors-0.8": safetensors_plain,
    "safetensors-0.9rc": safetensors_prefetch,
    "fastsafetensors": fastsafetensors,
    "runai": runai,
    "instanttensor": instanttensor,
    "thaw": thaw_snapshot.load,
}
#: Untimed, before each load: those that read a format of their own make it here, once.
PREPARE: dict[str, Callable[[list[str], str, bool], None]] = {"thaw": thaw_snapshot.prepare}
#: What is looked for to say whether a peer is there, and its version.
PACKAGES = {
    "safetensors-0.8": "safetensors",
    "safetensors-0.9rc": "safetensors",
    "fastsafetensors": "fastsafetensors",
    "runai": "runai-model-streamer",
    "instanttensor": "instanttensor",
    "thaw": "thaw-vllm",
}
VERSIONS = {"safetensors-0.8": "0.8", "safetensors-0.9rc": "0.9"}
