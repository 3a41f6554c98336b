from longshore._proto import checkpoint_pb2 as _checkpoint_pb2
from longshore._proto import model_pb2 as _model_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadStep(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_STEP_UNSPECIFIED: _ClassVar[LoadStep]
    LOAD_STEP_RESOLVE: _ClassVar[LoadStep]
    LOAD_STEP_PLAN: _ClassVar[LoadStep]
    LOAD_STEP_FETCH: _ClassVar[LoadStep]
    LOAD_STEP_VERIFY: _ClassVar[LoadStep]
    LOAD_STEP_UPLOAD: _ClassVar[LoadStep]
    LOAD_STEP_PUBLISH: _ClassVar[LoadStep]
LOAD_STEP_UNSPECIFIED: LoadStep
LOAD_STEP_RESOLVE: LoadStep
LOAD_STEP_PLAN: LoadStep
LOAD_STEP_FETCH: LoadStep
LOAD_STEP_VERIFY: LoadStep
LOAD_STEP_UPLOAD: LoadStep
LOAD_STEP_PUBLISH: LoadStep

class LoadModelRequest(_message.Message):
    __slots__ = ("uri", "device", "include", "revalidate", "trace", "parallel", "allow_uncommitted")
    URI_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    REVALIDATE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNCOMMITTED_FIELD_NUMBER: _ClassVar[int]
    uri: str
    device: str
    include: _containers.RepeatedScalarFieldContainer[str]
    revalidate: bool
    trace: bool
    parallel: Parallel
    allow_uncommitted: bool
    def __init__(self, uri: _Optional[str] = ..., device: _Optional[str] = ..., include: _Optional[_Iterable[str]] = ..., revalidate: bool = ..., trace: bool = ..., parallel: _Optional[_Union[Parallel, _Mapping]] = ..., allow_uncommitted: bool = ...) -> None: ...

class Parallel(_message.Message):
    __slots__ = ("rank", "world_size", "rules")
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    world_size: int
    rules: _containers.RepeatedCompositeFieldContainer[ParallelRule]
    def __init__(self, rank: _Optional[int] = ..., world_size: _Optional[int] = ..., rules: _Optional[_Iterable[_Union[ParallelRule, _Mapping]]] = ...) -> None: ...

class ParallelRule(_message.Message):
    __slots__ = ("pattern", "replicate", "split", "expert")
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    REPLICATE_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    pattern: str
    replicate: Replicate
    split: Split
    expert: Expert
    def __init__(self, pattern: _Optional[str] = ..., replicate: _Optional[_Union[Replicate, _Mapping]] = ..., split: _Optional[_Union[Split, _Mapping]] = ..., expert: _Optional[_Union[Expert, _Mapping]] = ...) -> None: ...

class Replicate(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Split(_message.Message):
    __slots__ = ("dim", "parts")
    DIM_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    dim: int
    parts: _containers.RepeatedCompositeFieldContainer[FusedPart]
    def __init__(self, dim: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[FusedPart, _Mapping]]] = ...) -> None: ...

class FusedPart(_message.Message):
    __slots__ = ("size", "replicas")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    size: int
    replicas: int
    def __init__(self, size: _Optional[int] = ..., replicas: _Optional[int] = ...) -> None: ...

