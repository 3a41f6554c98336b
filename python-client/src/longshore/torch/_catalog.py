"""What a checkpoint has, as torch.distributed.checkpoint wants to know it before it reads anything.

There are three kinds: what `LongshoreWriter` wrote, with `.metadata`; what `longshore.save` wrote, whose tree is
flattened as torch flattens state dicts; and folders with safetensors files of others, under the names that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from longshore import _tree
from longshore._boxes import Box
from longshore._checkpoints import Checkpoint
from longshore._errors import Corrupt, Unsupported
from longshore._model import Model
from longshore.torch._layout import FORMAT, METADATA_FILE, VERSION, over, torch_dtype
from longshore.torch._metadata import parse

#: Loads files of a checkpoint by their names.
Load = Callable[[Iterable[str]], "Model[Any]"]


@dataclass
class Catalog:
    """What there is, under the names that torch uses."""

    metadata: Metadata
    #: The names of tensors in the checkpoint.
    names: dict[str, str] = field(default_factory=dict)
    #: Pickled objects: file, offset and length.
    objects: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    #: Objects that were in the tree.
    values: dict[str, Any] = field(default_factory=dict)


def of_checkpoint(checkpoint: Checkpoint, load: Load, *, allow_pickle: bool) -> Catalog:
    """That of a committed checkpoint."""
    files = [file.name for file in checkpoint.files]
    small = [name for name in files if name == METADATA_FILE or _tree.is_state_file(name)]
    if not small:
        return _flat(checkpoint)
    with load(small) as model:
        if METADATA_FILE in small:
            found = parse(model.files[METADATA_FILE], allow_pickle=allow_pickle)
            return _of_writer(found, checkpoint.url)
        document = model._document
        if document is None:
            return _flat(checkpoint)
        return _of_tree(checkpoint, document, allow_pickle=allow_pickle)


def of_model(model: Model[Any]) -> Catalog:
    """That of a folder of other tools."""
    entries: dict[str, Any] = {}
    for name in model:
        info = model.info(name)
        dtype, pack = torch_dtype(info.dtype_name)
        entries[name] = _entry(dtype, over(info.shape, pack), [Box((0,) * len(info.shape), over(info.shape, pack))])
    return Catalog(Metadata(entries), {name: name for name in entries})


def _of_writer(metadata: Metadata, url: str) -> Catalog:
    storage = metadata.storage_data
    if not isinstance(storage, Mapping) or storage.get("format") != FORMAT:
        raise Unsupported(f"{url}: its .metadata is of another writer of torch.distributed.checkpoint")
    if storage.get("version") != VERSION:
        raise Unsupported(f"{url}: its .metadata is of version {storage.get('version')!r}: a newer longshore wrote it")
    try:
        objects = {str(fqn): (str(file), int(at), int(size)) for fqn, (file, at, size) in storage["objects"].items()}
        return Catalog(metadata, dict(storage["tensors"]), objects)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{url}: its .metadata cannot be understood: {error!r}") from error


def _flat(checkpoint: Checkpoint) -> Catalog:
    names = {**{name: name for name in checkpoint.tensors}, **checkpoint.aliases}
    return Catalog(Metadata({fqn: _of_tensor(checkpoint, name) for fqn, name in names.items()}), names)


def _of_tree(checkpoint: Checkpoint, document: _tree.Document, *, allow_pickle: bool) -> Catalog:
    names: dict[int, str] = {}
    kept: list[Any] = []

    def stand_in(name: str) -> Any:
        # Torch tells tensors from other values by their class.
        made = torch.empty(0, device="meta")
        kept.append(made)
        names[id(made)] = name
        return made

    where = f"{checkpoint.url}/{_tree.STATE_FILE}"
    root = _tree.unflatten(document.tree, stand_in, allow_pickle=allow_pickle, where=where)
    aliases = {**document.aliases, **checkpoint.aliases}
    flat, paths = flatten_state_dict(root)
    found = Catalog(Metadata({}, planner_data=paths))
    for fqn, value in flat.items():
        name = names.get(id(value))
        if name is None:
            found.values[fqn] = value
            found.metadata.state_dict_metadata[fqn] = BytesStorageMetadata()
        else:
            name = aliases.get(name, name)
            found.names[fqn] = name
            found.metadata.state_dict_metadata[fqn] = _of_tensor(checkpoint, name)
    return found


def _of_tensor(checkpoint: Checkpoint, name: str) -> TensorStorageMetadata:
    tensor = checkpoint.tensors.get(name)
    if tensor is None:
        raise Corrupt(f"{checkpoint.url}: {_tree.STATE_FILE} names the tensor {name!r}, which it does not have")
    dtype, pack = torch_dtype(tensor.dtype_name)
    boxes = [Box(over(piece.start, pack), over(piece.shape, pack)) for piece in tensor.pieces]
    return _entry(dtype, over(tensor.shape, pack), boxes)


def _entry(dtype: torch.dtype, shape: tuple[int, ...], boxes: Iterable[Box]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(box.start), torch.Size(box.shape)) for box in boxes]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks)
