"""Nested state dicts, taken apart into named tensors and a JSON document, and put together again.

The document, `state.json`, is the tree with a reference in place of each tensor. What JSON has is written as it is; all
else is an object with one key that begins with ``$``: ``{"$tuple": [...]}``, ``{"$bytes": "base64"}``, and so on. A
mapping with keys that are not plain text is a list of pairs, ``{"$dict": [[key, value], ...]}``, so that the integer
keys of optimizer states come back as integers.
"""

from __future__ import annotations

import base64
import json
import math
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from longshore._errors import Corrupt, FailedPrecondition, InvalidArgument, Unsupported

STATE_FILE = "state.json"
FORMAT = "longshore.state"
VERSION = 1
#: The subtree whose tensors are the model's, under their own names.
MODEL_KEY = "model"
#: Group of tensors at the root, beside a subtree `model`.
EXTRA_GROUP = "extra"
_GROUP_CHARACTERS_MAX = 100
_NOT_IN_GROUPS = re.compile(r"[^A-Za-z0-9_.-]")
_STATE_NAME = re.compile(r"state(-[0-9]{5,})?\.json")
_RESERVED_NAME = "__metadata__"

Path = tuple[object, ...]


@dataclass
class Leaf:
    """A tensor of a tree, and the name it gets: unique in its group."""

    group: str
    name: str
    path: Path
    value: Any
    #: Its place in the document.
    node: dict[str, Any]

    @property
    def qualified(self) -> str:
        """Its name in the checkpoint."""
        return qualified(self.group, self.name)

    def refer_to(self, other: Leaf) -> None:
        """Makes the document name another tensor, which has the same bytes."""
        self.node["$tensor"] = other.qualified

    @property
    def refers_to(self) -> str:
        """The name of the tensor that is stored."""
        return str(self.node["$tensor"])


@dataclass
class Flat:
    """A tree that was taken apart."""

    leaves: list[Leaf] = field(default_factory=list)
    tree: Any = None

    def document(self) -> bytes:
        """`state.json`."""
        aliases = {leaf.qualified: leaf.refers_to for leaf in self.leaves if leaf.qualified != leaf.refers_to}
        state = {"format": FORMAT, "version": VERSION, "aliases": aliases, "tree": self.tree}
        return json.dumps(state, separators=(",", ":"), allow_nan=False).encode()


def qualified(group: str, name: str) -> str:
    """A tensor's name in a checkpoint."""
    return f"{group}/{name}" if group else name


def state_name(rank: int) -> str:
    """The file of a rank's document; that of rank 0 is the one that tools look at."""
    return STATE_FILE if rank == 0 else f"state-{rank:05}.json"


def is_state_file(name: str) -> bool:
    """Whether a file has the name of a document."""
    return _STATE_NAME.fullmatch(name) is not None


def show(path: Path) -> str:
    """``state_dict['optim']['state'][0]``."""
    return "state_dict" + "".join(f"[{key!r}]" for key in path)


def flatten(state_dict: object, is_tensor: Callable[[object], bool], *, allow_pickle: bool = False) -> Flat:
    """Takes a tree apart.

    The subtree `model`, or else the tensors at the root, are the group "", under their own names; every other subtree
    is the group of its key, with names such as ``state.0.exp_avg``. Names are the same wherever the tree is.

    Raises `InvalidArgument` naming the path of what cannot be stored.
    """
    if not isinstance(state_dict, Mapping):
        raise InvalidArgument(f"a state dict is a mapping, not {type(state_dict).__name__}")
    walk = _Flatten(state_dict, is_tensor, allow_pickle)
    try:
        walk.flat.tree = walk.node(state_dict, ())
    except RecursionError as error:
        raise InvalidArgument("the state dict is nested too deeply, or contains itself") from error
    return walk.flat


