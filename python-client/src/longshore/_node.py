"""A connection to the loader of this machine."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import grpc

from longshore import _address, _attach, _cuda, _records
from longshore._errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Timeout,
    Unsupported,
    from_rpc,
)
from longshore._frameworks import Framework, choose, require_gpus
from longshore._model import Model
from longshore._parallel import Parallel
from longshore._progress import Bar, Callback, ProgressOption, observer
from longshore._proto import loader_pb2
from longshore._records import ModelInfo, NodeStatus, UnloadResult

if TYPE_CHECKING:
    import numpy
    import torch

_log = logging.getLogger("longshore")

#: Set by `longshore exec` for its child.
MODEL_ID_VARIABLE = "LONGSHORE_MODEL_ID"
ATTACH_SOCKET_VARIABLE = "LONGSHORE_ATTACH_SOCKET"

_SERVICE = "/longshore.v1.Loader/"
_CUDA_DEVICE = re.compile(r"cuda(:[0-9]{1,9})?")
_ATTACH_SECONDS = 30.0
#: A model without leases can be evicted between its load and the attach; then it is loaded again.
_ATTACH_ATTEMPTS = 3
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _attach.MESSAGE_BYTES_MAX),
    # A proxy for the outside world is none for a loader on this machine.
    ("grpc.enable_http_proxy", 0),
    # For a unix socket gRPC would send the path, which is no valid authority.
    ("grpc.default_authority", "localhost"),
)


#: The process that used gRPC first. What gRPC leaves in a child forked from it may hang there, unless told otherwise.
_grpc_pid: int | None = None
_FORK_SUPPORT_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
_FORKED = (
    "gRPC was used before this process was forked, and may hang in it: start children with the spawn method, or set "
    f"{_FORK_SUPPORT_VARIABLE}=1 before gRPC is imported; tensors loaded before may be used, and longshore.attach works"
)


def _check_fork() -> None:
    global _grpc_pid  # noqa: PLW0603 - one a process
    if _grpc_pid is None:
        _grpc_pid = os.getpid()
    elif _grpc_pid != os.getpid() and os.environ.get(_FORK_SUPPORT_VARIABLE, "").lower() not in {"1", "true"}:
        raise FailedPrecondition(_FORKED)


class Node:
    """The loader of this machine. Made by `connect`; safe to use from several threads, but not after a fork."""

    def __init__(self, address: _address.Address) -> None:
        _check_fork()
        self._address = address
        self._pid = os.getpid()
        self._channel: grpc.Channel | None = grpc.insecure_channel(address.target, options=_CHANNEL_OPTIONS)

    @property
    def address(self) -> str:
        """Where the loader is, for instance ``unix:/run/longshore/loader.sock``."""
        return str(self._address)

    def __repr__(self) -> str:
        return f"<longshore.Node {self._address}>"

    def close(self) -> None:
        """Closes the connection. Models that were loaded over it stay valid."""
        channel, self._channel = self._channel, None
        if channel is not None and os.getpid() == self._pid:
            channel.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- loading

    @overload
    def load(
        self,
        uri: str | os.PathLike[str],
        device: str | torch.device = ...,
        *,
        include: Iterable[str] | None = ...,
        framework: None = ...,
        progress: ProgressOption = ...,
        revalidate: bool = ...,
        writable: bool = ...,
        parallel: Parallel | None = ...,
        timeout: float | None = ...,
    ) -> Model[Any]: ...

    @overload
    def load(
        self,
        uri: str | os.PathLike[str],
        device: str | torch.device = ...,
        *,
        include: Iterable[str] | None = ...,
        framework: Literal["torch"],
        progress: ProgressOption = ...,
        revalidate: bool = ...,
        writable: bool = ...,
        parallel: Parallel | None = ...,
        timeout: float | None = ...,
    ) -> Model[torch.Tensor]: ...

    @overload
    def load(
        self,
        uri: str | os.PathLike[str],
        device: str | torch.device = ...,
        *,
        include: Iterable[str] | None = ...,
        framework: Literal["numpy"],
        progress: ProgressOption = ...,
        revalidate: bool = ...,
        writable: bool = ...,
        parallel: Parallel | None = ...,
        timeout: float | None = ...,
    ) -> Model[numpy.ndarray[Any, Any]]: ...

    def load(
        self,
        uri: str | os.PathLike[str],
        device: str | torch.device = "auto",
        *,
        include: Iterable[str] | None = None,
        framework: str | None = None,
        progress: ProgressOption = None,
        revalidate: bool = False,
        writable: bool = False,
        parallel: Parallel | None = None,
        timeout: float | None = None,
    ) -> Model[Any]:
        """Loads a model, or attaches to it when it is in memory already.

        `device` is ``host`` (or ``cpu``), ``cuda``, ``cuda:N`` as this process counts, the UUID of a GPU
        (``GPU-...``), or ``auto``, which leaves it to the loader (with numpy: ``host``). `include` are patterns of file
        names (None: safetensors and side files). `framework` is ``torch``, ``numpy`` or None (torch when installed).
        `revalidate` asks the origin for the newest revision. `parallel` asks for one rank's part. `timeout` in seconds
        bounds the whole call.

        Memory on a GPU is read-only, unless `writable` asks for a private copy of it, which is made on the device and
        needs the room twice; it holds no lease. In host memory writes are private, always.

        Raises the subclass of `longshore.Error` that names the reason.
        """
        if isinstance(include, str):
            raise InvalidArgument("include takes a list of patterns, not one string")
        if parallel is not None and not isinstance(parallel, Parallel):
            raise InvalidArgument("parallel takes a longshore.Parallel")
        deadline = None if timeout is None else time.monotonic() + timeout
        chosen = choose(framework)
        request = loader_pb2.LoadModelRequest(
            uri=_absolute(uri),
            device=_device(device, chosen),
            include=list(include or ()),
            revalidate=revalidate,
            parallel=None if parallel is None else parallel.to_proto(),
        )
        watcher = observer(progress, request.uri)
        try:
            model = self._load(request, chosen, watcher, deadline, writable)
        except BaseException:
            watcher.failed()
            raise
        watcher.done(model.report)
        return model

    def _load(
        self,
        request: loader_pb2.LoadModelRequest,
        framework: Framework,
        watcher: Bar | Callback,
        deadline: float | None,
        writable: bool,
    ) -> Model[Any]:
        for attempt in range(1, _ATTACH_ATTEMPTS + 1):
            loaded = self._load_model(request, watcher, deadline)
            path, left = self._attach_path(loaded), _left(deadline, _ATTACH_SECONDS)
            try:
                attached = _attach.attach(path, loaded.model_id, left, framework, writable=writable)
            except NotFound:
                if attempt == _ATTACH_ATTEMPTS:
                    raise
                _log.info("model %s was evicted before the attach: loading it again", loaded.model_id)
                continue
            return Model(attached, _records.load_report(loaded), framework)
        raise Internal("unreachable")  # pragma: no cover

    def _load_model(
        self, request: loader_pb2.LoadModelRequest, watcher: Bar | Callback, deadline: float | None
    ) -> loader_pb2.LoadedModel:
        doing = f"load of {request.uri}"
        method = self._open().unary_stream(
            _SERVICE + "LoadModel",
            request_serializer=loader_pb2.LoadModelRequest.SerializeToString,
            response_deserializer=loader_pb2.LoadModelResponse.FromString,
        )
        call: Any = method(request, timeout=None if deadline is None else _left(deadline, 0.0))
        try:
            for response in call:
                if response.HasField("model"):
                    loaded: loader_pb2.LoadedModel = response.model
                    return loaded
                if response.HasField("progress"):
                    watcher.update(_records.progress(response.progress))
        except grpc.RpcError as error:
            raise from_rpc(error, doing, self.address) from error
        finally:
            call.cancel()
        raise Internal(f"{doing}: the loader ended the call without a model")

    def _attach_path(self, loaded: loader_pb2.LoadedModel) -> str:
        """The attach socket; beside our own socket when the loader's path is not one here (it runs in a container)."""
        path = loaded.attach_socket
        if self._address.path is not None and not os.path.exists(path):
            beside = os.path.join(os.path.dirname(self._address.path), os.path.basename(path) or "attach.sock")
            if os.path.exists(beside):
                return beside
        if not path:
            raise Unsupported(f"the loader at {self._address} has no attach socket")
        return path

    # ---- the other calls

    def models(self, timeout: float | None = 30.0) -> list[ModelInfo]:
        """The models in the loader's memory."""
        response: loader_pb2.ListModelsResponse = self._call(
            "ListModels", loader_pb2.ListModelsRequest(), loader_pb2.ListModelsResponse, timeout
        )
        return [_records.model_info(model) for model in response.models]

    def unload(
        self, uri: str | os.PathLike[str] | None = None, *, model_id: str | None = None, timeout: float | None = 30.0
    ) -> UnloadResult:
        """Makes the loader forget every model of a URI, or one by its id. Memory that clients hold stays theirs."""
        if (uri is None) == (model_id is None):
            raise InvalidArgument("unload takes a uri or a model_id, one of both")
        request = loader_pb2.UnloadModelRequest(uri="" if uri is None else _absolute(uri), model_id=model_id or "")
        response: loader_pb2.UnloadModelResponse = self._call(
            "UnloadModel", request, loader_pb2.UnloadModelResponse, timeout
        )
        return UnloadResult(response.models, response.bytes_freed, response.bytes_leased)

    def status(self, timeout: float | None = 30.0) -> NodeStatus:
        """Memory, devices, models and workers as the loader sees them."""
        response: loader_pb2.LoaderStatus = self._call(
            "Status", loader_pb2.LoaderStatusRequest(), loader_pb2.LoaderStatus, timeout
        )
        return _records.node_status(response)

    def _call(self, name: str, request: Any, answer: Any, timeout: float | None, service: str = _SERVICE) -> Any:
        method = self._open().unary_unary(
            service + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, name, self.address) from error

    def _open(self) -> grpc.Channel:
        if os.getpid() != self._pid:
            raise FailedPrecondition(f"this node was connected before a fork: connect anew in the child; {_FORKED}")
        if self._channel is None:
            raise FailedPrecondition(f"the connection to {self._address} is closed")
        return self._channel


