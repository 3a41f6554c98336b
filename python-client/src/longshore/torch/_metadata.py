"""Reading `.metadata`, which is pickled: only with the classes that torch.distributed.checkpoint needs."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from longshore._errors import Corrupt, FailedPrecondition

_NAMES = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch": frozenset({"Size"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "builtins": frozenset({"set", "frozenset", "complex"}),
    "collections": frozenset({"OrderedDict"}),
    "pathlib": frozenset({"PosixPath", "PurePosixPath"}),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if name in _NAMES.get(module, ()) or isinstance(found, torch.dtype):
            return super().find_class(module, name)
        raise FailedPrecondition(
            f".metadata has a {module}.{name}, which a planner put there, and unpickling runs code of whoever wrote "
            "it: pass allow_pickle=True when you trust them"
        )


def parse(content: bytes | memoryview, *, allow_pickle: bool) -> Metadata:
    """The metadata of a checkpoint."""
    stream = io.BytesIO(content)
    try:
        found = pickle.load(stream) if allow_pickle else _Unpickler(stream).load()  # noqa: S301 - asked for
    except FailedPrecondition:
        raise
    except Exception as error:
        raise Corrupt(f".metadata cannot be read: {error!r}") from error
    if not isinstance(found, Metadata):
        raise Corrupt(f".metadata holds a {type(found).__name__}")
    return found