class Expert(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("progress", "model")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    progress: LoadProgress
    model: LoadedModel
    def __init__(self, progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., model: _Optional[_Union[LoadedModel, _Mapping]] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("step", "bytes_done", "bytes_total", "elapsed_seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: LoadStep
    bytes_done: int
    bytes_total: int
    elapsed_seconds: float
    def __init__(self, step: _Optional[_Union[LoadStep, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., elapsed_seconds: _Optional[float] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("size_bytes", "segment_bytes", "device")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    segment_bytes: _containers.RepeatedScalarFieldContainer[int]
    device: str
    def __init__(self, size_bytes: _Optional[int] = ..., segment_bytes: _Optional[_Iterable[int]] = ..., device: _Optional[str] = ...) -> None: ...

class PlacedTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "region", "offset_bytes", "length_bytes", "piece")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    region: int
    offset_bytes: int
    length_bytes: int
    piece: _model_pb2.Piece
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., region: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., piece: _Optional[_Union[_model_pb2.Piece, _Mapping]] = ...) -> None: ...

class PlacedFile(_message.Message):
    __slots__ = ("name", "region", "offset_bytes", "length_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    region: int
    offset_bytes: int
    length_bytes: int
    def __init__(self, name: _Optional[str] = ..., region: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class LoadedModel(_message.Message):
    __slots__ = ("model_id", "uri", "revision", "device", "device_uuid", "size_bytes", "tensor_count", "regions", "tensors", "files", "skipped", "warnings", "leases", "idle_seconds", "report", "reattached", "attach_socket", "parallel")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UUID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_COUNT_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    REATTACHED_FIELD_NUMBER: _ClassVar[int]
    ATTACH_SOCKET_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    uri: str
    revision: str
    device: str
    device_uuid: str
    size_bytes: int
    tensor_count: int
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    tensors: _containers.RepeatedCompositeFieldContainer[PlacedTensor]
    files: _containers.RepeatedCompositeFieldContainer[PlacedFile]
    skipped: _containers.RepeatedCompositeFieldContainer[_model_pb2.SkippedFile]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    leases: int
    idle_seconds: float
    report: LoadReport
    reattached: bool
    attach_socket: str
    parallel: Parallel
    def __init__(self, model_id: _Optional[str] = ..., uri: _Optional[str] = ..., revision: _Optional[str] = ..., device: _Optional[str] = ..., device_uuid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., tensor_count: _Optional[int] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[PlacedTensor, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[PlacedFile, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[_model_pb2.SkippedFile, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., leases: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., report: _Optional[_Union[LoadReport, _Mapping]] = ..., reattached: bool = ..., attach_socket: _Optional[str] = ..., parallel: _Optional[_Union[Parallel, _Mapping]] = ...) -> None: ...

class TierBytes(_message.Message):
    __slots__ = ("tier", "bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: _model_pb2.Tier
    bytes: int
    def __init__(self, tier: _Optional[_Union[_model_pb2.Tier, str]] = ..., bytes: _Optional[int] = ...) -> None: ...

class StepTime(_message.Message):
    __slots__ = ("step", "start_seconds", "end_seconds", "busy_seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    END_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: LoadStep
    start_seconds: float
    end_seconds: float
    busy_seconds: float
    def __init__(self, step: _Optional[_Union[LoadStep, str]] = ..., start_seconds: _Optional[float] = ..., end_seconds: _Optional[float] = ..., busy_seconds: _Optional[float] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("kind", "count", "last_detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    count: int
    last_detail: str
    def __init__(self, kind: _Optional[str] = ..., count: _Optional[int] = ..., last_detail: _Optional[str] = ...) -> None: ...

class TraceEvent(_message.Message):
    __slots__ = ("name", "category", "thread", "start_us", "duration_us", "bytes", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    THREAD_FIELD_NUMBER: _ClassVar[int]
    START_US_FIELD_NUMBER: _ClassVar[int]
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    category: str
    thread: int
    start_us: int
    duration_us: int
    bytes: int
    source: str
    def __init__(self, name: _Optional[str] = ..., category: _Optional[str] = ..., thread: _Optional[int] = ..., start_us: _Optional[int] = ..., duration_us: _Optional[int] = ..., bytes: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("seconds", "bytes", "bytes_by_tier", "fallbacks", "retries", "checksum_mismatches", "steps", "events", "events_dropped")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_BY_TIER_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    bytes: int
    bytes_by_tier: _containers.RepeatedCompositeFieldContainer[TierBytes]
    fallbacks: _containers.RepeatedCompositeFieldContainer[Fallback]
    retries: int
    checksum_mismatches: int
    steps: _containers.RepeatedCompositeFieldContainer[StepTime]
    events: _containers.RepeatedCompositeFieldContainer[TraceEvent]
    events_dropped: int
    def __init__(self, seconds: _Optional[float] = ..., bytes: _Optional[int] = ..., bytes_by_tier: _Optional[_Iterable[_Union[TierBytes, _Mapping]]] = ..., fallbacks: _Optional[_Iterable[_Union[Fallback, _Mapping]]] = ..., retries: _Optional[int] = ..., checksum_mismatches: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[StepTime, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[TraceEvent, _Mapping]]] = ..., events_dropped: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[LoadedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[LoadedModel, _Mapping]]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model_id", "uri")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    uri: str
    def __init__(self, model_id: _Optional[str] = ..., uri: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("models", "bytes_freed", "bytes_leased")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    BYTES_LEASED_FIELD_NUMBER: _ClassVar[int]
    models: int
    bytes_freed: int
    bytes_leased: int
    def __init__(self, models: _Optional[int] = ..., bytes_freed: _Optional[int] = ..., bytes_leased: _Optional[int] = ...) -> None: ...

class LoaderStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("device", "uuid", "name", "capacity_bytes", "used_bytes", "free_bytes", "state", "restarts")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    device: str
    uuid: str
    name: str
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    state: str
    restarts: int
    def __init__(self, device: _Optional[str] = ..., uuid: _Optional[str] = ..., name: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ...) -> None: ...

class PinnedStatus(_message.Message):
    __slots__ = ("capacity_bytes", "staging_bytes", "cached_bytes", "pages")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGING_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    staging_bytes: int
    cached_bytes: int
    pages: str
    def __init__(self, capacity_bytes: _Optional[int] = ..., staging_bytes: _Optional[int] = ..., cached_bytes: _Optional[int] = ..., pages: _Optional[str] = ...) -> None: ...

class HolderStatus(_message.Message):
    __slots__ = ("process", "pid", "uptime_seconds", "models_adopted", "unknown")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODELS_ADOPTED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    process: bool
    pid: int
    uptime_seconds: float
    models_adopted: int
    unknown: _containers.RepeatedCompositeFieldContainer[UnknownModel]
    def __init__(self, process: bool = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., models_adopted: _Optional[int] = ..., unknown: _Optional[_Iterable[_Union[UnknownModel, _Mapping]]] = ...) -> None: ...

class UnknownModel(_message.Message):
    __slots__ = ("model_id", "reason", "size_bytes", "leases")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    reason: str
    size_bytes: int
    leases: int
    def __init__(self, model_id: _Optional[str] = ..., reason: _Optional[str] = ..., size_bytes: _Optional[int] = ..., leases: _Optional[int] = ...) -> None: ...

class CheckpointStatus(_message.Message):
    __slots__ = ("slabs_socket", "dir", "open", "error", "slab_capacity_bytes", "slab_used_bytes", "disk_capacity_bytes", "disk_used_bytes", "sessions", "saves")
    SLABS_SOCKET_FIELD_NUMBER: _ClassVar[int]
    DIR_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SLAB_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLAB_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SAVES_FIELD_NUMBER: _ClassVar[int]
    slabs_socket: str
    dir: str
    open: bool
    error: str
    slab_capacity_bytes: int
    slab_used_bytes: int
    disk_capacity_bytes: int
    disk_used_bytes: int
    sessions: int
    saves: _containers.RepeatedCompositeFieldContainer[_checkpoint_pb2.SaveStatus]
    def __init__(self, slabs_socket: _Optional[str] = ..., dir: _Optional[str] = ..., open: bool = ..., error: _Optional[str] = ..., slab_capacity_bytes: _Optional[int] = ..., slab_used_bytes: _Optional[int] = ..., disk_capacity_bytes: _Optional[int] = ..., disk_used_bytes: _Optional[int] = ..., sessions: _Optional[int] = ..., saves: _Optional[_Iterable[_Union[_checkpoint_pb2.SaveStatus, _Mapping]]] = ...) -> None: ...

class LoaderStatus(_message.Message):
    __slots__ = ("version", "arena_capacity_bytes", "arena_used_bytes", "devices", "models", "members", "loads_in_flight", "attach_socket", "uptime_seconds", "pinned", "holder", "checkpoints")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARENA_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARENA_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LOADS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    ATTACH_SOCKET_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    arena_capacity_bytes: int
    arena_used_bytes: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStatus]
    models: _containers.RepeatedCompositeFieldContainer[LoadedModel]
    members: _containers.RepeatedCompositeFieldContainer[WorkerMember]
    loads_in_flight: int
    attach_socket: str
    uptime_seconds: float
    pinned: PinnedStatus
    holder: HolderStatus
    checkpoints: CheckpointStatus
    def __init__(self, version: _Optional[str] = ..., arena_capacity_bytes: _Optional[int] = ..., arena_used_bytes: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceStatus, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[LoadedModel, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[WorkerMember, _Mapping]]] = ..., loads_in_flight: _Optional[int] = ..., attach_socket: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., pinned: _Optional[_Union[PinnedStatus, _Mapping]] = ..., holder: _Optional[_Union[HolderStatus, _Mapping]] = ..., checkpoints: _Optional[_Union[CheckpointStatus, _Mapping]] = ...) -> None: ...

class WorkerMember(_message.Message):
    __slots__ = ("id", "address", "weight", "reachable")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    weight: int
    reachable: bool
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., weight: _Optional[int] = ..., reachable: bool = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("error_code", "error_message", "fd_count", "model")
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FD_COUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    error_code: str
    error_message: str
    fd_count: int
    model: LoadedModel
    def __init__(self, error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., fd_count: _Optional[int] = ..., model: _Optional[_Union[LoadedModel, _Mapping]] = ...) -> None: ...