def connect(address: str | None = None) -> Node:
    """Connects to a running loader.

    `address` is ``unix:/path``, ``/path`` or ``host:port``; by default ``LONGSHORE_LOADER``, else `loader.sock` in
    ``LONGSHORE_SOCKET_DIR``, ``/run/longshore``, ``$XDG_RUNTIME_DIR/longshore`` or ``/tmp/longshore-<uid>``.

    Raises `longshore.Unavailable` when nothing listens there.
    """
    found = _address.configured(address) or _address.default()
    found.probe()
    return Node(found)


def _absolute(uri: str | os.PathLike[str]) -> str:
    """A path is meant from here, not from where the loader was started."""
    text = os.fspath(uri)
    return text if "://" in text or not text else os.path.abspath(text)


def _device(asked: str | torch.device, framework: Framework) -> str:
    """The device as the loader is asked for it: a GPU by its UUID, because processes count their GPUs differently."""
    device = str(asked)
    if device == "cpu":
        return "host"
    if device in {"", "auto"}:
        return device if framework.on_gpus else "host"
    is_uuid = device.startswith(("GPU-", "MIG-"))
    if not is_uuid and _CUDA_DEVICE.fullmatch(device) is None:
        return device
    require_gpus(framework, f"the device asked for is {device}")
    return (_cuda.by_uuid(device) if is_uuid else _cuda.by_ordinal(device)).name


