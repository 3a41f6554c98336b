"""`longshore.load`: the running loader if there is one, else a private one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from longshore import _address, _private
from longshore._errors import Error, Unavailable
from longshore._model import Model
from longshore._node import Node, connect
from longshore._parallel import Parallel
from longshore._progress import ProgressOption

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
) -> Model[Any]:
    """Loads a model as `Node.load` does, over the loader that runs on this machine.

    When no address is given or configured and no loader runs, a private one is started from the ``longshore`` binary
    (``LONGSHORE_BIN``, the wheel's own, PATH). It ends with the last lease.
    """
    deadline = None if timeout is None else time.monotonic() + timeout

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
