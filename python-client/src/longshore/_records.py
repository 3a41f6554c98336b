"""What the daemon reports, as plain records: no protobuf type leaves this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longshore._proto import loader_pb2, model_pb2

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper


@dataclass(frozen=True)
class Progress:
    """How far a load is. `step` is one of resolve, plan, fetch, verify, upload, publish."""

    step: str
    bytes_done: int
    bytes_total: int
    elapsed_seconds: float


@dataclass(frozen=True)
class Fallback:
    """A way of doing something that was not the first choice."""

    kind: str
    count: int
    last_detail: str


@dataclass(frozen=True)
class StepTime:
    """When a step of the load began and ended, and the time that all threads spent in it."""

    step: str
    start_seconds: float
    end_seconds: float
    busy_seconds: float


@dataclass(frozen=True)
class LoadReport:
    """How a model came into memory. For a re-attach: the report of the load that brought it."""

    seconds: float
    bytes: int
    #: Keys are device, pinned, memory, disk, peer and origin.
    bytes_by_tier: Mapping[str, int]
    fallbacks: tuple[Fallback, ...]
    retries: int
    checksum_mismatches: int
    steps: tuple[StepTime, ...]
    #: True when the model was in memory already and nothing moved.
    reattached: bool


@dataclass(frozen=True)
class SkippedFile:
    """A file under the URL that is not part of the load."""

    name: str
    reason: str


@dataclass(frozen=True)
class ModelInfo:
    """A model in a loader's memory."""

    model_id: str
    uri: str
    revision: str
    device: str
    nbytes: int
    tensor_count: int
    leases: int
    idle_seconds: float
    #: Of the GPU it is on; empty for host memory.
    device_uuid: str = ""
    #: Which part of the model, of how many; 0 of 1 for all of it.
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class UnloadResult:
    """What an unload did. `bytes_leased` is memory that clients still hold; it is free when their leases end."""

    models: int
    bytes_freed: int
    bytes_leased: int


@dataclass(frozen=True)
class DeviceStatus:
    """A device that models can be loaded to. `device` is as the loader counts; `uuid` is the same everywhere."""

    device: str
    uuid: str
    name: str
    #: The budget for models.
    capacity_bytes: int
    used_bytes: int
    #: What a new model can get now: less than the rest of the budget when others use the device too.
    free_bytes: int
    #: ``ready``, ``starting``, or why it cannot be used at present.
    state: str
    #: Times that the process which copies to it had to be started again.
    restarts: int


@dataclass(frozen=True)
class PinnedStatus:
    """Page-locked host memory: staging for copies to GPUs, and the chunks that stay in it afterwards."""

    capacity_bytes: int
    #: Held by copies and fetches in flight.
    staging_bytes: int
    #: Chunks that are kept, and go when the room is needed.
    cached_bytes: int
    #: ``hugetlb 2 MiB``, ``transparent huge`` or ``4 KiB``.
    pages: str


@dataclass(frozen=True)
class UnknownModel:
    """A model that a holder keeps and that its loader could not take over: it takes memory and cannot be loaded."""

    model_id: str
    reason: str
    size_bytes: int
    leases: int


@dataclass(frozen=True)
class HolderStatus:
    """Who keeps the memory of loaded models."""

    #: True for a process of its own, whose models outlive the loader; false when they end with it.
    process: bool
    pid: int
    uptime_seconds: float
    #: Models that the loader took over when it started.
    models_adopted: int
    #: Models that it could not take over.
    unknown: tuple[UnknownModel, ...]


@dataclass(frozen=True)
class Member:
    """A cache worker as the loader sees it."""

    id: str
    address: str
    weight: int
    reachable: bool


@dataclass(frozen=True)
class NodeStatus:
    """Memory, devices, models and workers of a loader.

    `pinned` is None without a GPU, `holder` when the loader is too old to tell.
    """

    version: str
    arena_capacity_bytes: int
    arena_used_bytes: int
    devices: tuple[DeviceStatus, ...]
    models: tuple[ModelInfo, ...]
    members: tuple[Member, ...]
    loads_in_flight: int
    uptime_seconds: float
    pinned: PinnedStatus | None = None
    holder: HolderStatus | None = None


