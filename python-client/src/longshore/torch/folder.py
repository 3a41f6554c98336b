"""Folders that other tools wrote (the Trainer of transformers, `Accelerator.save_state`), as checkpoints, and back.

The tensors of `model*.safetensors` become tensors of the checkpoint, which other tools find under its URL and
`longshore.load` shares; every other file is kept byte for byte.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from longshore import _tree
from longshore._errors import FailedPrecondition, InvalidArgument, Unsupported
from longshore._handle import SaveHandle
from longshore._load import load
from longshore._save import save

_MODEL = "model*.safetensors"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def save_folder(path: str | os.PathLike[str], uri: str | os.PathLike[str], *, step: int, **options: Any) -> SaveHandle:
    """Saves a folder as the checkpoint `uri`/step-`step`. When this returns, the folder may be deleted.

    To be called by one process. `options` are those of `longshore.save`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is no folder")
    weights = sorted(folder.glob(_MODEL))
    tensors: dict[str, Any] = {}
    for each in weights:
        for name, tensor in _safetensors().load_file(each).items():
            if name in tensors:
                raise InvalidArgument(f"{folder} has the tensor {name!r} in two files")
            tensors[name] = tensor
    left_out = {each.name for each in weights} | ({_INDEX} if weights else set())
    files = {
        each.relative_to(folder).as_posix(): each
        for each in sorted(folder.rglob("*"))
        if each.is_file() and each.relative_to(folder).as_posix() not in left_out
    }
    return save({"model": tensors}, uri, step=step, files=files, rank=0, world_size=1, **options)


def restore_folder(
    uri: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    step: int | Literal["latest"] = "latest",
    address: str | None = None,
    timeout: float | None = None,
) -> Path:
    """Writes the folder of a checkpoint that `save_folder` saved, whole or not at all; it must not exist before.

    The tensors are in one `model.safetensors`, however many files there were.
    """
    target = Path(path)
    if target.exists():
        raise FailedPrecondition(f"{target} exists already")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with load(uri, "host", framework="torch", progress=False, step=step, address=address, timeout=timeout) as model:
            tensors = {name: tensor.clone() for name, tensor in model.items()}
            for name, content in model.files.items():
                if _tree.is_state_file(name) or (name == _INDEX and tensors):
                    continue
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(content)
        if tensors:
            _safetensors().save_file(tensors, scratch / _SINGLE, metadata={"format": "pt"})
        os.chmod(scratch, 0o777 & ~_umask())
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise Unsupported("folders with models need the package safetensors: pip install safetensors") from error
    return safetensors.torch
