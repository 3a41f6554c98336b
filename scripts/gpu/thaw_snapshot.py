"""thaw, which restores snapshots of its own format into a module on the GPU: `thaw_common.snapshot` of thaw-vllm 0.6.0.

The files are frozen once with `freeze_model_pipelined`, beside their folder and untimed; what is timed is what a
process does that starts from the snapshot: empty parameters on the device, and `restore_model_pipelined`, past the page
cache unless that holds the snapshot. `restore_model_from_pinned_mmap` is no load from files: the process has registered
the whole snapshot with the driver before. Written from the package's source and README, not run on a card yet.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

#: Names, shapes and dtypes of the tensors, and the snapshot, by the files that were frozen.
_FROZEN: dict[tuple[str, ...], tuple[dict[str, Any], str]] = {}


def module_of(tensors: dict[str, Any]) -> Any:
    """A module with these as parameters, in this order; a parameter's name may have no dot."""
    import torch

    module = torch.nn.Module()
    for at, tensor in enumerate(tensors.values()):
        module.register_parameter(f"p{at}", torch.nn.Parameter(tensor, requires_grad=False))
    return module


def prepare(files: list[str], device: str, _resident: bool) -> None:
    """Freezes the files, the first time that they come. The snapshot goes when the process ends."""
    import torch
    from safetensors.torch import load_file
    from thaw_common.snapshot import freeze_model_pipelined

    if tuple(files) in _FROZEN:
        return
    size = sum(Path(file).stat().st_size for file in files)
    beside = Path(files[0]).parent.parent
    if shutil.disk_usage(beside).free < size * 1.1:
        raise RuntimeError(f"no room for a snapshot of {size} bytes in {beside.name}")
    folder = tempfile.mkdtemp(prefix="thaw-", dir=beside)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    snapshot = os.path.join(folder, "model.thaw")
    frozen = freeze_model_pipelined(module_of({name: each.to(device) for name, each in tensors.items()}), snapshot)
    if frozen["num_regions"] != len(tensors):
        # Of a module that is not on a GPU it freezes nothing.
        raise RuntimeError(f"its snapshot has {frozen['num_regions']} of {len(tensors)} tensors")
    torch.cuda.empty_cache()
    with open(snapshot, "rb") as file:
        # On the disk alone, as the files are; in tmpfs it does nothing.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    _FROZEN[tuple(files)] = ({name: each.to("meta") for name, each in tensors.items()}, snapshot)


def load(files: list[str], device: str, resident: bool) -> tuple[dict[str, Any], list[Any]]:
    """From the snapshot to parameters on the device."""
    import torch
    from thaw_common.snapshot import restore_model_pipelined

    shapes, snapshot = _FROZEN[tuple(files)]
    tensors = {name: torch.empty_like(each, device=device) for name, each in shapes.items()}
    module = module_of(tensors)
    restored = restore_model_pipelined(module, snapshot, direct_io=not resident)
    if restored["num_regions"] != len(tensors):
        raise RuntimeError(f"it restored {restored['num_regions']} of {len(tensors)} tensors")
    return dict(zip(tensors, (each.data for each in module.parameters()), strict=True)), [module]