class _Flatten:
    def __init__(self, root: Mapping[Any, Any], is_tensor: Callable[[object], bool], allow_pickle: bool) -> None:
        self.flat = Flat()
        self._is_tensor = is_tensor
        self._allow_pickle = allow_pickle
        self._has_model = isinstance(root.get(MODEL_KEY), Mapping)
        self._taken: set[str] = set()

    def node(self, value: Any, path: Path) -> Any:
        if self._is_tensor(value):
            return self._tensor(value, path)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        kind = type(value)
        if kind is list:
            return [self.node(each, (*path, index)) for index, each in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.node(each, (*path, index)) for index, each in enumerate(value)]}
        encoded = encode_leaf(value)
        if encoded is not _UNKNOWN:
            return encoded
        if self._allow_pickle:
            try:
                return {"$pickle": _base64(pickle.dumps(value))}
            except Exception as error:
                raise InvalidArgument(f"{show(path)}: a {kind.__qualname__} cannot be pickled: {error}") from error
        raise InvalidArgument(
            f"{show(path)} is a {kind.__module__}.{kind.__qualname__}, which checkpoints do not store: leave it out, "
            "store what it consists of, or pass allow_pickle=True here and where it is loaded"
        )

    def _mapping(self, value: Mapping[Any, Any], path: Path) -> Any:
        ordered = isinstance(value, OrderedDict)
        if not ordered and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.node(each, (*path, key)) for key, each in value.items()}
        pairs = []
        for key, each in value.items():
            encoded = encode_leaf(key)
            if encoded is _UNKNOWN:
                raise InvalidArgument(
                    f"{show(path)} has the key {key!r}, a {type(key).__qualname__}: not a plain value"
                )
            pairs.append([encoded, self.node(each, (*path, key))])
        return {"$ordered" if ordered else "$dict": pairs}

    def _tensor(self, value: Any, path: Path) -> dict[str, Any]:
        group, keys = self._group(path)
        # Files cannot hold control characters in names; the document has the path.
        name = "".join(each if each.isprintable() else "_" for each in ".".join(map(str, keys))) or "_"
        unique, number = name, 2
        while qualified(group, unique) in self._taken or unique == _RESERVED_NAME:
            unique, number = f"{name}~{number}", number + 1
        self._taken.add(qualified(group, unique))
        leaf = Leaf(group, unique, path, value, {"$tensor": qualified(group, unique)})
        self.flat.leaves.append(leaf)
        return leaf.node

    def _group(self, path: Path) -> tuple[str, Path]:
        if self._has_model and path[0] == MODEL_KEY:
            return "", path[1:]
        if len(path) == 1:
            return EXTRA_GROUP if self._has_model else "", path
        return _NOT_IN_GROUPS.sub("_", str(path[0])).lstrip(".")[:_GROUP_CHARACTERS_MAX] or "_", path[1:]


_UNKNOWN = object()


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def encode_leaf(value: Any) -> Any:
    """A value that is no container of tensors as JSON; `_UNKNOWN` when there is no way to write it."""
    kind = type(value)
    if value is None or kind in {bool, int, str}:
        return value
    encode = _ENCODERS.get(kind)
    return encode(value) if encode is not None else _encode_of_modules(value, kind)


def _encode_items(value: Any) -> Any:
    kind = type(value)
    items = [encode_leaf(each) for each in value]
    if any(each is _UNKNOWN for each in items):
        return _UNKNOWN
    # Sets are sorted, so that ranks with equal ones write equal documents.
    return {f"${kind.__name__}": items if kind is tuple else sorted(items, key=json.dumps)}


_ENCODERS: dict[type, Callable[[Any], Any]] = {
    float: lambda value: value if math.isfinite(value) else {"$float": repr(value)},
    complex: lambda value: {"$complex": [encode_leaf(value.real), encode_leaf(value.imag)]},
    bytes: lambda value: {"$bytes": _base64(value)},
    bytearray: lambda value: {"$bytearray": _base64(value)},
    tuple: _encode_items,
    set: _encode_items,
    frozenset: _encode_items,
}


def _encode_of_modules(value: Any, kind: type) -> Any:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufcmMSU":
        return {"$numpy": [value.dtype.str, _base64(value.tobytes())]}
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        if kind is torch.Size:
            return {"$torch.Size": list(value)}
        if kind in {torch.dtype, torch.device}:
            return {f"$torch.{kind.__name__}": str(value).removeprefix("torch.")}
    return _UNKNOWN


@dataclass(frozen=True)
class Document:
    """A `state.json`, or those of several ranks."""

    tree: Any
    #: Names of tensors that are stored under another name.
    aliases: Mapping[str, str]


def parse(content: bytes | memoryview, where: str) -> Document | None:
    """Reads a `state.json`; None when it is a file of somebody else's."""
    try:
        state = json.loads(bytes(content))
    except ValueError:
        return None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        return None
    if state.get("version") != VERSION:
        raise Unsupported(f"{where} is of version {state.get('version')!r}: a newer longshore wrote it")
    aliases = state.get("aliases")
    return Document(state.get("tree"), aliases if isinstance(aliases, dict) else {})


def unflatten(node: Any, tensor: Callable[[str], Any], *, allow_pickle: bool = False, where: str = STATE_FILE) -> Any:
    """Puts a tree together; `tensor` gives a tensor by its name in the checkpoint."""
    return _Unflatten(tensor, allow_pickle, where).value(node, ())


def references(node: Any) -> dict[Path, str]:
    """The tensors of a tree: their names in the checkpoint by their paths."""
    return dict(_references(node, ()))