def _left(deadline: float | None, otherwise: float) -> float:
    if deadline is None:
        return otherwise
    left = deadline - time.monotonic()
    if left <= 0:
        raise Timeout("the load did not end within the time given")
    return left


def attach(
    model_id: str | None = None, socket: str | None = None, *, framework: str | None = None, writable: bool = False
) -> Model[Any]:
    """Attaches to a model that is loaded already, over the attach socket alone.

    Without arguments: the model that ``longshore exec`` loaded for this process, named by ``LONGSHORE_MODEL_ID`` and
    ``LONGSHORE_ATTACH_SOCKET``. `framework` and `writable` are those of `Node.load`.
    """
    model_id = model_id or os.environ.get(MODEL_ID_VARIABLE)
    socket = socket or os.environ.get(ATTACH_SOCKET_VARIABLE)
    if not model_id or not socket:
        raise InvalidArgument(
            f"attach needs a model id and a socket: give both, or run under `longshore exec`, which sets "
            f"{MODEL_ID_VARIABLE} and {ATTACH_SOCKET_VARIABLE}"
        )
    chosen = choose(framework)
    attached = _attach.attach(socket, model_id, _ATTACH_SECONDS, chosen, writable=writable)
    return Model(attached, _records.load_report(attached.model), chosen)
