from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SaveState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAVE_STATE_UNSPECIFIED: _ClassVar[SaveState]
    SAVE_STATE_STAGING: _ClassVar[SaveState]
    SAVE_STATE_STAGED: _ClassVar[SaveState]
    SAVE_STATE_LOCAL_DURABLE: _ClassVar[SaveState]
    SAVE_STATE_COMMITTED: _ClassVar[SaveState]
    SAVE_STATE_FAILED: _ClassVar[SaveState]
    SAVE_STATE_CANCELLED: _ClassVar[SaveState]
SAVE_STATE_UNSPECIFIED: SaveState
SAVE_STATE_STAGING: SaveState
SAVE_STATE_STAGED: SaveState
SAVE_STATE_LOCAL_DURABLE: SaveState
SAVE_STATE_COMMITTED: SaveState
SAVE_STATE_FAILED: SaveState
SAVE_STATE_CANCELLED: SaveState

class SaveTensor(_message.Message):
    __slots__ = ("group", "name", "dtype", "shape", "start", "piece_shape")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    PIECE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    group: str
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    start: _containers.RepeatedScalarFieldContainer[int]
    piece_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group: _Optional[str] = ..., name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., start: _Optional[_Iterable[int]] = ..., piece_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class TensorAlias(_message.Message):
    __slots__ = ("group", "name", "target")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    group: str
    name: str
    target: str
    def __init__(self, group: _Optional[str] = ..., name: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class SaveFile(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class RankItems(_message.Message):
    __slots__ = ("rank", "tensors", "files", "aliases")
    RANK_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    tensors: _containers.RepeatedCompositeFieldContainer[SaveTensor]
    files: _containers.RepeatedCompositeFieldContainer[SaveFile]
    aliases: _containers.RepeatedCompositeFieldContainer[TensorAlias]
    def __init__(self, rank: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[SaveTensor, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[SaveFile, _Mapping]]] = ..., aliases: _Optional[_Iterable[_Union[TensorAlias, _Mapping]]] = ...) -> None: ...

class SaveOptions(_message.Message):
    __slots__ = ("keep", "peer_copies", "delta", "delta_depth_max", "file_bytes_max", "stage_timeout_ms", "refuse_when_full", "metadata", "hf_index", "as_given")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEEP_FIELD_NUMBER: _ClassVar[int]
    PEER_COPIES_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    DELTA_DEPTH_MAX_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSE_WHEN_FULL_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    HF_INDEX_FIELD_NUMBER: _ClassVar[int]
    AS_GIVEN_FIELD_NUMBER: _ClassVar[int]
    keep: int
    peer_copies: int
    delta: bool
    delta_depth_max: int
    file_bytes_max: int
    stage_timeout_ms: int
    refuse_when_full: bool
    metadata: _containers.ScalarMap[str, str]
    hf_index: bool
    as_given: bool
    def __init__(self, keep: _Optional[int] = ..., peer_copies: _Optional[int] = ..., delta: bool = ..., delta_depth_max: _Optional[int] = ..., file_bytes_max: _Optional[int] = ..., stage_timeout_ms: _Optional[int] = ..., refuse_when_full: bool = ..., metadata: _Optional[_Mapping[str, str]] = ..., hf_index: bool = ..., as_given: bool = ...) -> None: ...

class PlanSaveRequest(_message.Message):
    __slots__ = ("uri", "step", "world_size", "ranks", "options", "join_timeout_ms")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    JOIN_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    world_size: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankItems]
    options: SaveOptions
    join_timeout_ms: int
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ..., world_size: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankItems, _Mapping]]] = ..., options: _Optional[_Union[SaveOptions, _Mapping]] = ..., join_timeout_ms: _Optional[int] = ...) -> None: ...

class PlannedTensor(_message.Message):
    __slots__ = ("tensor", "offset_bytes", "length_bytes")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    tensor: SaveTensor
    offset_bytes: int
    length_bytes: int
    def __init__(self, tensor: _Optional[_Union[SaveTensor, _Mapping]] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class PlannedFile(_message.Message):
    __slots__ = ("name", "rank", "size_bytes", "header", "tensors")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rank: int
    size_bytes: int
    header: bytes
    tensors: _containers.RepeatedCompositeFieldContainer[PlannedTensor]
    def __init__(self, name: _Optional[str] = ..., rank: _Optional[int] = ..., size_bytes: _Optional[int] = ..., header: _Optional[bytes] = ..., tensors: _Optional[_Iterable[_Union[PlannedTensor, _Mapping]]] = ...) -> None: ...

class SavePlan(_message.Message):
    __slots__ = ("uri", "step", "attempt", "world_size", "options", "files", "aliases", "created_ms")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    attempt: str
    world_size: int
    options: SaveOptions
    files: _containers.RepeatedCompositeFieldContainer[PlannedFile]
    aliases: _containers.RepeatedCompositeFieldContainer[TensorAlias]
    created_ms: int
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[str] = ..., world_size: _Optional[int] = ..., options: _Optional[_Union[SaveOptions, _Mapping]] = ..., files: _Optional[_Iterable[_Union[PlannedFile, _Mapping]]] = ..., aliases: _Optional[_Iterable[_Union[TensorAlias, _Mapping]]] = ..., created_ms: _Optional[int] = ...) -> None: ...