def _references(node: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(node, list):
        for index, each in enumerate(node):
            yield from _references(each, (*path, index))
    if not isinstance(node, dict):
        return
    tag = next(iter(node)) if len(node) == 1 else ""
    if tag == "$tensor":
        yield path, str(node[tag])
    elif tag == "$tuple":
        yield from _references(node[tag], path)
    elif tag in {"$dict", "$ordered"}:
        for key, each in node[tag]:
            yield from _references(each, (*path, unflatten(key, str)))
    elif not tag.startswith("$"):
        for key, each in node.items():
            yield from _references(each, (*path, key))


class _Unflatten:
    def __init__(self, tensor: Callable[[str], Any], allow_pickle: bool, where: str) -> None:
        self._tensor = tensor
        self._allow_pickle = allow_pickle
        self._where = where

    def value(self, node: Any, path: Path) -> Any:
        if isinstance(node, list):
            return [self.value(each, (*path, index)) for index, each in enumerate(node)]
        if not isinstance(node, dict):
            return node
        tag = next(iter(node)) if len(node) == 1 else ""
        if not tag.startswith("$"):
            return {key: self.value(each, (*path, key)) for key, each in node.items()}
        try:
            return self._tagged(tag, node[tag], path)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise Corrupt(f"{self._where}: {show(path)}: a {tag} that cannot be read: {error}") from error

    def _tagged(self, tag: str, content: Any, path: Path) -> Any:
        if tag == "$tensor":
            return self._tensor(str(content))
        if tag in {"$dict", "$ordered"}:
            pairs = [(self.value(key, path), each) for key, each in content]
            made = ((key, self.value(each, (*path, key))) for key, each in pairs)
            return OrderedDict(made) if tag == "$ordered" else dict(made)
        if tag == "$tuple":
            return tuple(self.value(each, (*path, index)) for index, each in enumerate(content))
        if tag == "$pickle":
            if not self._allow_pickle:
                raise FailedPrecondition(
                    f"{self._where}: {show(path)} is pickled, and unpickling runs code of whoever wrote it: pass "
                    "allow_pickle=True when you trust them"
                )
            return pickle.loads(base64.b64decode(content))  # noqa: S301 - asked for
        return self._leaf(tag, content, path)

    def _leaf(self, tag: str, content: Any, path: Path) -> Any:
        if tag in {"$set", "$frozenset"}:
            items = [self.value(each, path) for each in content]
            return set(items) if tag == "$set" else frozenset(items)
        if tag == "$complex":
            return complex(*(self.value(part, path) for part in content))
        decode = _DECODERS.get(tag)
        if decode is None:
            raise Unsupported(f"{self._where}: {show(path)} is a {tag}, which a newer longshore wrote")
        return decode(content, self._where)


def _numpy_scalar(content: Any, where: str) -> Any:
    numpy = _module("numpy", where)
    kind, data = numpy.dtype(content[0]), base64.b64decode(content[1])
    return numpy.frombuffer(data, dtype=kind)[0] if kind.itemsize else kind.type()


_DECODERS: dict[str, Callable[[Any, str], Any]] = {
    "$float": lambda content, _: float(content),
    "$bytes": lambda content, _: base64.b64decode(content),
    "$bytearray": lambda content, _: bytearray(base64.b64decode(content)),
    "$numpy": _numpy_scalar,
    "$torch.Size": lambda content, where: _module("torch", where).Size(content),
    "$torch.dtype": lambda content, where: getattr(_module("torch", where), content),
    "$torch.device": lambda content, where: _module("torch", where).device(content),
}


def _module(name: str, where: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise Unsupported(f"{where} has values of {name}, which is not installed") from error


def merge(documents: list[Document]) -> Document:
    """One document of those of several ranks: mappings are united, and otherwise the first that has a value counts."""
    merged, *others = documents
    for other in others:
        merged = Document(_merge(merged.tree, other.tree), {**other.aliases, **merged.aliases})
    return merged


def _merge(left: Any, right: Any) -> Any:
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return left
    tag = next(iter(left), "")
    if tag in {"$dict", "$ordered"} and tag in right:
        keys = [json.dumps(key) for key, _ in left[tag]]
        found = {json.dumps(key): (key, value) for key, value in right[tag]}
        pairs = [
            [key, _merge(value, found[text][1]) if text in found else value]
            for text, (key, value) in zip(keys, left[tag], strict=True)
        ]
        return {tag: pairs + [[key, value] for text, (key, value) in found.items() if text not in set(keys)]}
    if tag.startswith("$") or next(iter(right), "").startswith("$"):
        return left
    return {key: _merge(value, right[key]) if key in right else value for key, value in left.items()} | {
        key: value for key, value in right.items() if key not in left
    }
