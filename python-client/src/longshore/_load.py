"""`longshore.load`: the running loader if there is one, else a private one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from longshore import _address, _private, _restore
from longshore._checkpoints import Checkpoint, check_step, get
from longshore._errors import Error, NotFound, Unavailable
from longshore._model import Model
from longshore._node import Node, connect
from longshore._parallel import Parallel
from longshore._progress import ProgressOption
from longshore._service import service
from longshore._tree import is_state_file

if TYPE_CHECKING:
    import numpy
    import torch

_log = logging.getLogger("longshore")


@overload
def load(
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
    address: str | None = ...,
    step: int | Literal["latest"] | None = ...,
    into: Any = ...,
    allow_pickle: bool = ...,
) -> Model[Any]: ...


@overload
def load(
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
    address: str | None = ...,
    step: int | Literal["latest"] | None = ...,
    into: Any = ...,
    allow_pickle: bool = ...,
) -> Model[torch.Tensor]: ...


@overload
def load(
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
    address: str | None = ...,
    step: int | Literal["latest"] | None = ...,
    into: Any = ...,
    allow_pickle: bool = ...,
) -> Model[numpy.ndarray[Any, Any]]: ...


def load(
    uri: str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    include: Iterable[str] | None = None,
    framework: Any = None,
    progress: ProgressOption = None,
    revalidate: bool = False,
    writable: bool = False,
    parallel: Parallel | None = None,
    timeout: float | None = None,
    address: str | None = None,
    step: int | Literal["latest"] | None = None,
    into: Any = None,
    allow_pickle: bool = False,
) -> Model[Any]:
    """Loads a model as `Node.load` does, over the loader that runs on this machine.

    With `step`, a number or ``"latest"``, `uri` is that of a run, as it was given to `longshore.save`, and a committed
    checkpoint of it is loaded. Its `Model.state_dict` has the nested structure that was saved.

    With `into`, a nested state dict of the same form, its tensors (torch's, DTensors, numpy arrays; of a module:
    ``module.state_dict()``) are filled in place, each rank with what it has of them, whatever the number of ranks that
    saved; other values take those that were saved. Of a checkpoint only the files that are needed are loaded. A tensor
    of another dtype is converted. `FailedPrecondition` names what the checkpoint does not have or has in another shape;
    then nothing was written. `allow_pickle` reads values that were pickled, which runs code of whoever wrote them.

    When no address is given or configured and no loader runs, a private one is started from the ``longshore`` binary
    (``LONGSHORE_BIN``, the wheel's own, PATH). It ends with the last lease.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    wanted = None if into is None else _restore.targets(into)
    checkpoint = None if step is None else _checkpoint(uri, step, address, timeout)
    if step is not None:
        uri = step_url(uri, step if checkpoint is None else checkpoint.step)
    if wanted is not None:
        device = "host" if str(device) == "auto" else device
        if checkpoint is not None and include is None:
            include = _files(checkpoint, wanted)

    def run(node: Node) -> Model[Any]:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        with node:
            return node.load(
                uri,
                device,
                include=include,
                framework=framework,
                progress=progress,
                revalidate=revalidate,
                writable=writable,
                parallel=parallel,
                timeout=left,
            )

    model = _on_a_loader(address, run)
    try:
        if checkpoint is not None:
            model._describe(checkpoint)
        if wanted is not None:
            _restore.restore(model, into, wanted, allow_pickle=allow_pickle)
    except BaseException:
        model.close()
        raise
    return model


def _on_a_loader(address: str | None, run: Callable[[Node], Model[Any]]) -> Model[Any]:
    try:
        node = connect(address)
    except Unavailable as error:
        if _address.configured(address) is not None:
            raise
        _log.info("%s; starting a private loader", error)
    else:
        return run(node)

    loader = _private.ensure()
    try:
        return run(Node(loader.address))
    except Error as error:
        if not _private.is_gone(loader, error):
            raise
        return run(Node(_private.ensure().address))


def _checkpoint(
    uri: str | os.PathLike[str], step: int | str, address: str | None, timeout: float | None
) -> Checkpoint | None:
    """What is known of a committed checkpoint; None for a step that is not committed.

    The loader has the last word on that: it can load what is still being saved on its own node.
    """
    if step == "latest":
        return get(service(address), uri, None, timeout)
    try:
        return get(service(address), uri, check_step(step), timeout)
    except NotFound as error:
        _log.info("%s", error)
        return None


def step_url(uri: str | os.PathLike[str], step: int | str) -> str:
    """The URL of a checkpoint of a run."""
    return f"{os.fspath(uri).rstrip('/')}/step-{step}"


def _files(checkpoint: Checkpoint, wanted: list[_restore.Target]) -> list[str] | None:
    """What to load when not all is needed: files with tensors of the targets, and those of the tree."""
    needed = _restore.files_of(checkpoint, wanted)
    if needed is None:
        return None
    names = [file.name for file in checkpoint.files]
    is_plain = not any(set("*?[") & set(name) for name in needed)
    return needed + [name for name in names if is_state_file(name)] if is_plain else None