class InlineFile(_message.Message):
    __slots__ = ("file", "content")
    FILE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    file: int
    content: bytes
    def __init__(self, file: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class StartSaveRequest(_message.Message):
    __slots__ = ("plan", "rank", "inline")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    plan: SavePlan
    rank: int
    inline: _containers.RepeatedCompositeFieldContainer[InlineFile]
    def __init__(self, plan: _Optional[_Union[SavePlan, _Mapping]] = ..., rank: _Optional[int] = ..., inline: _Optional[_Iterable[_Union[InlineFile, _Mapping]]] = ...) -> None: ...

class WatchSaveRequest(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    def __init__(self, attempt: _Optional[str] = ...) -> None: ...

class CancelSaveRequest(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    def __init__(self, attempt: _Optional[str] = ...) -> None: ...

class SaveFolderRequest(_message.Message):
    __slots__ = ("uri", "step", "path", "options")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    path: str
    options: SaveOptions
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ..., path: _Optional[str] = ..., options: _Optional[_Union[SaveOptions, _Mapping]] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("rank", "staged", "local_durable", "peer_durable")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    LOCAL_DURABLE_FIELD_NUMBER: _ClassVar[int]
    PEER_DURABLE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    staged: bool
    local_durable: bool
    peer_durable: bool
    def __init__(self, rank: _Optional[int] = ..., staged: bool = ..., local_durable: bool = ..., peer_durable: bool = ...) -> None: ...

class SaveStatus(_message.Message):
    __slots__ = ("attempt", "uri", "step", "state", "ranks", "world_size", "bytes_total", "bytes_staged", "bytes_durable", "bytes_peer", "bytes_uploaded", "bytes_unchanged", "error_code", "error_message", "notes", "retries", "staged_seconds", "local_durable_seconds", "peer_durable_seconds", "committed_seconds", "waiting_for", "url")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_STAGED_FIELD_NUMBER: _ClassVar[int]
    BYTES_DURABLE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PEER_FIELD_NUMBER: _ClassVar[int]
    BYTES_UPLOADED_FIELD_NUMBER: _ClassVar[int]
    BYTES_UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    STAGED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_DURABLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEER_DURABLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    uri: str
    step: int
    state: SaveState
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    world_size: int
    bytes_total: int
    bytes_staged: int
    bytes_durable: int
    bytes_peer: int
    bytes_uploaded: int
    bytes_unchanged: int
    error_code: str
    error_message: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    retries: int
    staged_seconds: float
    local_durable_seconds: float
    peer_durable_seconds: float
    committed_seconds: float
    waiting_for: str
    url: str
    def __init__(self, attempt: _Optional[str] = ..., uri: _Optional[str] = ..., step: _Optional[int] = ..., state: _Optional[_Union[SaveState, str]] = ..., ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., world_size: _Optional[int] = ..., bytes_total: _Optional[int] = ..., bytes_staged: _Optional[int] = ..., bytes_durable: _Optional[int] = ..., bytes_peer: _Optional[int] = ..., bytes_uploaded: _Optional[int] = ..., bytes_unchanged: _Optional[int] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., retries: _Optional[int] = ..., staged_seconds: _Optional[float] = ..., local_durable_seconds: _Optional[float] = ..., peer_durable_seconds: _Optional[float] = ..., committed_seconds: _Optional[float] = ..., waiting_for: _Optional[str] = ..., url: _Optional[str] = ...) -> None: ...

class ListSavesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSavesResponse(_message.Message):
    __slots__ = ("saves",)
    SAVES_FIELD_NUMBER: _ClassVar[int]
    saves: _containers.RepeatedCompositeFieldContainer[SaveStatus]
    def __init__(self, saves: _Optional[_Iterable[_Union[SaveStatus, _Mapping]]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("uri",)
    URI_FIELD_NUMBER: _ClassVar[int]
    uri: str
    def __init__(self, uri: _Optional[str] = ...) -> None: ...

class CheckpointSummary(_message.Message):
    __slots__ = ("step", "url", "attempt", "created_ms", "size_bytes", "own_bytes", "tensor_count", "file_count", "parent_step", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_COUNT_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    step: int
    url: str
    attempt: str
    created_ms: int
    size_bytes: int
    own_bytes: int
    tensor_count: int
    file_count: int
    parent_step: int
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, step: _Optional[int] = ..., url: _Optional[str] = ..., attempt: _Optional[str] = ..., created_ms: _Optional[int] = ..., size_bytes: _Optional[int] = ..., own_bytes: _Optional[int] = ..., tensor_count: _Optional[int] = ..., file_count: _Optional[int] = ..., parent_step: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints", "uncommitted_steps")
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    UNCOMMITTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointSummary]
    uncommitted_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[CheckpointSummary, _Mapping]]] = ..., uncommitted_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("uri", "step")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class TensorPiece(_message.Message):
    __slots__ = ("file", "offset_bytes", "length_bytes", "start", "shape", "checksum")
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    file: int
    offset_bytes: int
    length_bytes: int
    start: _containers.RepeatedScalarFieldContainer[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    checksum: str
    def __init__(self, file: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., start: _Optional[_Iterable[int]] = ..., shape: _Optional[_Iterable[int]] = ..., checksum: _Optional[str] = ...) -> None: ...

class CheckpointTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "pieces")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedCompositeFieldContainer[TensorPiece]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[_Union[TensorPiece, _Mapping]]] = ...) -> None: ...

class CheckpointFile(_message.Message):
    __slots__ = ("name", "size_bytes", "checksum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    checksum: str
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., checksum: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("summary", "files", "tensors", "aliases")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    summary: CheckpointSummary
    files: _containers.RepeatedCompositeFieldContainer[CheckpointFile]
    tensors: _containers.RepeatedCompositeFieldContainer[CheckpointTensor]
    aliases: _containers.RepeatedCompositeFieldContainer[TensorAlias]
    def __init__(self, summary: _Optional[_Union[CheckpointSummary, _Mapping]] = ..., files: _Optional[_Iterable[_Union[CheckpointFile, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[CheckpointTensor, _Mapping]]] = ..., aliases: _Optional[_Iterable[_Union[TensorAlias, _Mapping]]] = ...) -> None: ...

class DeleteCheckpointRequest(_message.Message):
    __slots__ = ("uri", "step")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class DeleteCheckpointResponse(_message.Message):
    __slots__ = ("objects_deleted", "bytes_freed", "objects_kept")
    OBJECTS_DELETED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_KEPT_FIELD_NUMBER: _ClassVar[int]
    objects_deleted: int
    bytes_freed: int
    objects_kept: int
    def __init__(self, objects_deleted: _Optional[int] = ..., bytes_freed: _Optional[int] = ..., objects_kept: _Optional[int] = ...) -> None: ...

class SweepCheckpointsRequest(_message.Message):
    __slots__ = ("uri", "older_than_ms")
    URI_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_MS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    older_than_ms: int
    def __init__(self, uri: _Optional[str] = ..., older_than_ms: _Optional[int] = ...) -> None: ...

class SweepCheckpointsResponse(_message.Message):
    __slots__ = ("objects_deleted", "uploads_aborted", "bytes_freed")
    OBJECTS_DELETED_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_ABORTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    objects_deleted: int
    uploads_aborted: int
    bytes_freed: int
    def __init__(self, objects_deleted: _Optional[int] = ..., uploads_aborted: _Optional[int] = ..., bytes_freed: _Optional[int] = ...) -> None: ...

class VerifyCheckpointRequest(_message.Message):
    __slots__ = ("uri", "step")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class VerifyProblem(_message.Message):
    __slots__ = ("object", "code", "message")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    object: str
    code: str
    message: str
    def __init__(self, object: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class VerifyCheckpointResponse(_message.Message):
    __slots__ = ("step", "bytes_done", "bytes_total", "objects_done", "objects_total", "done", "problems", "problem_count")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_DONE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    step: int
    bytes_done: int
    bytes_total: int
    objects_done: int
    objects_total: int
    done: bool
    problems: _containers.RepeatedCompositeFieldContainer[VerifyProblem]
    problem_count: int
    def __init__(self, step: _Optional[int] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., objects_done: _Optional[int] = ..., objects_total: _Optional[int] = ..., done: bool = ..., problems: _Optional[_Iterable[_Union[VerifyProblem, _Mapping]]] = ..., problem_count: _Optional[int] = ...) -> None: ...

class RecoverCheckpointRequest(_message.Message):
    __slots__ = ("uri", "step")
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    uri: str
    step: int
    def __init__(self, uri: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class RecoverCheckpointResponse(_message.Message):
    __slots__ = ("bytes_done", "bytes_total", "done", "attempt", "url", "committed", "recovered_ranks", "own_ranks", "stored_ranks", "left_ranks")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_RANKS_FIELD_NUMBER: _ClassVar[int]
    OWN_RANKS_FIELD_NUMBER: _ClassVar[int]
    STORED_RANKS_FIELD_NUMBER: _ClassVar[int]
    LEFT_RANKS_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    done: bool
    attempt: str
    url: str
    committed: bool
    recovered_ranks: _containers.RepeatedScalarFieldContainer[int]
    own_ranks: _containers.RepeatedScalarFieldContainer[int]
    stored_ranks: _containers.RepeatedScalarFieldContainer[int]
    left_ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., done: bool = ..., attempt: _Optional[str] = ..., url: _Optional[str] = ..., committed: bool = ..., recovered_ranks: _Optional[_Iterable[int]] = ..., own_ranks: _Optional[_Iterable[int]] = ..., stored_ranks: _Optional[_Iterable[int]] = ..., left_ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class SlabRequest(_message.Message):
    __slots__ = ("hello", "acquire", "seal", "discard")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACQUIRE_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    hello: SlabHello
    acquire: AcquireSlab
    seal: SealSlab
    discard: DiscardSlab
    def __init__(self, hello: _Optional[_Union[SlabHello, _Mapping]] = ..., acquire: _Optional[_Union[AcquireSlab, _Mapping]] = ..., seal: _Optional[_Union[SealSlab, _Mapping]] = ..., discard: _Optional[_Union[DiscardSlab, _Mapping]] = ...) -> None: ...

class SlabResponse(_message.Message):
    __slots__ = ("error_code", "error_message", "fd_count", "welcome", "grant")
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FD_COUNT_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    error_code: str
    error_message: str
    fd_count: int
    welcome: SlabWelcome
    grant: SlabGrant
    def __init__(self, error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., fd_count: _Optional[int] = ..., welcome: _Optional[_Union[SlabWelcome, _Mapping]] = ..., grant: _Optional[_Union[SlabGrant, _Mapping]] = ...) -> None: ...

class SlabHello(_message.Message):
    __slots__ = ("protocol", "session", "expected_bytes", "clients")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    session: str
    expected_bytes: int
    clients: int
    def __init__(self, protocol: _Optional[int] = ..., session: _Optional[str] = ..., expected_bytes: _Optional[int] = ..., clients: _Optional[int] = ...) -> None: ...

class SlabWelcome(_message.Message):
    __slots__ = ("session", "slab_bytes", "piece_bytes", "sealed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    session: str
    slab_bytes: int
    piece_bytes: _containers.RepeatedScalarFieldContainer[int]
    sealed: _containers.RepeatedCompositeFieldContainer[SlabKey]
    def __init__(self, session: _Optional[str] = ..., slab_bytes: _Optional[int] = ..., piece_bytes: _Optional[_Iterable[int]] = ..., sealed: _Optional[_Iterable[_Union[SlabKey, _Mapping]]] = ...) -> None: ...

class SlabKey(_message.Message):
    __slots__ = ("attempt", "file", "slab_index")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    SLAB_INDEX_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    file: int
    slab_index: int
    def __init__(self, attempt: _Optional[str] = ..., file: _Optional[int] = ..., slab_index: _Optional[int] = ...) -> None: ...

class AcquireSlab(_message.Message):
    __slots__ = ("key", "wait_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    key: SlabKey
    wait_ms: int
    def __init__(self, key: _Optional[_Union[SlabKey, _Mapping]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class SlabGrant(_message.Message):
    __slots__ = ("slab", "piece", "offset_bytes", "length_bytes", "new_piece_bytes", "already_durable")
    SLAB_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALREADY_DURABLE_FIELD_NUMBER: _ClassVar[int]
    slab: int
    piece: int
    offset_bytes: int
    length_bytes: int
    new_piece_bytes: _containers.RepeatedScalarFieldContainer[int]
    already_durable: bool
    def __init__(self, slab: _Optional[int] = ..., piece: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., new_piece_bytes: _Optional[_Iterable[int]] = ..., already_durable: bool = ...) -> None: ...

class SealSlab(_message.Message):
    __slots__ = ("slab",)
    SLAB_FIELD_NUMBER: _ClassVar[int]
    slab: int
    def __init__(self, slab: _Optional[int] = ...) -> None: ...

class DiscardSlab(_message.Message):
    __slots__ = ("slab",)
    SLAB_FIELD_NUMBER: _ClassVar[int]
    slab: int
    def __init__(self, slab: _Optional[int] = ...) -> None: ...
