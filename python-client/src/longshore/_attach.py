"""The attach protocol: asks a loader for a model's memory over its unix socket.

One request, one response, then the descriptors of the regions' segments. The open socket is the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from longshore import _cuda, _gpu
from longshore._errors import Corrupt, InvalidArgument, from_code
from longshore._frameworks import Framework, Region, require_gpus
from longshore._framing import Connection, Descriptors
from longshore._memory import Lease, map_region
from longshore._proto import loader_pb2

MESSAGE_BYTES_MAX = 64 << 20
#: Segments of a model: at 1 GiB each, 4 TiB.
FDS_MAX = 4096


@dataclass(frozen=True)
class Attached:
    """A model's description, its mapped regions, and the lease that they hold."""

    model: loader_pb2.LoadedModel
    regions: tuple[Region, ...]
    lease: Lease
    path: str

    def close(self) -> None:
        """Gives everything back; for a description that no model can be made of."""
        _give_back(self.regions)
        self.lease.close()


def attach(
    path: str, model_id: str, timeout_seconds: float, framework: Framework, *, writable: bool = False
) -> Attached:
    """Attaches to a loaded model. The caller becomes a holder of the lease returned, beside the regions.

    A writable model on a GPU is a private copy, and its lease has ended already: there is nothing that it would keep.
    """
    connection = Connection(path, "attach", timeout_seconds, MESSAGE_BYTES_MAX)
    lease = Lease(connection.sock)
    regions: tuple[Region, ...] = ()
    try:
        connection.send(loader_pb2.AttachRequest(model_id=model_id).SerializeToString())
        response = _parse(connection.receive())
        gpus = _gpus(response, framework)
        regions = _map_regions(connection, response, gpus, lease)
        for region in regions:
            if isinstance(region, _gpu.GpuRegion):
                framework.check_region(region)
        connection.sock.settimeout(None)
        lease.hold()
        if writable and any(gpus):
            shared, regions = regions, _private_copies(regions)
            _give_back(shared)
            lease.close()
    except BaseException:
        _give_back(regions)
        lease.close()
        raise
    return Attached(response.model, regions, lease, path)


def _private_copies(regions: Sequence[Region]) -> tuple[Region, ...]:
    copies: list[Region] = []
    try:
        for region in regions:
            # Of host memory these are the side files of a model on a GPU.
            if isinstance(region, _gpu.GpuRegion):
                copies.append(_gpu.copy(region))
            else:
                copies.append(memoryview(bytearray(region)))
    except BaseException:
        _give_back(copies)
        raise
    return tuple(copies)


def _give_back(regions: Sequence[Region]) -> None:
    """Gives GPU memory back now: an error's traceback could keep the regions for long."""
    for region in regions:
        if isinstance(region, _gpu.GpuRegion):
            region.close()


def _parse(message: bytes) -> loader_pb2.AttachResponse:
    try:
        response = loader_pb2.AttachResponse.FromString(message)
    except DecodeError as error:
        raise Corrupt(f"attach: the loader's answer cannot be read: {error}") from error
    if response.error_code:
        raise from_code(response.error_code, response.error_message or "attach failed")
    return response


def _gpus(response: loader_pb2.AttachResponse, framework: Framework) -> list[_cuda.Gpu | None]:
    """The GPU of each region; None for host memory."""
    found: list[_cuda.Gpu | None] = []
    for region in response.model.regions:
        # Loaders that know of no GPUs leave the device out.
        if region.device in {"", "host"}:
            found.append(None)
            continue
        require_gpus(framework, f"the model is on {region.device}")
        try:
            found.append(_cuda.by_uuid(region.device))
        except InvalidArgument as error:
            raise Corrupt(f"attach: a region on an unknown kind of device: {error}") from error
    return found


def _map_regions(
    connection: Connection, response: loader_pb2.AttachResponse, gpus: list[_cuda.Gpu | None], lease: Lease
) -> tuple[Region, ...]:
    regions = response.model.regions
    announced = sum(len(region.segment_bytes) for region in regions)
    if response.fd_count != announced or announced > FDS_MAX:
        raise Corrupt(f"attach: {response.fd_count} descriptors for {announced} segments; at most {FDS_MAX} are taken")
    for region, gpu in zip(regions, gpus, strict=True):
        if gpu is None and sum(region.segment_bytes) != region.size_bytes:
            raise Corrupt(f"attach: the segments of a region of {region.size_bytes} bytes do not add up to it")

    fds = Descriptors(connection, announced)
    mapped: list[Region] = []
    try:
        for region, gpu in zip(regions, gpus, strict=True):
            lengths = list(region.segment_bytes)
            taken = fds.take(len(lengths))
            if gpu is None or (not lengths and region.size_bytes == 0):
                mapped.append(map_region(taken, lengths, lease))
            else:
                mapped.append(_gpu.map_region(gpu, taken, lengths, region.size_bytes, lease))
    except BaseException:
        _give_back(mapped)
        raise
    finally:
        fds.close()
    return tuple(mapped)
