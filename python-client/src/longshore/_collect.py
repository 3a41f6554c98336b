"""What one rank brings to a checkpoint: its tensors, with their aliases, and its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from longshore import _inputs, _tree
from longshore._boxes import Box, whole
from longshore._errors import InvalidArgument, NotFound
from longshore._inputs import Input
from longshore._proto import checkpoint_pb2 as pb
from longshore._sources import BytesSource, FileSource, Source
from longshore._stage import Maker

_Place = tuple[str, str, Box]


class Collected:
    """A rank's items, and the sources of their bytes."""

    def __init__(self, rank: int) -> None:
        self.items = pb.RankItems(rank=rank)
        self._inputs: dict[_Place, Input] = {}
        self._files: dict[str, bytes | FileSource] = {}
        #: Of the document of the tree, which ranks that have the same one write once.
        self.state_digest = b""
        self.state_name = _tree.state_name(rank)

    @property
    def devices(self) -> list[int]:
        """The GPUs that tensors are on."""
        return sorted({each.device for each in self._inputs.values() if each.device is not None})

    def add_tensor(self, group: str, name: str, found: Input) -> None:
        """A tensor, or the part of one that this rank has."""
        message = found.to_proto(group, name)
        self.items.tensors.append(message)
        self._inputs[_place(message)] = found

    def add_file(self, name: str, content: bytes | FileSource) -> None:
        """A file, byte for byte."""
        if name in self._files:
            raise InvalidArgument(f"the file {name!r} is given twice")
        self._files[name] = content
        size = len(content) if isinstance(content, bytes) else content.nbytes
        self.items.files.add(name=name, size_bytes=size)

    def maker(self, tensor: pb.SaveTensor, *, is_mine: bool) -> Maker | None:
        """What makes the bytes of a planned tensor; None when this rank has no part in it."""
        found = self._inputs.get(_place(tensor))
        if found is None or not (is_mine or found.collective):
            return None
        if is_mine:
            return Maker(found.source, found.collective)

        def take_part() -> None:
            found.source()

        return Maker(take_part, collective=True)

    def content(self, name: str) -> Source:
        """A file, by its name in the checkpoint."""
        found = self._files[name]
        return BytesSource(found) if isinstance(found, bytes) else found

    def inline(self, name: str) -> bytes | None:
        """The content of a small file."""
        found = self._files.get(name)
        return Path(found.path).read_bytes() if isinstance(found, FileSource) else found


def collect(
    state_dict: Mapping[Any, Any], files: Mapping[str, Any], *, rank: int, gather: bool, allow_pickle: bool
) -> Collected:
    """Takes a state dict apart, and looks at what is in it."""
    found = Collected(rank)
    flat = _tree.flatten(state_dict, _inputs.is_tensor, allow_pickle=allow_pickle)
    seen: dict[Hashable, _tree.Leaf] = {}
    for leaf in flat.leaves:
        described = _inputs.describe(leaf.value, _tree.show(leaf.path), gather=gather)
        if described is None:
            continue
        first = seen.setdefault(described.identity, leaf) if described.identity is not None else leaf
        if first is not leaf:
            leaf.refer_to(first)
            if first.group == leaf.group:
                found.items.aliases.add(group=leaf.group, name=leaf.name, target=first.name)
            continue
        if not described.is_empty:
            found.add_tensor(leaf.group, leaf.name, described)
    document = flat.document()
    found.state_digest = hashlib.sha256(document).digest()
    found.add_file(found.state_name, document)
    for name, content in files.items():
        _add(found, name, content)
    return found


def _add(found: Collected, name: str, content: Any) -> None:
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
        raise InvalidArgument(f"the name of a file is a path relative to the checkpoint, not {name!r}")
    if isinstance(content, (bytes, bytearray, memoryview)):
        found.add_file(name, bytes(content))
        return
    path = Path(os.fspath(content))
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file():
                _add(found, f"{name.rstrip('/')}/{each.relative_to(path).as_posix()}", each)
    elif path.is_file():
        found.add_file(name, FileSource(str(path.resolve()), path.stat().st_size))
    else:
        raise NotFound(f"the file {name!r} of the checkpoint: {path} is no file and no folder")


def _place(tensor: pb.SaveTensor) -> _Place:
    if not tensor.piece_shape:
        return tensor.group, tensor.name, whole(tensor.shape)
    return tensor.group, tensor.name, Box(tuple(tensor.start), tuple(tensor.piece_shape))