def _enum_name(enum: EnumTypeWrapper, number: int, prefix: str) -> str:
    """``LOAD_STEP_FETCH`` -> ``fetch``; a number from a newer daemon is kept as ``unknown_7``."""
    try:
        name = enum.Name(number)
    except ValueError:
        return f"unknown_{number}"
    return name.removeprefix(prefix).lower()


def _step_name(number: int) -> str:
    return _enum_name(loader_pb2.LoadStep, number, "LOAD_STEP_")


def progress(event: loader_pb2.LoadProgress) -> Progress:
    """Converts one progress message."""
    return Progress(_step_name(event.step), event.bytes_done, event.bytes_total, event.elapsed_seconds)


def load_report(model: loader_pb2.LoadedModel) -> LoadReport:
    """Converts the report of a loaded model."""
    report = model.report
    tiers: dict[str, int] = {}
    for entry in report.bytes_by_tier:
        tier = _enum_name(model_pb2.Tier, entry.tier, "TIER_")
        tiers[tier] = tiers.get(tier, 0) + entry.bytes
    return LoadReport(
        seconds=report.seconds,
        bytes=report.bytes,
        bytes_by_tier=tiers,
        fallbacks=tuple(Fallback(f.kind, f.count, f.last_detail) for f in report.fallbacks),
        retries=report.retries,
        checksum_mismatches=report.checksum_mismatches,
        steps=tuple(StepTime(_step_name(s.step), s.start_seconds, s.end_seconds, s.busy_seconds) for s in report.steps),
        reattached=model.reattached,
    )


def model_info(model: loader_pb2.LoadedModel) -> ModelInfo:
    """Converts one entry of a list of models."""
    return ModelInfo(
        model_id=model.model_id,
        uri=model.uri,
        revision=model.revision,
        device=model.device,
        nbytes=model.size_bytes,
        tensor_count=model.tensor_count,
        leases=model.leases,
        idle_seconds=model.idle_seconds,
        device_uuid=model.device_uuid,
        rank=model.parallel.rank,
        world_size=model.parallel.world_size or 1,
    )


def node_status(status: loader_pb2.LoaderStatus) -> NodeStatus:
    """Converts a loader's status."""
    return NodeStatus(
        version=status.version,
        arena_capacity_bytes=status.arena_capacity_bytes,
        arena_used_bytes=status.arena_used_bytes,
        devices=tuple(_device_status(device) for device in status.devices),
        models=tuple(model_info(m) for m in status.models),
        members=tuple(Member(m.id, m.address, m.weight, m.reachable) for m in status.members),
        loads_in_flight=status.loads_in_flight,
        uptime_seconds=status.uptime_seconds,
        pinned=_pinned_status(status.pinned) if status.HasField("pinned") else None,
        holder=_holder_status(status.holder) if status.HasField("holder") else None,
    )


def _device_status(device: loader_pb2.DeviceStatus) -> DeviceStatus:
    return DeviceStatus(
        device=device.device,
        uuid=device.uuid,
        name=device.name,
        capacity_bytes=device.capacity_bytes,
        used_bytes=device.used_bytes,
        free_bytes=device.free_bytes,
        state=device.state,
        restarts=device.restarts,
    )


def _pinned_status(pinned: loader_pb2.PinnedStatus) -> PinnedStatus:
    return PinnedStatus(pinned.capacity_bytes, pinned.staging_bytes, pinned.cached_bytes, pinned.pages)


def _holder_status(holder: loader_pb2.HolderStatus) -> HolderStatus:
    return HolderStatus(
        process=holder.process,
        pid=holder.pid,
        uptime_seconds=holder.uptime_seconds,
        models_adopted=holder.models_adopted,
        unknown=tuple(UnknownModel(u.model_id, u.reason, u.size_bytes, u.leases) for u in holder.unknown),
    )
