from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
    TIER_PINNED: _ClassVar[Tier]
    TIER_MEMORY: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_PEER: _ClassVar[Tier]
    TIER_ORIGIN: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
TIER_DEVICE: Tier
TIER_PINNED: Tier
TIER_MEMORY: Tier
TIER_DISK: Tier
TIER_PEER: Tier
TIER_ORIGIN: Tier

class Artifact(_message.Message):
    __slots__ = ("url", "version", "size_bytes")
    URL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    url: str
    version: str
    size_bytes: int
    def __init__(self, url: _Optional[str] = ..., version: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("name", "artifact", "is_tensors", "checksums", "chunks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    IS_TENSORS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    artifact: Artifact
    is_tensors: bool
    checksums: bytes
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkRun]
    def __init__(self, name: _Optional[str] = ..., artifact: _Optional[_Union[Artifact, _Mapping]] = ..., is_tensors: bool = ..., checksums: _Optional[bytes] = ..., chunks: _Optional[_Iterable[_Union[ChunkRun, _Mapping]]] = ...) -> None: ...

class ChunkRun(_message.Message):
    __slots__ = ("object", "first_chunk", "count")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    object: int
    first_chunk: int
    count: int
    def __init__(self, object: _Optional[int] = ..., first_chunk: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("start", "shape", "of_shape")
    START_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OF_SHAPE_FIELD_NUMBER: _ClassVar[int]
    start: _containers.RepeatedScalarFieldContainer[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    of_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start: _Optional[_Iterable[int]] = ..., shape: _Optional[_Iterable[int]] = ..., of_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "file", "offset_bytes", "length_bytes", "piece")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    file: int
    offset_bytes: int
    length_bytes: int
    piece: Piece
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., file: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ...) -> None: ...

class SkippedFile(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("url", "revision", "files", "tensors", "skipped", "warnings", "objects")
    URL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    url: str
    revision: str
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    skipped: _containers.RepeatedCompositeFieldContainer[SkippedFile]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    objects: _containers.RepeatedCompositeFieldContainer[Artifact]
    def __init__(self, url: _Optional[str] = ..., revision: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[SkippedFile, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., objects: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ...) -> None: ...
